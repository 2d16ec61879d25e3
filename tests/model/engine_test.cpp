// The engine's promises that need no reference: batches, forks, evictions, failures, sampling, windows.
#include "model/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "model/sampling.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::small_config;
using testing::TemporaryFolder;
using testing::tiny_prompt;
using testing::write_tiny_model;

StrategySpec strategy(const std::string& json) { return parse_strategy(parse_json(json, "test"), "test"); }

class EngineTest : public ::testing::Test {
 protected:
  void load(const std::string& config, int threads = 2) {
    write_tiny_model(folder_.path(), config);
    threads_ = std::make_unique<ThreadPool>(threads);
    engine_ = Engine::load({.folder = folder_.path(), .rope_override = {}}, team_, *threads_);
  }
  Variant variant(const std::string& json, int new_tokens, float temperature = 0) {
    const StrategySpec s = strategy(json);
    return {.evict = s.evict,
            .decode = s.decode,
            .sampling = {
                .max_new_tokens = new_tokens, .temperature = temperature, .seed = 5, .ignore_stop = true}};
  }
  JobResult run(std::span<const TokenId> prompt, std::span<const Variant> variants, bool logits = true,
                const std::string& prefill = "{}") {
    return engine_->run({.prompt = prompt,
                         .prefill = strategy(prefill).prefill,
                         .variants = variants,
                         .seed = 3,
                         .want_logits = logits,
                         .on_token = {},
                         .cancelled = {}});
  }
  /// Variants that differ in eviction, selection, length and sampling.
  std::vector<Variant> mixed() {
    return {
        variant("{}", 20),
        variant(R"({"evict": {"snapkv": {"capacity": 160}}})", 9),
        variant(R"({"evict": {"ada_snapkv": {"capacity": 150}}, "decode": {"quest": {"budget": 64}}})", 25),
        variant(R"({"decode": {"quest": {"budget": 48}}})", 1),
        variant("{}", 31, 0.9f),
        variant(R"({"evict": {"ada_snapkv": {"capacity": 150}}})", 14)};
  }
  TemporaryFolder folder_{"engine"};
  SelfCommunicator team_;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, ABatchGivesEachSequenceBitForBitWhatItGetsAlone) {
  for (const std::string& config :
       {small_config("qwen2"),
        small_config("gemma3_text", R"("sliding_window": 40, "sliding_window_pattern": 2)")}) {
    load(config);
    const auto prompt = tiny_prompt(403);
    const auto variants = mixed();
    const JobResult together = run(prompt, variants);
    for (std::size_t i = 0; i < variants.size(); ++i) {
      SCOPED_TRACE(i);
      const JobResult alone = run(prompt, std::span(&variants[i], 1));
      ASSERT_EQ(alone.variants[0].error, "");
      EXPECT_EQ(together.variants[i].ids, alone.variants[0].ids);
      EXPECT_EQ(together.variants[i].logits, alone.variants[0].logits);
      EXPECT_EQ(together.variants[i].decode_sparse.visited_cells,
                alone.variants[0].decode_sparse.visited_cells);
      EXPECT_EQ(together.variants[i].kv_bytes_resident, alone.variants[0].kv_bytes_resident);
      EXPECT_EQ(together.prompt_logits, alone.prompt_logits);
    }
  }
}

TEST_F(EngineTest, ResultsDoNotDependOnThreads) {
  load(small_config("llama"), 1);
  const auto prompt = tiny_prompt(300);
  const auto variants = mixed();
  const JobResult one =
      run(prompt, variants, true, R"({"prefill": {"vertical_slash": {"verticals": 32, "slashes": 32}}})");
  load(small_config("llama"), 5);
  const JobResult five =
      run(prompt, variants, true, R"({"prefill": {"vertical_slash": {"verticals": 32, "slashes": 32}}})");
  EXPECT_EQ(one.prompt_logits, five.prompt_logits);
  for (std::size_t i = 0; i < variants.size(); ++i)
    EXPECT_EQ(one.variants[i].logits, five.variants[i].logits);
}

TEST_F(EngineTest, TheSameJobTwiceGivesTheSameBits) {
  load(small_config("qwen3"));
  const auto variants = mixed();
  const JobResult first = run(tiny_prompt(200), variants);
  run(tiny_prompt(31), variants);  // leaves other contents in pages and workspace
  const JobResult second = run(tiny_prompt(200), variants);
  for (std::size_t i = 0; i < variants.size(); ++i)
    EXPECT_EQ(first.variants[i].logits, second.variants[i].logits);
}

