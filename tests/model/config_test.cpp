#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/npy.h"
#include "model/memory_plan.h"
#include "model/tensor_parallel.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::small_config;

/// The message with which a config is refused.
std::string refusal(const std::string& config) {
  try {
    parse_config(config, "config.json");
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    return e.what();
  }
  return "accepted";
}

TEST(Config, RefusesByNameWhatItCannotDo) {
  const struct {
    const char *model, *more, *expected;
  } cases[] = {
      {"qwen2", R"("hidden_act": "relu")", "'hidden_act' is 'relu'"},
      {"qwen2", R"("rope_scaling": {"type": "dynamic", "factor": 2.0})", "unknown rope_type 'dynamic'"},
      {"qwen2", R"("rope_scaling": {"type": "longrope"})", "unknown rope_type 'longrope'"},
      {"llama", R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0})", "'low_freq_factor' is missing"},
      {"llama", R"("rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 1})",
       "'surprise' is not supported"},
      {"llama", R"("rope_scaling": {"rope_type": "yarn", "factor": -1.0})", "'factor' is -1"},
      {"llama", R"("partial_rotary_factor": 0.5)", "partial_rotary_factor"},
      {"qwen2", R"("attention_bias": true)", "attention_bias"},
      {"qwen2", R"("quantization_config": {"bits": 4})", "quantization_config"},
      {"qwen2", R"("layer_types": ["full_attention", "linear_attention", "full_attention"])",
       "linear_attention"},
      {"qwen2", R"("layer_types": ["full_attention"])", "must list 3 layers"},
      {"qwen2", R"("layer_types": ["full_attention", "full_attention", "sliding_attention"])",
       "'sliding_window' is not set"},
      {"qwen2", R"("final_logit_softcapping": 30.0)", "only Gemma 3"},
      {"llama", R"("residual_multiplier": 0.2)", "'residual_multiplier' is not known"},
      {"gemma3_text", R"("use_bidirectional_attention": true)", "use_bidirectional_attention"},
      {"mixtral", "", "unknown model_type 'mixtral'"},
      {"qwen2_moe", "", "unknown model_type 'qwen2_moe'"},
  };
  for (const auto& c : cases) EXPECT_THAT(refusal(small_config(c.model, c.more)), HasSubstr(c.expected));
}

TEST(Config, RefusesBrokenSizes) {
  const auto with = [](const char* key, const char* value) {
    Json json = parse_json(small_config("llama"), "test");
    json[key] = Json::parse(value);
    return json.dump();
  };
  EXPECT_THAT(refusal(with("head_dim", "12")), HasSubstr("multiples of 8"));
  EXPECT_THAT(refusal(with("head_dim", "512")), HasSubstr("multiples of 8 up to 256"));
  EXPECT_THAT(refusal(with("num_key_value_heads", "3")), HasSubstr("not a multiple"));
  EXPECT_THAT(refusal(with("num_hidden_layers", "0")), HasSubstr("'num_hidden_layers' is 0"));
  EXPECT_THAT(refusal(with("hidden_size", "\"big\"")), HasSubstr("hidden_size"));
  EXPECT_THAT(refusal(with("vocab_size", "99999999999")), HasSubstr("vocab_size"));
  EXPECT_THAT(refusal(with("rms_norm_eps", "-1")), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(refusal(with("torch_dtype", "\"int8\"")), HasSubstr("int8"));
  EXPECT_THAT(refusal(with("eos_token_id", "\"x\"")), HasSubstr("eos_token_id"));
  EXPECT_THAT(refusal("[1, 2]"), HasSubstr("expected an object"));
  EXPECT_THAT(refusal("{"), HasSubstr("config.json"));
}

TEST(Config, PublishedShapesGiveThePublishedSizes) {
  // Qwen2.5-7B-Instruct: 7.62 billion parameters; Gemma-3-4b-it's nested config leaves most sizes to the
  // defaults.
  const auto qwen = parse_config(
      R"({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
      "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
      "sliding_window": 131072, "use_sliding_window": false, "max_window_layers": 28, "torch_dtype": "bfloat16", "eos_token_id": 151645})",
      "qwen");
  EXPECT_EQ(qwen.parameters(), 7615616512);
  EXPECT_EQ(qwen.head_dim, 128);
  EXPECT_EQ(qwen.sliding_layers(), 0);
  EXPECT_THAT(qwen.stop_ids, ElementsAre(151645));
  const auto gemma = parse_config(
      R"({"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eos_token_id": [1, 106],
      "model_type": "gemma3", "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
      "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
      "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152}})",
      "gemma");
  EXPECT_EQ(gemma.q_heads, 8);
  EXPECT_EQ(gemma.kv_heads, 4);
  EXPECT_EQ(gemma.head_dim, 256);
  EXPECT_EQ(gemma.sliding_layers(), 29);  // 5 of 6 layers, layers 6, 12, ... are global
  EXPECT_EQ(gemma.rope.theta, 1e6);
  EXPECT_EQ(gemma.rope.factor, 8);
  EXPECT_EQ(gemma.local_rope.theta, 1e4);
  EXPECT_EQ(gemma.local_rope.factor, 1);
  EXPECT_TRUE(gemma.tied_embeddings);
  EXPECT_EQ(gemma.parameters(), 3880263168);  // the text part of gemma-3-4b
}

TEST(Config, OverridesRopeAsThePaperDoes) {
  auto config = parse_config(small_config("qwen2", R"("rope_theta": 1000000.0)"), "test");
  override_rope(config,
                R"({"rope_type": "yarn", "factor": 3.9375, "original_max_position_embeddings": 32768})");
  EXPECT_EQ(config.rope.type, RopeType::kYarn);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.factor, 3.9375);
  EXPECT_NEAR(config.rope.attention_factor, 0.1 * std::log(3.9375) + 1, 1e-12);
  EXPECT_THROW(override_rope(config, R"({"rope_type": "yarn", "facto": 2})"), Error);
}

