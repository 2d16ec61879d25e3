// Ids and decoded text of every line of the corpus, for every tokenizer, against the reference library.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "checksum.h"
#include "core/file.h"
#include "core/json.h"
#include "corpus.h"
#include "model/tokenizer.h"

namespace lacuna::test {
namespace {

constexpr std::size_t kLines = 12000;

std::string joined(const std::vector<TokenId>& ids) { return fmt::format("{}", fmt::join(ids, ",")); }

class GoldenTest : public testing::TestWithParam<const char*> {
 protected:
  std::string path(const char* suffix) const { return std::string(kGolden) + GetParam() + suffix; }
  Tokenizer tokenizer_ = Tokenizer::parse(read_file(path(".json")), GetParam());
};

TEST_P(GoldenTest, IdsAndTextOfEveryLine) {
  const std::vector<std::string> fragments = read_fragments();
  std::string sums = read_file(path(".golden"));
  std::erase(sums, '\n');
  ASSERT_EQ(sums.size(), kLines * 6);
  const Json full = read_json_file(path(".ids.json"));
  ASSERT_GE(full.size(), 100u);
  int wrong = 0;
  for (std::size_t i = 0; i < kLines && wrong < 5; ++i) {
    const std::string text = corpus_line(fragments, kCorpusSeed, i);
    const std::vector<TokenId> ids = tokenizer_.encode(text, i % 2 == 1);
    const std::string decoded = tokenizer_.decode(ids, i % 3 == 0);
    if (i < full.size()) {
      EXPECT_EQ(joined(ids), joined(full[i]["ids"].get<std::vector<TokenId>>()))
          << "line " << i << ": " << text;
      EXPECT_EQ(decoded, full[i]["decoded"].get<std::string>()) << "line " << i;
    }
    const std::string sum = fmt::format("{:06x}", crc32(joined(ids) + ";" + decoded) & 0xFFFFFF);
    if (sum != sums.substr(i * 6, 6)) {
      ++wrong;
      ADD_FAILURE() << "line " << i << " differs: " << text << "\nids " << joined(ids) << "\ndecoded "
                    << decoded;
    }
  }
}

TEST_P(GoldenTest, StreamingGivesTheSameTextInWholeCharacters) {
  const std::vector<std::string> fragments = read_fragments();
  for (std::size_t i = 0; i < 600; ++i) {
    const std::vector<TokenId> ids = tokenizer_.encode(corpus_line(fragments, kCorpusSeed, i), true);
    for (const bool skip : {false, true}) {
      StreamDecoder stream(tokenizer_, skip);
      std::string text;
      for (const TokenId id : ids) {
        const std::string piece = stream.push(id);
        // Valid UTF-8 by itself: encoding it as text of a JSON document throws otherwise.
        ASSERT_NO_THROW(Json(piece).dump()) << "line " << i;
        text += piece;
      }
      text += stream.finish();
      ASSERT_EQ(text, tokenizer_.decode(ids, skip)) << "line " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, GoldenTest, testing::ValuesIn(kTokenizers),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace lacuna::test
