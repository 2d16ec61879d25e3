// Properties of characters as the reference tokenizer library sees them, whatever Unicode version the
// libraries here have.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lacuna::unicode {

/// What single parts of the reference ask of a character. Each part has tables of its own age there, so these bits are
/// not simply general categories: tokenizer_unicode_table.inc lists where they differ.
enum Property : std::uint8_t {
  kNumber = 1,      ///< Digits
  kSpace = 2,       ///< Strip, lstrip, rstrip: White_Space
  kWord = 4,        ///< single_word: alphabetic, mark, decimal digit, connector punctuation, joiner
  kPunctuation = 8  ///< Punctuation
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
