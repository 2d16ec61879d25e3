// Regular expressions of tokenizer files: written for Oniguruma, run by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace lacuna {

/// The pattern in PCRE2's words. The two differ in what \s, \w, \d, ^, (?m), {,n}, nested classes and more
/// mean, and in the Unicode version of \p{L}. What has no exact translation is refused (kUsage), naming
/// `where` and the construct.
std::string pcre2_pattern(std::string_view oniguruma, const std::string& where);

/// An immutable compiled pattern, safe to use from several threads.
class Regex {
 public:
  /// Throws kUsage when the pattern does not compile or cannot be translated.
  Regex(std::string_view oniguruma_pattern, const std::string& where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Calls found(begin, end) for every match in valid UTF-8 text, from left to right. An empty match right
  /// behind the previous match is passed over, as the reference does. Throws kUsage when the pattern takes
  /// too many steps.
  template <class F>
  void for_each_match(std::string_view text, F&& found) const {
    Cursor cursor;
    while (next(text, cursor)) found(cursor.begin, cursor.end);
  }

 private:
  struct Compiled;
  struct Cursor {
    std::size_t begin = 0, end = 0;
    std::size_t search = 0;  // where the next search starts
    bool any = false;
  };
  bool next(std::string_view text, Cursor& cursor) const;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace lacuna
