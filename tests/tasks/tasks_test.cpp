// What holds for every generator: filling, determinism, coherence of stories, refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>
#include <thread>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"
#include "tests/tasks/solvers.h"
#include "tests/tasks/testing.h"

namespace lacuna {
namespace {

using testing::kGenerated;
using testing::make;
using testing::tokenizer;

Sample generate(const Task& task, std::int64_t length, std::uint64_t index, std::uint64_t seed = 1,
                ChatFormat chat = ChatFormat::kChatML) {
  return task.generate(
      {.tokenizer = &tokenizer(), .chat = chat, .target_tokens = length, .seed = seed, .index = index});
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage) << e.what();
    return e.what();
  }
  return "no error";
}

const Json kMini = {{"preset", "mini"}, {"style", "direct"}};

TEST(Tasks, Registry) {
  ASSERT_EQ(tasks().size(), 9u);
  std::set<std::string> metrics, names;
  for (const auto& info : tasks()) {
    names.insert(info.name);
    metrics.insert(info.metric);
    EXPECT_FALSE(info.summary.empty());
    EXPECT_EQ(info.needs_data, info.name.starts_with("qa_"));
  }
  EXPECT_EQ(names.size(), 9u);
  EXPECT_EQ(metrics, (std::set<std::string>{"exact_match", "iou", "token_f1"}));
  EXPECT_THAT(error_of([] { find_task("ruler_nih", "sweep.yaml:3"); }),
              ::testing::HasSubstr("did you mean 'ruler_niah'?"));
}

TEST(Tasks, FillsEveryLengthAndEveryChatFormat) {
  for (const char* name : kGenerated) {
    const auto task = make(name, kMini);
    for (const ChatFormat chat : {ChatFormat::kChatML, ChatFormat::kNone}) {
      for (std::int64_t length = 200; length <= 8192; length += length < 400 ? 1 : 509) {
        const Sample sample = generate(*task, length, static_cast<std::uint64_t>(length), 1, chat);
        ASSERT_LE(std::ssize(sample.ids), length) << name;
        ASSERT_GE(std::ssize(sample.ids) * 100, length * 95) << name << " " << length;
        std::int64_t sum = 0;
        for (const auto& [section, tokens] : sample.sections) sum += tokens;
        ASSERT_EQ(sum, std::ssize(sample.ids)) << name;
        ASSERT_EQ(sample.ids, encode_chat(tokenizer(), chat, sample.prompt)) << name;
      }
    }
  }
}

TEST(Tasks, QuestionStandsBeforeAndAfterTheContext) {
  for (const char* name : kGenerated) {
    for (const Json& params : {kMini, Json::object()}) {
      const Sample sample = generate(*make(name, params), 4096, 5);
      std::map<std::string, std::int64_t> tokens(sample.sections.begin(), sample.sections.end());
      EXPECT_GT(tokens.at("question"), 0) << name;
      // The last line of a prompt has no newline.
      EXPECT_NEAR(static_cast<double>(tokens.at("question")),
                  static_cast<double>(tokens.at("question again")), 1)
          << name;
      const auto first = sample.prompt.find("Find"), last = sample.prompt.rfind("Find");
      EXPECT_LT(first + sample.prompt.size() / 2, last) << name;
      EXPECT_NE(sample.prompt.find("<answer>"), std::string::npos) << name;
      EXPECT_NE(sample.prompt.back(), '\n') << name;
    }
  }
}

TEST(Tasks, SampleDependsOnSeedAndIndexAlone) {
  for (const char* name : kGenerated) {
    const auto task = make(name, kMini);
    const Sample once = generate(*task, 1024, 3);
    PieceCache cache(tokenizer());
    for (const std::uint64_t index : {0u, 9u, 3u}) {  // another order, a warm cache, ids by pieces
      const Sample again = task->generate({.tokenizer = &tokenizer(),
                                           .chat = ChatFormat::kChatML,
                                           .target_tokens = 1024,
                                           .seed = 1,
                                           .index = index,
                                           .cache = &cache,
                                           .trust_pieces = true});
      EXPECT_EQ(again.ids == once.ids && again.gold == once.gold, index == 3) << name;
    }
    EXPECT_NE(generate(*task, 1024, 3, 2).prompt, once.prompt) << name;
  }
}

