// The tokenizer's contract beside the golden corpus: refusals by name, big inputs, threads, streaming, small
// rules.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "corpus.h"
#include "model/tokenizer.h"

namespace lacuna::test {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

/// A small word-level file: "a", "b", "ab", U+2581 and unknown.
Json small() {
  return {{"version", "1.0"},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", nullptr},
          {"post_processor", nullptr},
          {"decoder", {{"type", "Fuse"}}},
          {"model",
           {{"type", "BPE"},
            {"unk_token", "?"},
            {"vocab", {{"?", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"\u2581", 4}, {"abab", 5}}},
            {"merges", Json::parse(R"([["a", "b"], ["ab", "ab"]])")}}}};
}

Json added(const std::string& content, int id) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", false}};
}

Tokenizer make(const Json& file) { return Tokenizer::parse(file.dump(), "tokenizer.json"); }

std::string refusal(const Json& file) {
  try {
    make(file);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_THAT(e.what(), HasSubstr("tokenizer.json"));
    return e.what();
  }
  return "accepted";
}

std::string refusal_with(const char* pointer, const Json& value) {
  Json file = small();
  file[Json::json_pointer(pointer)] = value;
  return refusal(file);
}

Tokenizer golden(const std::string& name) {
  return Tokenizer::parse(read_file(kGolden + name + ".json"), name);
}

TEST(TokenizerTest, MergesByRankThenFromTheLeft) {
  const Tokenizer t = make(small());
  EXPECT_THAT(t.encode("abab"), ElementsAre(5));
  EXPECT_THAT(t.encode("ababab"), ElementsAre(5, 3));
  EXPECT_THAT(t.encode("aabb"), ElementsAre(1, 3, 2));
  EXPECT_THAT(t.encode("xay"), ElementsAre(0, 1, 0));
  EXPECT_THAT(t.encode(""), ElementsAre());
  EXPECT_EQ(t.decode(std::vector<TokenId>{5, 3}), "ababab");
}

TEST(TokenizerTest, LooksUpTokens) {
  const Tokenizer t = golden("qwen");
  EXPECT_EQ(t.vocab_size(), 1505);
  EXPECT_EQ(t.token_id("<|im_start|>"), 1501);
  EXPECT_TRUE(t.is_special(1501));
  EXPECT_FALSE(t.is_special(t.token_id("<tool_call>")));
  EXPECT_EQ(t.token_id("no such token"), -1);
  EXPECT_EQ(t.fingerprint().size(), 32u);
  EXPECT_NE(t.fingerprint(), golden("llama3").fingerprint());
  EXPECT_THAT(t.encode("<|im_start|>"), ElementsAre(1501));
  EXPECT_EQ(t.decode(std::vector<TokenId>{1501}, true), "");
  EXPECT_EQ(t.decode(std::vector<TokenId>{1501}, false), "<|im_start|>");
}

TEST(TokenizerTest, UnknownIdsAreRefused) {
  const Tokenizer t = golden("qwen");
  for (const TokenId id : {-1, 1505, 1 << 30}) {
    try {
      (void)t.decode(std::vector<TokenId>{1, id});
      ADD_FAILURE() << id;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage);
      EXPECT_THAT(e.what(), AllOf(HasSubstr("qwen"), HasSubstr("no token with id " + std::to_string(id))));
    }
    StreamDecoder stream(t);
    EXPECT_THROW(stream.push(id), Error);
  }
}

