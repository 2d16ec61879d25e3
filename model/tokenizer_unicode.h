// Properties of characters as the reference tokenizer library sees them, whatever Unicode version the
// libraries here have.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lacuna::unicode {

enum Property : std::uint8_t {
  kLetter = 1,       ///< \p{L}
  kNumber = 2,       ///< \p{N}
  kSpace = 4,        ///< White_Space: \s
  kWord = 8,         ///< \w: alphabetic, mark, decimal digit, connector punctuation, joiner
  kPunctuation = 16  ///< ASCII punctuation or \p{P}
};
/// Property bits of every code point up to U+10FFFF. Built on first use (thread-safe).
const std::uint8_t* property_table();
inline bool has(char32_t code, Property property) { return property_table()[code] & property; }

/// Characters assigned after Unicode 14 (the oldest tables in use), with their two-letter category.
struct CategoryRange {
  char32_t low, high;
  char category[3];
};
std::span<const CategoryRange> newer_categories();

/// Characters that the reference's normalizers do not know and therefore leave alone.
bool is_inert(char32_t code);

/// Lower case of one character; U+0130 alone has two, of which this is the first ('i'; U+0307 follows).
char32_t to_lower(char32_t code);

}  // namespace lacuna::unicode
