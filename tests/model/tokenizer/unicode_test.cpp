// Every code point of Unicode through normalizers, pattern classes and whole tokenizers, against the
// reference library.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "checksum.h"
#include "core/file.h"
#include "core/json.h"
#include "corpus.h"
#include "model/normalizer.h"
#include "model/pretokenizer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_utf8.h"

namespace lacuna::test {
namespace {

constexpr char32_t kBlock = 4096;

/// Calls text(code) for the characters of the block and joins what it returns.
template <class F>
std::string of_block(char32_t start, F&& text) {
  std::string out;
  for (char32_t c = start; c < start + kBlock; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string character;
    utf8::append(character, c);
    out += text(character);
  }
  return out;
}

/// Compares a checksum per block; `make(start)` gives the text to sum.
template <class F>
void expect_blocks(const std::string& name, F&& make) {
  static const Json golden = read_json_file(std::string(kGolden) + "unicode.golden");
  const auto sums = golden.at(name).get<std::string>();
  ASSERT_EQ(sums.size(), 8 * 0x110000 / kBlock);
  for (char32_t start = 0; start < 0x110000; start += kBlock) {
    // Planes without characters, but for the first and last blocks of the private ones, would only take time.
    if (start >= 0x33000 && start != 0xE0000 && start != 0xF0000 && start != 0x10F000) continue;
    EXPECT_EQ(fmt::format("{:08x}", crc32(make(start))), sums.substr(start / kBlock * 8, 8))
        << name << ": code points from U+" << fmt::format("{:04X}", static_cast<unsigned>(start));
  }
}

TEST(UnicodeTest, NormalForms) {
  for (const char* name : {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}) {
    const Normalizer normalizer = Normalizer::parse({{"type", name}}, "test");
    expect_blocks(name, [&](char32_t start) {
      std::string text =
          of_block(start, [](const std::string& c) { return "a\xCD\x85" + c + " " + c + "\xCC\xA3x"; });
      normalizer.apply(text);
      return text;
    });
  }
}

TEST(UnicodeTest, PatternClasses) {
  const Json golden = read_json_file(std::string(kGolden) + "unicode.golden");
  int classes = 0;
  for (const auto& [pattern, unused] : golden.items()) {
    if (pattern.find_first_of("\\[(.") == pattern.npos) continue;
    ++classes;
    const Json split = {
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Removed"}, {"invert", true}};
    const PreTokenizer pre_tokenizer = PreTokenizer::parse(split, true, "test");
    expect_blocks(pattern, [&](char32_t start) {
      const std::string text = of_block(start, [](const std::string& c) { return c; });
      Pieces pieces;
      pre_tokenizer.run(text, true, pieces);
      std::string members;
      for (const Piece& piece : pieces.items) members += piece.text;
      return members;
    });
  }
  EXPECT_EQ(classes, 15);
}

TEST(UnicodeTest, WholeTokenizers) {
  for (const char* name : {"qwen", "llama3", "gemma", "options"}) {
    const Tokenizer tokenizer = Tokenizer::parse(read_file(std::string(kGolden) + name + ".json"), name);
    expect_blocks(name, [&](char32_t start) {
      const std::string text =
          of_block(start, [](const std::string& c) { return "a" + c + "b " + c + c + " 1" + c + "word"; });
      return fmt::format("{}", fmt::join(tokenizer.encode(text), ","));
    });
  }
}

}  // namespace
}  // namespace lacuna::test