TEST_F(EngineTest, DecodingEqualsPrefillOfTheLongerPrompt) {
  // Cached decoding and a fresh prefill differ only in the order of softmax sums.
  load(small_config("qwen2", R"("use_sliding_window": true, "sliding_window": 24, "max_window_layers": 1)"));
  const Variant v = variant("{}", 40);
  auto prompt = tiny_prompt(50);
  const JobResult job = run(prompt, std::span(&v, 1));
  prompt.insert(prompt.end(), job.variants[0].ids.begin(), job.variants[0].ids.end());
  const JobResult longer = run(prompt, {});
  const auto& decoded = job.variants[0].logits.back();
  ASSERT_EQ(decoded.size(), longer.prompt_logits.size());
  for (std::size_t i = 0; i < decoded.size(); ++i)
    EXPECT_NEAR(decoded[i], longer.prompt_logits[i], 2e-4) << i;
}

TEST_F(EngineTest, EvictionFreesMemoryAndReportsIt) {
  load(small_config("llama"));
  const auto prompt = tiny_prompt(512);
  const std::vector<Variant> variants = {
      variant("{}", 4), variant(R"({"evict": {"snapkv": {"capacity": 160, "window": 32}}})", 4)};
  const JobResult job = run(prompt, variants, false);
  // 3 layers x 4 kv heads x 32 pages of 16 tokens x 2 x 16 channels x 4 bytes
  EXPECT_EQ(job.variants[0].kv_bytes_resident, 3 * 4 * 32 * 2048);
  EXPECT_EQ(job.variants[0].kv_bytes_resident_dense, 3 * 4 * 32 * 2048);
  EXPECT_EQ(job.variants[1].kv_bytes_resident, 3 * 4 * 10 * 2048);
  EXPECT_EQ(job.variants[1].kv_bytes_resident_dense, 3 * 4 * 32 * 2048);
  EXPECT_EQ(job.variants[0].decode_sparse.sparsity(), 0);
  // 3 steps over 160 kept + own tokens instead of 512 + own
  const double kept = 161 + 162 + 163, dense = 513 + 514 + 515;
  EXPECT_NEAR(job.variants[1].decode_sparse.sparsity(), 1 - kept / dense, 1e-12);
  // Choosing what stays is charged to the variant that evicts.
  EXPECT_EQ(job.variants[0].decode_all.index_flops, 0);
  EXPECT_GT(job.variants[1].decode_all.index_flops, 0);
  EXPECT_GT(job.variants[1].decode_all.index_seconds, 0);
  const JobResult only = run(prompt, std::span(&variants[1], 1), false);
  EXPECT_LT(only.peak_bytes, job.peak_bytes) << "with no dense variant the full cache is never kept";
}

TEST_F(EngineTest, SlidingLayersHoldTheirWindowAndAreNotCounted) {
  load(small_config(
      "gemma3_text",
      R"("sliding_window": 32, "sliding_window_pattern": 3)"));  // layers: sliding, sliding, full
  const Variant v = variant("{}", 40);
  const JobResult job = run(tiny_prompt(320), std::span(&v, 1), false);
  EXPECT_EQ(job.variants[0].kv_bytes_resident, 4 * 2048 * (2 + 2 + 20));
  const double q_heads = 8, t = 320, w = 32;
  EXPECT_EQ(job.prefill_sparse.causal_cells, q_heads * t * (t + 1) / 2);
  EXPECT_EQ(job.prefill_all.causal_cells, q_heads * (t * (t + 1) / 2 + 2 * (w * (w + 1) / 2 + (t - w) * w)));
  EXPECT_EQ(job.variants[0].decode_all.causal_cells - job.variants[0].decode_sparse.causal_cells,
            q_heads * 2 * 39 * w);
}

TEST_F(EngineTest, PrefillSparsityIsThatOfTheExecutedLists) {
  load(small_config("llama"));
  const JobResult job =
      run(tiny_prompt(512), {}, false,
          R"({"prefill": {"vertical_slash": {"verticals": 16, "slashes": 64, "window": 64}}})");
  EXPECT_GT(job.prefill_sparse.sparsity(), 0.3);
  EXPECT_GT(job.prefill_sparse.index_flops, 0);
  EXPECT_EQ(run(tiny_prompt(512), {}, false).prefill_sparse.sparsity(), 0);
}

