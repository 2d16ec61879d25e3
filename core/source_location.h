// A place in our source. std::source_location would do, but clang 14 (Debian 12) does not have it, and
// clang-tidy and libFuzzer need clang.
#pragma once

namespace lacuna {

struct SourceLocation {
  const char* file = "";
  int line = 0;
  /// As a default argument: the place of the call.
  static constexpr SourceLocation current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace lacuna