TEST(Tasks, ThreadsShareATask) {
  for (const char* name : kGenerated) {
    const auto task = make(name, kMini);
    std::vector<std::vector<TokenId>> alone(16), together(16);
    for (std::size_t i = 0; i < 16; ++i) alone[i] = generate(*task, 512, i).ids;
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (std::size_t i = t; i < 16; i += 4) together[i] = generate(*task, 512, i).ids;
      });
    }
    threads.clear();
    EXPECT_EQ(alone, together) << name;
  }
}

/// The committed hashes make a change of any generator visible: results of different versions must not be
/// mixed unawares.
TEST(Tasks, CommittedHashes) {
  const Json golden = read_json_file("tests/tasks/golden/hashes.json");
  Json found = Json::object();
  for (const auto& info : tasks()) {
    for (const bool mini : {false, true}) {
      if (info.needs_data && mini) continue;
      Json params = mini ? kMini : Json::object();
      if (info.name == "qa_squad")
        params = {{"data", "tests/tasks/data/squad_v2.json"}, {"repeat_documents", true}};
      else if (info.needs_data)
        params = {{"data", "tests/tasks/data/choices.jsonl"}, {"repeat_documents", true}};
      const auto task = make(info.name, params);
      Hasher hasher;
      for (std::uint64_t index = 0; index < 3; ++index) {
        const Sample sample = generate(*task, mini ? 1024 : 8192, index, 42);
        hasher.add(sample.prompt)
            .add(sample.gold.dump())
            .add(sample.answer_text)
            .add(sample.description.dump());
        hasher.add_bytes(sample.ids.data(), sample.ids.size() * sizeof(TokenId));
      }
      found[info.name + (mini ? " mini" : "")] = hasher.digest_hex();
    }
  }
  EXPECT_EQ(found, golden) << "if the change is meant, this is the new file:\n" << found.dump(1);
}

TEST(Tasks, NeedlesStandAnywhere) {
  const auto task = make("ruler_niah", kMini);
  int first_half = 0, total = 0;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const Sample sample = generate(*task, 1024, i);
    for (const auto& position : sample.description.at("needle_positions")) {
      first_half +=
          2 * position.get<std::size_t>() < sample.description.at("records").get<std::size_t>() ? 1 : 0;
      ++total;
    }
  }
  EXPECT_NEAR(static_cast<double>(first_half) / total, 0.5, 0.06);
}

void check_story(const Sample& sample, std::size_t without_purchase) {
  const Json& chapters = sample.description.at("chapters");
  std::set<std::pair<std::string, std::string>> pairs;
  std::set<std::string> items, sold;
  std::size_t empty = 0;
  for (const auto& chapter : chapters) {
    EXPECT_TRUE(pairs.emplace(chapter.at("place"), chapter.at("person")).second) << chapter.dump();
    if (chapter.contains("sold")) {
      EXPECT_TRUE(items.count(chapter.at("sold"))) << "sold before it was bought: " << chapter.dump();
      EXPECT_TRUE(sold.insert(chapter.at("sold")).second) << "sold twice: " << chapter.dump();
    }
    if (chapter.contains("bought"))
      EXPECT_TRUE(items.insert(chapter.at("bought")).second) << chapter.dump();
    else
      ++empty;
  }
  EXPECT_EQ(empty, without_purchase);
  // The facts are what a reader finds in the text.
  const auto read = testing::read_story(sample.prompt);
  ASSERT_EQ(read.size(), chapters.size());
  for (std::size_t i = 0; i < read.size(); ++i) {
    EXPECT_EQ(read[i].number, static_cast<int>(i) + 1);
    EXPECT_EQ(read[i].place, chapters[i].at("place"));
    EXPECT_EQ(read[i].person, chapters[i].at("person"));
    EXPECT_EQ(read[i].bought, chapters[i].value("bought", ""));
    EXPECT_EQ(read[i].sold, chapters[i].value("sold", ""));
  }
}

