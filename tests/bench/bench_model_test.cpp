// What `lacuna bench` makes and measures: random models of every family that the engine loads and runs, and a
// profile that predictions accept.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/json.h"
#include "model/engine.h"
#include "runner/bench/bench.h"
#include "sweeps/profile.h"

namespace lacuna::bench {
namespace {

class Folder {
 public:
  Folder()
      : path_((std::filesystem::temp_directory_path() / fmt::format("lacuna_bench_test_{}", getpid()))
                  .string()) {
    std::filesystem::remove_all(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

ModelShape tiny(int layers = 2) {
  return {
      .layers = layers, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .hidden = 96, .mlp = 160, .vocab = 300};
}

class RandomModel : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(RandomModel, LoadsRunsAndIsFinite) {
  const auto [name, family] = GetParam();
  ModelShape shape = tiny(7);  // Gemma 3: the sixth layer is the first without a window
  if (std::string_view(family) == "gemma3") {
    shape.sliding_layers = 6;
    shape.sliding_window = 32;
  }
  const Folder folder;
  ThreadPool threads(2);
  write_random_model(folder.path(), random_model_config(name, shape), threads);
  SelfCommunicator self;
  const auto engine = Engine::load({.folder = folder.path(), .rope_override = {}}, self, threads);
  const ModelFacts& facts = engine->facts();
  EXPECT_EQ(facts.family, family);
  EXPECT_EQ(facts.layers, shape.layers);
  EXPECT_EQ(facts.q_heads, shape.q_heads);
  EXPECT_EQ(facts.kv_heads, shape.kv_heads);
  EXPECT_EQ(facts.head_dim, shape.head_dim);
  EXPECT_EQ(facts.mlp, shape.mlp);
  EXPECT_EQ(facts.vocab, shape.vocab);
  EXPECT_EQ(facts.sliding_layers, shape.sliding_layers);
  EXPECT_EQ(facts.dtype, "bfloat16");

  const StrategySpec dense = parse_strategy(Json::object(), "test");
  std::vector<TokenId> prompt;
  for (int i = 0; i < 90; ++i) prompt.push_back(i * 7 % shape.vocab);
  const std::vector<Variant> variants(
      2,
      {.evict = dense.evict, .decode = dense.decode, .sampling = {.max_new_tokens = 3, .ignore_stop = true}});
  const JobResult job = engine->run({.prompt = prompt,
                                     .prefill = dense.prefill,
                                     .variants = variants,
                                     .want_logits = true,
                                     .on_token = {},
                                     .cancelled = {}});
  float largest = 0, sum = 0;
  for (const float logit : job.prompt_logits) {
    ASSERT_TRUE(std::isfinite(logit));
    largest = std::max(largest, std::abs(logit));
    sum += logit * logit;
  }
  // Not all the same and not exploding: a model whose activations vanish or blow up would not be timed
  // fairly.
  EXPECT_GT(sum / static_cast<float>(job.prompt_logits.size()), 0.01f);
  EXPECT_LT(largest, 1000.0f);
  EXPECT_EQ(job.variants[0].ids.size(), 3U);
}
INSTANTIATE_TEST_SUITE_P(Families, RandomModel,
                         testing::Values(std::pair("small", "qwen2"), std::pair("Llama-3.1-8B", "llama"),
                                         std::pair("Gemma-3-4B", "gemma3")),
                         [](const auto& test) { return std::string(test.param.second); });

TEST(RandomModel, SameWeightsEveryTime) {
  ThreadPool one(1), two(2);
  Folder folder;
  const std::string config = random_model_config("small", tiny());
  const auto logits = [&](ThreadPool& threads) {
    std::filesystem::remove_all(folder.path());
    write_random_model(folder.path(), config, threads);
    SelfCommunicator self;
    const std::vector<TokenId> prompt{1, 2, 3, 4};
    return Engine::load({.folder = folder.path(), .rope_override = {}}, self, two)
        ->run({.prompt = prompt,
               .prefill = parse_strategy(Json::object(), "test").prefill,
               .variants = {},
               .want_logits = true,
               .on_token = {},
               .cancelled = {}})
        .prompt_logits;
  };
  const auto first = logits(one);
  EXPECT_EQ(first, logits(two));
}

TEST(Shapes, AreFoundInAnyCaseAndMisspeltOnesAreNamed) {
  EXPECT_EQ(find_shape("qwen2.5-7b").layers, 28);
  EXPECT_EQ(find_shape("small").hidden, 512);
  try {
    find_shape("qwen2.5-7");
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_THAT(e.what(), testing::HasSubstr("Qwen2.5-7B"));
  }
}

/// All three parts on a tiny model: rows that make sense, and everything a prediction needs.
TEST(Bench, MeasuresEveryRateOfAProfile) {
  Options options;
  options.shape_name = "small";
  options.shape = tiny();
  options.tokens = {256, 512};
  options.batches = {1, 3};
  options.shared_tokens = 256;
  options.new_tokens = 2;
  options.quick = true;
  ThreadPool threads(1);
  std::vector<Row> rows;
  Session session{.options = options,
                  .threads = threads,
                  .ceilings = {.flops_per_s = 1e14, .bytes_per_s = 1e13},
                  .profile = {},
                  .wants_profile = true,
                  .on_row = [&](const Row& row) { rows.push_back(row); }};
  bench_attention(session);
  Model model(session, options.shape);
  bench_prefill(session, model);
  bench_decode(session, model);

  const auto find = [&](const std::string& part, const std::string& key, std::int64_t tokens) {
    const auto it = std::find_if(rows.begin(), rows.end(), [&](const Row& r) {
      return r.part == part && r.key == key && r.tokens == tokens;
    });
    EXPECT_NE(it, rows.end()) << part << " " << key << " " << tokens;
    return it != rows.end() ? *it : Row{};
  };
  for (const Row& row : rows) {
    EXPECT_GT(row.seconds, 0) << row.what;
    EXPECT_LE(row.floor_seconds, row.seconds) << row.what;  // no machine of today has these ceilings
  }
  // Visited cells of dense attention: 4 heads, 512 * 513 / 2 pairs.
  EXPECT_DOUBLE_EQ(find("attention", "dense", 512).flops, 4.0 * 64 * 4 * 512 * 513 / 2);
  const Row sparse = find("attention", "block_sparse_16", 512);
  EXPECT_DOUBLE_EQ(sparse.flops, 4.0 * 64 * 4 * 512 * 513 / 2 * (1 - sparse.sparsity));
  EXPECT_GT(sparse.sparsity, 0.1);
  // One step reads the keys and values of all pages once, 2 kv heads of 64 channels in float32.
  EXPECT_DOUBLE_EQ(find("attention", "decode_dense", 512).bytes, 512 * 2 * 64 * 2 * 4.0);
  EXPECT_EQ(find("decode", "shared_prefill", 256).batch, 31);
  EXPECT_GT(find("prefill", "vertical_slash_90", 512).sparsity, 0.2);

  const HardwareProfile p =
      parse_profile(profile_text(session.profile), "measured");  // complete, or it throws
  for (const char* method : {"block_sparse", "vertical_slash", "flexprefill"}) {
    EXPECT_GT(p.attention_rate(method), 0) << method;
    EXPECT_TRUE(p.sparse_attention_flops_per_s.contains(method)) << method;
    EXPECT_TRUE(p.index_flops_per_s.contains(method)) << method;
  }
  for (const char* method : {"snapkv", "ada_snapkv", "quest"})
    EXPECT_TRUE(p.index_flops_per_s.contains(method)) << method;
  EXPECT_GT(p.kv_bytes_per_s, 0);
  EXPECT_GT(p.load_bytes_per_s, 0);
}

}  // namespace
}  // namespace lacuna::bench