TEST(Config, DegreesThatWorkAreNamed) {
  const auto config = parse_config(small_config("llama"), "test");  // 8 query heads, 4 kv heads, MLP 96
  EXPECT_THAT(working_degrees(8, 4, 96), ElementsAre(1, 2, 4, 8));
  try {
    check_degree(config, 3, "MODEL");
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("MODEL: 3 ranks"));
    EXPECT_THAT(e.what(), HasSubstr("1, 2, 4, 8"));
  }
  const Shard shard = make_shard(config, 8, 5);
  EXPECT_EQ(shard.kv_heads, 1);
  EXPECT_EQ(shard.kv_head_begin, 2);
  EXPECT_EQ(shard.q_head_begin, 5);
}

ModelFacts make_shape(int layers, int q_heads, int kv_heads, int head_dim, int hidden, int mlp, int vocab) {
  ModelFacts facts;
  facts.layers = layers;
  facts.q_heads = q_heads;
  facts.kv_heads = kv_heads;
  facts.head_dim = head_dim;
  facts.hidden = hidden;
  facts.mlp = mlp;
  facts.vocab = vocab;
  facts.dtype = "bfloat16";
  return facts;
}

TEST(MemoryPlan, CountsWhatTheShapesSay) {
  ModelFacts facts = make_shape(28, 28, 4, 128, 3584, 18944, 152064);
  const MemoryPlan plan = plan_memory(facts, Device::kCuda, 1, dense_job(131072, 1024, 1));
  EXPECT_NEAR(static_cast<double>(plan.weights), 2 * 7.6156e9, 2e6);
  // 2 (K, V) * 28 layers * 4 heads * 128 channels * 2 bytes = 57344 bytes per token, in pieces of 32 MiB. The
  // 1024th token is not read again, and the page that it would begin is not needed.
  constexpr std::int64_t kPiece = std::int64_t{32} << 20;
  EXPECT_EQ(plan.kv_cache, (57344 * std::int64_t{131072 + 1024} + kPiece - 1) / kPiece * kPiece);
  EXPECT_EQ(plan_memory(facts, Device::kCpu, 1, dense_job(131072, 1025, 3)).kv_cache,
            2 * 57344 * std::int64_t{131072 + 3 * 1024})
      << "one prompt, and what each variant writes";
  EXPECT_EQ(plan_memory(facts, Device::kCpu, 1, dense_job(131070, 1025, 3)).kv_cache,
            2 * 57344 * std::int64_t{131056 + 3 * (16 + 1024)})
      << "a page that is not full is everybody's own";
  EXPECT_EQ(plan_memory(facts, Device::kCuda, 1, {.tokens = 131072, .prefill = {}, .variants = {}}).kv_cache,
            0)
      << "a prefill alone stores nothing";
  const MemoryPlan half = plan_memory(facts, Device::kCuda, 2, dense_job(131072, 1024, 1));
  EXPECT_EQ(half.kv_cache * 2, plan.kv_cache);
  const ModelFacts eight = make_shape(28, 32, 4, 128, 3584, 18944, 152064);
  EXPECT_EQ(plan_memory(eight, Device::kCpu, 8, dense_job(1024, 16, 1)).kv_cache * 4,
            plan_memory(eight, Device::kCpu, 1, dense_job(1024, 16, 1)).kv_cache)
      << "kv heads are replicated, not cut";
  EXPECT_THROW(plan_memory(facts, Device::kCuda, 3, dense_job(1024, 16, 1)), Error);
}

class RopeTables : public ::testing::TestWithParam<const char*> {};

TEST_P(RopeTables, EqualTheReference) {
  const std::string base = std::string("tests/model/golden/rope_") + GetParam();
  const Json given = read_json_file(base + ".json");
  const int head_dim = given["head_dim"].get<int>();
  const RopeConfig rope = parse_rope(given["rope"], 10000.0, 131072, "test");
  const Tensor table = read_npy(base + ".npy");
  const auto half = static_cast<std::size_t>(head_dim / 2);
  const auto frequencies = inverse_frequencies(rope, head_dim);
  ASSERT_EQ(frequencies.size(), half);
  const float* expected = table.as<float>();
  for (std::size_t i = 0; i < half; ++i)
    EXPECT_NEAR(frequencies[i] / expected[i], 1.0, 2.5e-7) << "frequency " << i;

  constexpr std::int64_t kPositions[] = {0, 1, 2, 1000, 32767, 32768, 32769, 50000, 65535, 100003, 131071};
  const std::size_t count = std::size(kPositions);
  std::vector<float> cos(half), sin(half);
  for (std::size_t p = 0; p < count; ++p) {
    fill_rope_rows(frequencies, rope.attention_factor, kPositions[p], 1, cos.data(), sin.data());
    for (std::size_t i = 0; i < half; ++i) {
      // An angle of position * frequency carries the rounding of the frequency (2 ulp) and of the product (1
      // ulp).
      const double angle = static_cast<double>(kPositions[p]) * static_cast<double>(expected[i]);
      const double tolerance = rope.attention_factor * (3 * 6e-8 * angle + 2.5e-7);
      EXPECT_NEAR(cos[i], expected[(1 + p) * half + i], tolerance)
          << "position " << kPositions[p] << ", channel " << i;
      EXPECT_NEAR(sin[i], expected[(1 + count + p) * half + i], tolerance)
          << "position " << kPositions[p] << ", channel " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rope, RopeTables,
                         ::testing::Values("qwen_yarn", "mscale_yarn", "llama31", "linear", "default"));

}  // namespace
}  // namespace lacuna