TEST(Story, IsCoherent) {
  for (const Json& params : {Json::object(), Json{{"detail", "brief"}}, Json{{"sale_chance", 1.0}}, kMini}) {
    const bool mini = params.contains("preset");
    for (std::uint64_t i = 0; i < 20; ++i) {
      const std::int64_t length = mini ? 4096 : 16384;
      check_story(generate(*make("story_retrieval", params), length, i), 0);
      check_story(generate(*make("story_filtering", params), length, i), 3);
      check_story(generate(*make("story_multihop", params), length, i), 0);
    }
  }
}

TEST(Story, HalfOfTheChaptersSell) {
  std::size_t sales = 0, chapters = 0;
  for (std::uint64_t i = 0; i < 20; ++i) {
    const Sample sample = generate(*make("story_multihop", Json::object()), 16384, i);
    for (const auto& chapter : sample.description.at("chapters")) {
      sales += chapter.contains("sold") ? 1 : 0;
      ++chapters;
    }
  }
  EXPECT_NEAR(static_cast<double>(sales) / static_cast<double>(chapters), 0.5, 0.05);
}

TEST(Params, CountsAreTakenOver) {
  EXPECT_EQ(generate(*make("ruler_niah", {{"num_queries", 2}}), 4096, 0).gold.size(), 2u);
  EXPECT_EQ(
      generate(*make("ruler_niah", {{"num_queries", 1}, {"value_groups", 1}, {"group_length", 6}}), 4096, 0)
          .gold[0]["value"]
          .get<std::string>()
          .size(),
      6u);
  EXPECT_EQ(generate(*make("ruler_vt", {{"num_hops", 7}}), 4096, 0).gold.size(), 8u);
  EXPECT_EQ(generate(*make("ruler_vt", {{"name_length", 9}}), 4096, 0).gold[0].get<std::string>().size(), 9u);
  EXPECT_EQ(generate(*make("ruler_cwe", {{"common_words", 4}, {"common_count", 9}}), 4096, 0).gold.size(),
            4u);
  EXPECT_EQ(generate(*make("story_retrieval", {{"num_queries", 3}}), 4096, 0).gold.size(), 3u);
  EXPECT_EQ(generate(*make("story_filtering", {{"chapters_in_question", 5}}), 4096, 0).gold.size(), 5u);
  const Sample numbered = generate(*make("ruler_cwe", {{"preset", "mini"}, {"layout", "numbered"}}), 2048, 0);
  EXPECT_THAT(numbered.prompt, ::testing::HasSubstr("\n17. "));
  EXPECT_EQ(generate(*make("ruler_cwe", {{"common_count", 40}, {"other_count", 5}}), 8192, 0)
                .description["other_count"],
            5);
  EXPECT_EQ(generate(*make("story_multihop", {{"sale_chance", 0.0}}), 8192, 0).prompt.find("merchant sold"),
            std::string::npos);
}

TEST(Params, MiniShrinksWithTheLength) {
  const auto niah = make("ruler_niah", kMini);
  EXPECT_EQ(generate(*niah, 1024, 0).gold.size(), 4u);
  EXPECT_LT(generate(*niah, 200, 0).gold.size(), 4u);
  EXPECT_GT(generate(*make("ruler_vt", kMini), 4096, 0).description["chains"],
            generate(*make("ruler_vt", kMini), 130, 0).description["chains"]);
  EXPECT_GT(generate(*make("ruler_cwe", kMini), 8192, 0).description["other_count"], 2);
}