TEST_F(EngineTest, LogitsThatAreNoNumbersFailEveryVariant) {
  const std::string config = small_config("qwen2");
  load(config);
  const std::vector<Variant> variants = mixed();
  for (const VariantResult& v : run(tiny_prompt(64), variants, false).variants) EXPECT_EQ(v.error, "");
  auto tensors = testing::tiny_tensors(parse_config(config, "test"));
  tensors["model.norm.weight"].bytes.replace(0, 2, "\xC0\x7F");  // NaN in bf16
  testing::write_text(folder_.file("model.safetensors"), testing::safetensors_bytes(tensors));
  engine_ = Engine::load({.folder = folder_.path(), .rope_override = {}}, team_, *threads_);
  for (const VariantResult& v : run(tiny_prompt(64), variants, false).variants) {
    EXPECT_THAT(v.error, HasSubstr("not finite"));
    EXPECT_TRUE(v.ids.empty());
  }
}

TEST_F(EngineTest, AVariantThatFindsNoPageFailsAloneAndFreesItsPages) {
  load(small_config("llama"));
  const auto prompt = tiny_prompt(160);
  const std::vector<Variant> variants(3, variant("{}", 300));
  const JobResult roomy = run(prompt, std::span(variants).first(1), false);
  // Pages of 2 KiB: 120 hold the prompt once; a variant adds up to 12 x 19 of its own.
  engine_ =
      Engine::load({.folder = folder_.path(), .rope_override = {}, .kv_bytes = 500 * 2048}, team_, *threads_);
  const JobResult tight = run(prompt, variants, false);
  int failed = 0;
  for (const VariantResult& v : tight.variants) {
    if (v.error.empty()) {
      EXPECT_EQ(v.ids, roomy.variants[0].ids);
    } else {
      ++failed;
      EXPECT_THAT(v.error, HasSubstr("KV cache is full"));
    }
  }
  EXPECT_GE(failed, 1);
  EXPECT_LE(failed, 2);
  EXPECT_EQ(run(prompt, std::span(variants).first(1), false).variants[0].ids, roomy.variants[0].ids);
}

TEST_F(EngineTest, StopTokensEndAVariant) {
  load(small_config("qwen2"));
  Variant v = variant("{}", 30);
  const auto prompt = tiny_prompt(20);
  const auto ids = run(prompt, std::span(&v, 1), false).variants[0].ids;
  // The first token that has not come before becomes the stop token.
  std::size_t at = 3;
  while (std::find(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(at), ids[at]) !=
         ids.begin() + static_cast<std::ptrdiff_t>(at))
    ++at;
  testing::write_text(folder_.file("generation_config.json"),
                      R"({"eos_token_id": [299999, )" + std::to_string(ids[at]) + "]}");
  engine_ = Engine::load({.folder = folder_.path(), .rope_override = {}}, team_, *threads_);
  EXPECT_THAT(engine_->stop_ids(), ElementsAre(299999, ids[at]));
  v.sampling.ignore_stop = false;
  std::vector<TokenId> streamed;
  const JobResult job = engine_->run({.prompt = prompt,
                                      .prefill = strategy("{}").prefill,
                                      .variants = std::span(&v, 1),
                                      .want_logits = true,
                                      .on_token = [&](std::size_t, TokenId id) { streamed.push_back(id); },
                                      .cancelled = {}});
  EXPECT_TRUE(job.variants[0].stopped);
  EXPECT_EQ(job.variants[0].ids,
            std::vector<TokenId>(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(at)));
  EXPECT_EQ(job.variants[0].logits.size(), at);
  EXPECT_EQ(streamed, job.variants[0].ids);
}

TEST_F(EngineTest, RefusesWhatCannotRun) {
  load(small_config("qwen2"));
  const auto error = [&](const std::vector<TokenId>& prompt, SamplingOptions sampling) -> std::string {
    Variant v = variant("{}", 1);
    v.sampling = sampling;
    try {
      run(prompt, std::span(&v, 1), false);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage);
      return e.what();
    }
    return "ran";
  };
  EXPECT_THAT(error({}, {}), HasSubstr("prompt is empty"));
  EXPECT_THAT(error({1, 300}, {}), HasSubstr("prompt token 1 is 300"));
  EXPECT_THAT(error({-1}, {}), HasSubstr("is -1"));
  EXPECT_THAT(error({1}, {.max_new_tokens = 0}), HasSubstr("max_new_tokens"));
  EXPECT_THAT(error({1}, {.temperature = -1}), HasSubstr("temperature"));
  EXPECT_THAT(error({1}, {.top_p = 0}), HasSubstr("top_p"));
  EXPECT_EQ(error({1}, {}), "ran");
}

