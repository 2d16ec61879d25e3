// xxHash (XXH3), for keys, fingerprints and journal checksums. Not cryptographic.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lacuna {

/// Accumulates bytes; add() of a string adds its length too, so that ("ab","c") and ("a","bc") differ.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  Hasher& add_bytes(const void* data, std::size_t bytes);
  Hasher& add(std::string_view text);
  Hasher& add(std::uint64_t value);
  std::uint64_t digest64() const;
  /// 128 bits as 32 hex digits.
  std::string digest_hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// XXH3-64 of the bytes alone.
std::uint64_t hash64(std::string_view bytes);
/// 16 lower-case hex digits.
std::string to_hex(std::uint64_t value);
/// XXH3-128 of a whole file, as 32 hex digits. Throws kUsage when it cannot be read.
std::string hash_file(const std::string& path);

}  // namespace lacuna