TEST(Refusals, SayWhatIsWrong) {
  const auto refusal = [](const char* name, const Json& params, std::int64_t length) {
    return error_of([&] { generate(*make(name, params), length, 0); });
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(refusal("ruler_niah", Json::object(), 600), HasSubstr("too few for 4 keys"));
  EXPECT_THAT(refusal("ruler_niah", {{"key_groups", 1}, {"group_length", 1}}, 4096),
              HasSubstr("not enough different"));
  EXPECT_THAT(refusal("ruler_vt", Json::object(), 400), HasSubstr("do not hold 8 chains"));
  EXPECT_THAT(refusal("ruler_vt", {{"name_length", 1}}, 4096), HasSubstr("not enough different names"));
  EXPECT_THAT(refusal("ruler_vt", {{"value_digits", 1}, {"num_chains", 20}}, 4096),
              HasSubstr("not enough different values"));
  EXPECT_THAT(refusal("ruler_cwe", Json::object(), 2048),
              HasSubstr("too few for 10 words that appear 30 times"));
  EXPECT_THAT(refusal("ruler_cwe", {{"vocabulary", 100}}, 16384),
              HasSubstr("vocabulary of 100 words is too small"));
  EXPECT_THAT(refusal("ruler_cwe", {{"common_count", 3}}, 16384), HasSubstr("must be more than other_count"));
  EXPECT_THAT(refusal("story_retrieval", Json::object(), 1000), HasSubstr("too few chapters"));
  EXPECT_THAT(refusal("story_filtering", Json::object(), 700), HasSubstr("too few for 3 without a purchase"));
  EXPECT_THAT(refusal("story_multihop", Json::object(), 330), HasSubstr("fewer than two chapters"));
  EXPECT_THAT(refusal("story_multihop", kMini, 400000), HasSubstr("no different places"));
  EXPECT_THAT(refusal("ruler_niah", {{"num_query", 3}}, 4096), HasSubstr("did you mean 'num_queries'?"));
  EXPECT_THAT(refusal("ruler_niah", {{"num_queries", -3}}, 4096), HasSubstr("-3 is not valid"));
  for (const char* name : kGenerated) {
    EXPECT_THAT(refusal(name, kMini, 0), HasSubstr("must be positive"));
    EXPECT_THAT(refusal(name, kMini, 5), HasSubstr("chat frame"));
    EXPECT_THAT(refusal(name, kMini, 40), ::testing::AnyOf(HasSubstr("tokens"), HasSubstr("chapters")))
        << name;
  }
}

/// A tokenizer that joins what pieces separate (no pre-tokenizer at all): counts are not additive, fills must
/// still hold.
TEST(Tasks, TokenizersThatJoinPieces) {
  Json model = read_json_file("tests/tasks/golden/tokenizer.json");
  model["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  auto& vocab = model["model"]["vocab"];
  auto& merges = model["model"]["merges"];
  model["added_tokens"] = Json::array();
  int joined = 0;
  const auto merge = [&](const std::string& a, const std::string& b) {
    if (!vocab.contains(a) || !vocab.contains(b)) return;
    ++joined;
    if (!vocab.contains(a + b)) vocab[a + b] = vocab.size();
    merges.push_back(Json::array({a, b}));
  };
  merge(".", "Ċ");  // a full stop and the newline after it, then the next line's first word
  for (const char* word : {"Key", "Copy", "The", "Chapter", "Two", "It"}) merge(".Ċ", word);
  for (const char* word : {"ĠThen", "ĠThe", "ĠThey"}) merge(".", word);
  merge(",", "Ġ");
  ASSERT_GE(joined, 5);
  int samples_joined = 0;
  const Tokenizer joining = Tokenizer::parse(model.dump(), "joining");
  for (const char* name : kGenerated) {
    for (const std::int64_t length : {300, 1024, 8192}) {
      const Sample sample = make(name, kMini)
                                ->generate({.tokenizer = &joining,
                                            .chat = ChatFormat::kNone,
                                            .target_tokens = length,
                                            .seed = 1,
                                            .index = 2});
      EXPECT_EQ(sample.ids, encode_chat(joining, ChatFormat::kNone, sample.prompt)) << name;
      std::int64_t sum = 0;
      for (const auto& [section, tokens] : sample.sections) {
        EXPECT_GE(tokens, 0) << name << " " << section;
        sum += tokens;
      }
      EXPECT_EQ(sum, std::ssize(sample.ids)) << name;
      const Sample pieces = make(name, kMini)
                                ->generate({.tokenizer = &joining,
                                            .chat = ChatFormat::kNone,
                                            .target_tokens = length,
                                            .seed = 1,
                                            .index = 2,
                                            .trust_pieces = true});
      samples_joined += pieces.ids != encode_chat(joining, ChatFormat::kNone, pieces.prompt) ? 1 : 0;
      EXPECT_LE(std::ssize(sample.ids), length) << name;
      EXPECT_GE(std::ssize(sample.ids) * 100, length * 90) << name << " " << length;
    }
  }
  EXPECT_GE(samples_joined, 15);  // else this tests nothing
}

}  // namespace
}  // namespace lacuna
