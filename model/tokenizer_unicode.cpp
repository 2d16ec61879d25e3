#include "model/tokenizer_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <memory>

namespace lacuna::unicode {
namespace {

struct CodeRange {
  char32_t low, high;
};
struct FlipRange {
  char32_t low, high;
  std::uint8_t bits;
};
struct LowerRange {
  char32_t low, high;
  int offset;
};
#include "model/tokenizer_unicode_table.inc"

constexpr char32_t kCodes = 0x110000;

/// White_Space of the Unicode standard (fixed since 6.3).
constexpr CodeRange kWhiteSpace[] = {{0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
                                     {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                                     {0x205F, 0x205F}, {0x3000, 0x3000}};
std::uint8_t bits_of(std::string_view category) {
  std::uint8_t bits = 0;
  if (category[0] == 'L') bits |= kWord;
  if (category[0] == 'M') bits |= kWord;
  if (category[0] == 'N') bits |= kNumber;
  if (category[0] == 'P') bits |= kPunctuation;
  if (category == "Nd" || category == "Nl" || category == "Pc") bits |= kWord;
  return bits;
}

std::unique_ptr<std::uint8_t[]> build() {
  auto table = std::make_unique<std::uint8_t[]>(kCodes);
  for (char32_t c = 0; c < kCodes; ++c) {
    table[c] = bits_of(utf8proc_category_string(static_cast<utf8proc_int32_t>(c)));
  }
  for (const CategoryRange& r : kNewerCategories) {
    std::fill(&table[r.low], &table[r.high] + 1, bits_of(r.category));
  }
  for (const CodeRange& r : kWhiteSpace) {
    for (char32_t c = r.low; c <= r.high; ++c) table[c] |= kSpace;
  }
  for (const char c : std::string_view("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")) {
    table[static_cast<unsigned char>(c)] |= kPunctuation;
  }
  for (const FlipRange& r : kFlips) {
    for (char32_t c = r.low; c <= r.high; ++c) table[c] ^= r.bits;
  }
  return table;
}

template <class Range, std::size_t N>
const Range* find_range(const Range (&ranges)[N], char32_t code) {
  const Range* it = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                     [](char32_t c, const Range& r) { return c < r.low; });
  return it != std::begin(ranges) && code <= it[-1].high ? it - 1 : nullptr;
}

}  // namespace

const std::uint8_t* property_table() {
  static const std::unique_ptr<std::uint8_t[]> table = build();
  return table.get();
}

std::span<const CategoryRange> newer_categories() { return kNewerCategories; }

bool is_inert(char32_t code) {
  return code >= kInertRanges[0].low && find_range(kInertRanges, code) != nullptr;
}

char32_t to_lower(char32_t code) {
  if (code < 0x80) return code >= 'A' && code <= 'Z' ? code + 32 : code;
  if (code == 0x130) return 'i';
  if (const LowerRange* r = find_range(kNewerLower, code)) {
    return static_cast<char32_t>(static_cast<std::int64_t>(code) + r->offset);
  }
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code)));
}

}  // namespace lacuna::unicode
