// Patterns: Oniguruma's meaning by PCRE2. Expected spans are the reference library's (make_regex_golden.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/json.h"
#include "corpus.h"
#include "model/pretokenizer.h"
#include "model/pretokenizer_regex.h"

namespace lacuna::test {
namespace {

TEST(RegexTest, SplitsLikeTheReference) {
  const Json cases = read_json_file(std::string(kGolden) + "regex.json");
  ASSERT_GT(cases.size(), 100u);
  for (const Json& c : cases) {
    const PreTokenizer pre_tokenizer = PreTokenizer::parse(c["pre_tokenizer"], true, "test");
    const auto text = c["text"].get<std::string>();
    Pieces pieces;
    pre_tokenizer.run(text, true, pieces);
    Json found = Json::array();
    for (const Piece& piece : pieces.items) found.push_back(std::string(piece.text));
    EXPECT_EQ(found, c["pieces"]) << c["pre_tokenizer"].dump() << " on " << c["text"].dump();
  }
}

TEST(RegexTest, RefusesWhatHasNoExactTranslation) {
  for (const char* pattern : {"[a[bc]]",
                              "[a&&b]",
                              "(?m:a)",
                              "(?x) a",
                              "(?<name>a)",
                              "\\bword",
                              "\\h",
                              "\\Gx",
                              "\\1",
                              "\\R",
                              "\\p{Han}",
                              "\\p{Greek",
                              "[^\\S]",
                              "[[:alpha:]]",
                              "a{2}+",
                              "a{2}*",
                              "{",
                              "a{x}",
                              "\\",
                              "[a",
                              "[]a]",
                              "(?i:straf\xC3\x9F"
                              "e)",
                              "(?i:ss)",
                              "(?i:of FI)",
                              "\\xE9",
                              "\\u12",
                              "(?#comment)",
                              "\\k<a>"}) {
    try {
      Regex(pattern, "here");
      ADD_FAILURE() << pattern;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage);
      EXPECT_THAT(e.what(), testing::StartsWith("here: regular expression '"));
    }
  }
}

TEST(RegexTest, GivesUpOnRunawayPatterns) {
  const Regex runaway("(a+)+(b|d)", "here");
  const std::string text = std::string(60, 'a') + "cbd";
  try {
    runaway.for_each_match(text, [](std::size_t, std::size_t) {});
    ADD_FAILURE() << "ended";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("here: the regular expression fails"));
  }
}

}  // namespace
}  // namespace lacuna::test