TEST(TokenizerTest, RefusesByNameWhatItCannotDoExactly) {
  const auto p = [](const char* at, const Json& value) { return refusal_with(at, value); };
  EXPECT_THAT(p("/version", "2.0"), HasSubstr("version '2.0'"));
  EXPECT_THAT(p("/truncation", {{"max_length", 512}}), HasSubstr("'truncation'"));
  EXPECT_THAT(p("/padding", {{"pad_id", 0}}), HasSubstr("'padding'"));
  EXPECT_THAT(p("/normalizer", {{"type", "Precompiled"}}),
              HasSubstr("normalizer Precompiled: this normalizer is not"));
  EXPECT_THAT(p("/normalizer", {{"type", "Sequence"},
                                {"normalizers", Json::parse(R"([{"type": "NFC"}, {"type": "Nmt"}])")}}),
              HasSubstr("Sequence[1] Nmt"));
  EXPECT_THAT(p("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}),
              HasSubstr("empty pattern"));
  EXPECT_THAT(p("/normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "(a"}}}, {"content", "x"}}),
              HasSubstr("does not compile"));
  EXPECT_THAT(p("/normalizer", {{"prepend", "x"}}), HasSubstr("'type' is missing"));
  EXPECT_THAT(p("/pre_tokenizer", {{"type", "BertPreTokenizer"}}),
              HasSubstr("BertPreTokenizer: this pre-tokenizer"));
  EXPECT_THAT(p("/pre_tokenizer", {{"type", "ByteLevel"}}), HasSubstr("'add_prefix_space' is missing"));
  const auto split = [](const Json& pattern, const char* behavior) {
    return Json{{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", false}};
  };
  EXPECT_THAT(p("/pre_tokenizer", split({{"Regex", "a"}}, "Isolate")), HasSubstr("did you mean 'Isolated'"));
  EXPECT_THAT(p("/pre_tokenizer", split({{"Regex", "[a&&b]"}}, "Isolated")), HasSubstr("intersection"));
  EXPECT_THAT(p("/pre_tokenizer", split("a", "Isolated")), HasSubstr("'pattern' must be"));
  const Json first = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}};
  EXPECT_THAT(p("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({first, first})}}),
              HasSubstr("'first'"));
  EXPECT_THAT(p("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "__"}}),
              HasSubstr("one character"));
  EXPECT_THAT(p("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "last"}}),
              HasSubstr("'last'"));
  EXPECT_THAT(p("/post_processor", {{"type", "BertProcessing"}}),
              HasSubstr("BertProcessing: this post-processor"));
  const auto parse = [](const char* text) { return Json::parse(text); };
  EXPECT_THAT(p("/post_processor", parse(R"({"type": "TemplateProcessing", "special_tokens": {},
                                             "single": [{"SpecialToken": {"id": "<s>"}}]})")),
              HasSubstr("'<s>' is missing in special_tokens"));
  EXPECT_THAT(
      p("/post_processor", parse(R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B"}}]})")),
      HasSubstr("sequence 'B'"));
  EXPECT_THAT(p("/post_processor", {{"type", "TemplateProcessing"}, {"single", Json::array()}}),
              HasSubstr("leaves the text out"));
  EXPECT_THAT(p("/decoder", {{"type", "WordPiece"}}), HasSubstr("decoder WordPiece: this decoder is not"));
  EXPECT_THAT(p("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}}),
              HasSubstr("'start'"));
  EXPECT_THAT(p("/model", nullptr), HasSubstr("'model' must be an object"));
  EXPECT_THAT(p("/model/type", "Unigram"), HasSubstr("type 'Unigram'"));
  EXPECT_THAT(p("/model/dropout", 0.1), HasSubstr("dropout 0.1"));
  EXPECT_THAT(p("/model/vocab", 3), HasSubstr("'vocab' must be an object"));
  EXPECT_THAT(p("/model/vocab/c", -3), HasSubstr("token 'c' has id -3"));
  EXPECT_THAT(p("/model/vocab/c", 1u << 31), HasSubstr("token 'c'"));
  EXPECT_THAT(p("/model/vocab/c", 1), HasSubstr("id 1 belongs to both"));
  EXPECT_THAT(p("/model/merges", "a b"), HasSubstr("'merges' must be a list"));
  EXPECT_THAT(p("/model/merges/0", "a  b"), HasSubstr("merges[0] is 'a  b'"));
  EXPECT_THAT(p("/model/merges/0", Json::array({"a"})), HasSubstr("merges[0] is not a pair"));
  EXPECT_THAT(p("/model/merges/1", Json::array({"a", "z"})), HasSubstr("merges[1]: token 'z' is not in"));
  EXPECT_THAT(p("/model/merges/1", Json::array({"b", "a"})), HasSubstr("joined token 'ba'"));
  EXPECT_THAT(p("/model/ignore_merges", "yes"), HasSubstr("'ignore_merges'"));
  EXPECT_THAT(p("/added_tokens", 3), HasSubstr("'added_tokens' must be a list"));
  EXPECT_THAT(p("/added_tokens", Json::array({added("new", 7)})), HasSubstr("'new' has id 7, but"));
  EXPECT_THAT(p("/added_tokens", Json::array({added("ab", 6)})), HasSubstr("'ab' has id 6, but"));
  EXPECT_EQ(p("/added_tokens", Json::array({added("new", 6)})), "accepted");
  EXPECT_EQ(p("/some_note", 1), "accepted");
}

TEST(TokenizerTest, RefusesFilesThatAreNotTokenizers) {
  EXPECT_THROW(Tokenizer::parse("{", "x"), Error);
  EXPECT_THROW(Tokenizer::parse("[]", "x"), Error);
  EXPECT_THROW(Tokenizer::parse("{}", "x"), Error);
  EXPECT_THROW(Tokenizer::load("/no/such/folder"), Error);
  const auto folder = std::filesystem::temp_directory_path() / "lacuna_tokenizer_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "tokenizer.model") << "x";
  try {
    Tokenizer::load(folder.string());
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("convert it once"));
  }
  std::filesystem::remove_all(folder);
}

TEST(TokenizerTest, MissingUnknownTokenIsAnErrorOnlyWhenNeeded) {
  Json file = small();
  file["model"]["unk_token"] = "<unk>";
  const Tokenizer t = make(file);
  EXPECT_THAT(t.encode("ab"), ElementsAre(3));
  EXPECT_THROW((void)t.encode("x"), Error);
  file["model"]["unk_token"] = nullptr;
  EXPECT_THAT(make(file).encode("xaxx"), ElementsAre(1));  // the reference drops what has no token
}

// One character of everything that could be quadratic or deep, a million times.
TEST(TokenizerTest, MegabytesWithoutSpacesAreFast) {
  const std::size_t n = 1 << 20;
  std::vector<std::string> inputs = {std::string(n, 'a'), std::string(n, ' '),   std::string(n, '\n'),
                                     std::string(n, '1'), std::string(n, '.'),   std::string(n, ' ') + "x",
                                     std::string(n, '<'), std::string(n, '\xff')};
  std::string mixed;
  while (mixed.size() < n) mixed += "\xE4\xBD\xA0\xE5\xA5\xBD\xE2\x96\x81";
  inputs.push_back(mixed);
  for (const char* name : kTokenizers) {
    const Tokenizer t = golden(name);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      const std::vector<TokenId> ids = t.encode(inputs[i]);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      EXPECT_TRUE(!ids.empty() || std::string_view(name) == "options") << name << " input " << i;
      EXPECT_LT(seconds, 15) << name << " input " << i;  // a second when alone; quadratic would be hours
      if (seconds > 0.5) std::printf("%s, input %zu: %.2f s for %zu ids\n", name, i, seconds, ids.size());
    }
  }
}

TEST(TokenizerTest, ThreadsShareATokenizer) {
  const std::vector<std::string> fragments = read_fragments();
  std::vector<Tokenizer> tokenizers;
  for (const char* name : kTokenizers) tokenizers.push_back(golden(name));  // more than a thread's caches
  std::vector<std::vector<std::vector<TokenId>>> expected(tokenizers.size());
  constexpr std::uint64_t kLines = 200;
  for (std::size_t t = 0; t < tokenizers.size(); ++t) {
    for (std::uint64_t i = 0; i < kLines; ++i) {
      expected[t].push_back(tokenizers[t].encode(corpus_line(fragments, 3, i)));
    }
  }
  std::atomic<int> wrong{0};
  std::vector<std::jthread> threads;
  for (unsigned worker = 0; worker < 4; ++worker) {
    threads.emplace_back([&, worker] {
      for (std::uint64_t i = 0; i < kLines; ++i) {
        const std::uint64_t line = (i * 7 + worker * 31) % kLines;
        for (std::size_t t = 0; t < tokenizers.size(); ++t) {
          const auto ids = tokenizers[t].encode(corpus_line(fragments, 3, line));
          if (ids != expected[t][line]) ++wrong;
        }
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
}

// Words beyond the cache's room make it start anew; ids stay the same.
TEST(TokenizerTest, CacheOverflowChangesNothing) {
  const Tokenizer t = golden("qwen");
  std::vector<std::vector<TokenId>> before;
  for (int i = 0; i < 60000; ++i)
    before.push_back(t.encode(" w" + std::to_string(i) + "x" + std::to_string(i * 31)));
  for (int i = 0; i < 60000; ++i) {
    ASSERT_EQ(before[static_cast<std::size_t>(i)],
              t.encode(" w" + std::to_string(i) + "x" + std::to_string(i * 31)));
  }
}

TEST(StreamDecoderTest, HoldsHalfACharacter) {
  const Tokenizer t = golden("qwen");
  const std::string text = "\xF0\x92\x8D\x85\xE4\xBD\xA0";
  const std::vector<TokenId> ids = t.encode(text);
  ASSERT_GT(ids.size(), 2u);
  StreamDecoder stream(t);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");  // the character never ended
}

}  // namespace
}  // namespace lacuna::test
