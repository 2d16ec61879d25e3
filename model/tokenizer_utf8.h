// UTF-8: the few primitives that the tokenizer needs. Functions that take "valid" text trust it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna::utf8 {

/// What the bytes at the start of some text are.
struct Scan {
  enum Kind { kValid, kInvalid, kIncomplete } kind;
  std::size_t
      length;  ///< Bytes of the character, or of the longest prefix of one: replaced by a single U+FFFD.
};
/// Looks at the first character of non-empty `text`. kIncomplete: the text ends inside what could become a
/// character.
Scan scan(std::string_view text);

/// `text` itself when it is valid, otherwise `storage`, filled with the text in which every maximal invalid
/// piece is U+FFFD: what Python's bytes.decode("utf-8", errors="replace") gives.
std::string_view replace_invalid(std::string_view text, std::string& storage);

struct Char {
  char32_t code;
  std::size_t length;
};
/// The character at `position` of valid text.
inline Char at(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[position + i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1Fu) << 6 | (byte(1) & 0x3Fu), 2};
  if (lead < 0xF0) return {(lead & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu), 3};
  return {(lead & 0x07u) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu), 4};
}
/// The character that ends before `end` (> 0) of valid text.
Char before(std::string_view text, std::size_t end);

void append(std::string& text, char32_t code);

/// Turns a stream of bytes into text: invalid pieces become U+FFFD, half a character waits for its other
/// half.
class LossyStream {
 public:
  /// Appends to `out` what is certain after these bytes.
  void push(std::string_view bytes, std::string& out);
  /// Appends U+FFFD for a character that never ended.
  void finish(std::string& out);

 private:
  std::string pending_;  // at most three bytes between calls
};

}  // namespace lacuna::utf8
