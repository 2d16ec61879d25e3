// The shipped models: transformers' logits, and what strategies do to a model that has learned its tasks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "core/json.h"
#include "model/engine.h"
#include "tasks/task.h"

namespace lacuna {
namespace {

std::string folder_of(const std::string& name) { return "assets/mini/" + name; }

StrategySpec strategy(const std::string& json) { return parse_strategy(parse_json(json, "test"), "test"); }

/// One model with what its answers are judged by.
class Model {
 public:
  explicit Model(const std::string& name)
      : tokenizer(Tokenizer::load(folder_of(name))),
        chat(detect_chat_format(folder_of(name))),
        engine(Engine::load({.folder = folder_of(name), .rope_override = {}}, team_, threads_)) {}

  /// Mean score of each strategy over `samples` prompts of `tokens`; strategies with the same prefill share
  /// it.
  std::vector<double> scores(const std::string& task_name, std::int64_t tokens, int samples,
                             const std::string& prefill, const std::vector<std::string>& variants) {
    Json params = {{"preset", "mini"}, {"style", "direct"}};
    if (task_name == "ruler_niah") params["num_queries"] = 2;  // short answers
    const auto task =
        make_task(task_name, Params::parse(find_task(task_name, "test").params, params, "test"));
    std::vector<Variant> wanted;
    for (const std::string& variant : variants) {
      const StrategySpec s = strategy(variant);
      wanted.push_back({.evict = s.evict, .decode = s.decode, .sampling = {.max_new_tokens = 64}});
    }
    std::vector<double> means(variants.size());
    for (int i = 0; i < samples; ++i) {
      const Sample sample = task->generate({.tokenizer = &tokenizer,
                                            .chat = chat,
                                            .target_tokens = tokens,
                                            .seed = 11,
                                            .index = static_cast<std::uint64_t>(i)});
      const JobResult job = engine->run({.prompt = sample.ids,
                                         .prefill = strategy(prefill).prefill,
                                         .variants = wanted,
                                         .seed = static_cast<std::uint64_t>(i),
                                         .want_logits = false,
                                         .on_token = {},
                                         .cancelled = {}});
      for (std::size_t v = 0; v < means.size(); ++v) {
        EXPECT_EQ(job.variants[v].error, "");
        means[v] += task->score(sample.gold, tokenizer.decode(job.variants[v].ids)).value / samples;
      }
    }
    return means;
  }

  Tokenizer tokenizer;
  ChatFormat chat;
  SelfCommunicator team_;
  ThreadPool threads_{2};
  std::unique_ptr<Engine> engine;
};

class ShippedModel : public ::testing::TestWithParam<const char*> {};

TEST_P(ShippedModel, GivesTheLogitsOfTransformers) {
  Model model(GetParam());
  std::ifstream golden(std::string("tests/mini/golden/") + GetParam() + ".txt");
  ASSERT_TRUE(golden.is_open());
  const std::vector<Variant> none;
  for (const int length : {200, 1500}) {
    std::vector<TokenId> prompt;
    for (std::int64_t i = 0; i < length; ++i)
      prompt.push_back(static_cast<TokenId>((7919 * i + 31 * i * i + 5) % 1900 + 16));
    const JobResult job = model.engine->run({.prompt = prompt,
                                             .prefill = strategy("{}").prefill,
                                             .variants = none,
                                             .seed = 0,
                                             .want_logits = true,
                                             .on_token = {},
                                             .cancelled = {}});
    const std::size_t step = job.prompt_logits.size() / 300;
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < 300; ++i) {
      double wanted = NAN;
      ASSERT_TRUE(golden >> wanted);
      worst = std::max(worst, std::abs(wanted - static_cast<double>(job.prompt_logits[i * step])));
      largest = std::max(largest, std::abs(wanted));
    }
    EXPECT_LT(worst / largest, 1e-5) << length << " tokens";
  }
}
INSTANTIATE_TEST_SUITE_P(Mini, ShippedModel, ::testing::Values("nano", "micro", "tiny"),
                         [](const auto& model) { return std::string(model.param); });

// 16 samples: the standard error of a mean near 1/2 is 0.125; the bounds below are several of those apart.

TEST(MiniStrategies, DecodingKeepsTheAnswerAtModerateSparsityAndLosesItAtExtremes) {
  Model model("tiny");
  const std::vector<double> means = model.scores(
      "ruler_niah", 1024, 16, "{}",
      {"{}", R"({"decode": {"quest": {"budget": 768}}})", R"({"decode": {"quest": {"budget": 16}}})",
       R"({"evict": {"snapkv": {"capacity": 300, "window": 64, "last": 32}}})",
       R"({"evict": {"snapkv": {"capacity": 40, "window": 64, "last": 32}}})"});
  EXPECT_GE(means[0], 0.9) << "dense";
  EXPECT_GE(means[1], means[0] - 0.15) << "quest, three quarters of the tokens";
  EXPECT_LE(means[2], means[0] - 0.5) << "quest, one page";
  EXPECT_GE(means[3], means[0] - 0.15) << "snapkv, 300 tokens";
  EXPECT_LE(means[4], means[0] - 0.5) << "snapkv, 40 tokens";
}

TEST(MiniStrategies, PrefillKeepsTheAnswerAtModerateSparsityAndLosesItAtExtremes) {
  Model model("tiny");
  const std::vector<std::string> dense = {"{}"};
  const auto score = [&](const std::string& prefill) {
    return model.scores("ruler_vt", 1024, 16, prefill, dense)[0];
  };
  const double all = score("{}");
  EXPECT_GE(all, 0.9);
  EXPECT_GE(score(R"({"prefill": {"vertical_slash": {"verticals": 256, "slashes": 256, "window": 64}}})"),
            all - 0.15);
  // The first tokens and a band of 16: neither keys nor their values are seen where they are asked for.
  EXPECT_LE(score(R"({"prefill": {"streaming": {"sinks": 1, "window": 16}}})"), all - 0.5);
}

TEST(MiniStrategies, SnapKvBeatsRandomEviction) {
  Model model("tiny");
  const std::vector<double> means =
      model.scores("ruler_niah", 1024, 16, "{}",
                   {R"({"evict": {"snapkv": {"capacity": 300, "window": 64, "last": 32}}})",
                    R"({"evict": {"random": {"capacity": 300, "last": 32}}})"});
  EXPECT_GE(means[0], means[1] + 0.4);
}

TEST(MiniStrategies, TheOracleIsNeverWorseThanQuestAtTheSameBudget) {
  Model model("tiny");
  std::vector<std::string> variants;
  for (const int budget : {16, 48, 96, 192}) {
    for (const char* method : {"oracle_top_k", "quest"})
      variants.push_back(Json{{"decode", {{method, {{"budget", budget}}}}}}.dump());
  }
  const std::vector<double> means = model.scores("ruler_niah", 1024, 16, "{}", variants);
  double oracle = 0, quest = 0;
  for (std::size_t i = 0; i < means.size(); i += 2) {
    EXPECT_GE(means[i], means[i + 1] - 0.25) << variants[i];
    oracle += means[i];
    quest += means[i + 1];
  }
  EXPECT_GE(oracle, quest);
}

}  // namespace
}  // namespace lacuna