TEST_F(EngineTest, CancellingLeavesTheEngineUsable) {
  load(small_config("qwen2"));
  const auto prompt = tiny_prompt(100);
  const auto variants = mixed();
  const JobResult before = run(prompt, variants, false);
  for (const int polls : {0, 2, 5, 9}) {
    int left = polls;
    EXPECT_THROW(engine_->run({.prompt = prompt,
                               .prefill = strategy("{}").prefill,
                               .variants = variants,
                               .on_token = {},
                               .cancelled = [&] { return left-- == 0; }}),
                 Error);
  }
  const JobResult after = run(prompt, variants, false);
  for (std::size_t i = 0; i < variants.size(); ++i) EXPECT_EQ(before.variants[i].ids, after.variants[i].ids);
}

TEST_F(EngineTest, FactsAndFingerprints) {
  load(small_config(
      "qwen2",
      R"("rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048})"));
  const ModelFacts& facts = engine_->facts();
  EXPECT_EQ(facts.family, "qwen2");
  EXPECT_EQ(facts.q_heads, 8);
  EXPECT_THAT(facts.rope, HasSubstr("yarn"));
  EXPECT_EQ(facts.weights_hash.size(), 32u);
  const ModelFacts again = read_model_facts(folder_.path());
  EXPECT_EQ(again.weights_hash, facts.weights_hash);
  EXPECT_EQ(again.parameters, facts.parameters);
  const auto with_override =
      Engine::load({.folder = folder_.path(), .rope_override = R"({"rope_type": "linear", "factor": 4.0})"},
                   team_, *threads_);
  EXPECT_THAT(with_override->facts().rope, HasSubstr("linear"));
}

TEST_F(EngineTest, MissingSurplusAndMisshapenTensorsAreNamed) {
  const std::string config = small_config("qwen2");
  write_tiny_model(folder_.path(), config);
  threads_ = std::make_unique<ThreadPool>(1);
  const auto error_with = [&](const auto& change) -> std::string {
    auto tensors = testing::tiny_tensors(parse_config(config, "test"));
    change(tensors);
    testing::write_text(folder_.file("model.safetensors"), testing::safetensors_bytes(tensors));
    try {
      Engine::load({.folder = folder_.path(), .rope_override = {}}, team_, *threads_);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kUsage);
      EXPECT_THAT(e.what(), HasSubstr("model.safetensors"));
      return e.what();
    }
    return "loaded";
  };
  EXPECT_EQ(error_with([](auto&) {}), "loaded");
  EXPECT_THAT(error_with([](auto& t) { t.erase("model.layers.1.mlp.up_proj.weight"); }),
              HasSubstr("'model.layers.1.mlp.up_proj.weight' is missing"));
  EXPECT_THAT(error_with([](auto& t) { t["model.layers.9.extra"] = t["model.norm.weight"]; }),
              HasSubstr("'model.layers.9.extra' is not part of"));
  EXPECT_THAT(error_with([](auto& t) {
                t["model.layers.0.self_attn.q_proj.weight"].shape = {64, 128};
              }),
              HasSubstr("asks for [128, 64]"));
}

TEST(Sampling, DrawsFromTheTopPMassAndDependsOnTheSeedAlone) {
  const std::vector<float> logits = {0.0f, 2.0f, 1.0f, -5.0f, 2.0f};
  SamplingOptions options{.temperature = 1.0f, .top_p = 1.0f, .seed = 1};
  std::vector<int> counts(5);
  constexpr int kDraws = 20000;
  for (std::uint64_t step = 0; step < kDraws; ++step) {
    const TokenId id = sample_token(logits, options, step);
    EXPECT_EQ(id, sample_token(logits, options, step));
    ++counts[static_cast<std::size_t>(id)];
  }
  double total = 0;
  for (const float l : logits) total += std::exp(l);
  for (std::size_t i = 0; i < 5; ++i) {
    const double p = std::exp(logits[i]) / total;
    EXPECT_NEAR(counts[i] / static_cast<double>(kDraws), p, 4 * std::sqrt(p / kDraws))
        << i;  // four standard errors
  }
  options.top_p = 0.7f;  // the two best hold 0.78 of the mass
  std::set<TokenId> seen;
  for (std::uint64_t step = 0; step < 500; ++step) seen.insert(sample_token(logits, options, step));
  EXPECT_THAT(seen, ElementsAre(1, 4));
  options.top_p = 1e-6f;
  EXPECT_EQ(sample_token(logits, options, 0), 1) << "ties go to the lower id";
  EXPECT_THROW(sample_token(std::vector<float>{0.0f, NAN}, options, 0), Error);
}

}  // namespace
}  // namespace lacuna
