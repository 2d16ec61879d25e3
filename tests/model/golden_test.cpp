// Our logits and greedy tokens against transformers', for every family; run alone and by 2 and 4 ranks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <cmath>
#include <optional>

#include "core/file.h"
#include "core/json.h"
#include "core/npy.h"
#include "model/engine.h"
#include "model/mpi.h"
#include "model/tensor_parallel.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using testing::TemporaryFolder;
using testing::tiny_prompt;
using testing::write_tiny_model;

const std::string kGolden = "tests/model/golden/";
const std::vector<int> kLengths = {1, 7, 64, 257};
constexpr double kTolerance = 1e-4;  // the requirement; what is measured is about 1e-6

class Golden : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size > 1)
      team_ = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD);
    else
      team_ = std::make_unique<SelfCommunicator>();
  }
  std::unique_ptr<Communicator> team_;
  ThreadPool threads_{2};
};

/// Largest difference relative to the largest logit of the row.
double row_error(std::span<const float> ours, std::span<const float> theirs) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    if (std::isnan(ours[i])) return INFINITY;
    difference =
        std::max(difference, std::abs(static_cast<double>(ours[i]) - static_cast<double>(theirs[i])));
    size = std::max(size, std::abs(static_cast<double>(theirs[i])));
  }
  return difference / size;
}

TEST_P(Golden, LogitsAndGreedyTokensEqualTheReference) {
  const std::string name = GetParam();
  const std::string config_text = read_file(kGolden + name + "/config.json");
  const ModelConfig config = parse_config(config_text, name);
  if (!degree_works(config.q_heads, config.kv_heads, config.mlp, team_->size()))
    GTEST_SKIP() << "this degree does not work";
  TemporaryFolder folder("golden_" + name + "_" + std::to_string(team_->rank()));
  write_tiny_model(folder.path(), config_text);
  const auto engine = Engine::load({.folder = folder.path(), .rope_override = {}}, *team_, threads_);
  const Tensor logits = read_npy(kGolden + name + "/logits.npy");  // [prompts, 2, vocab]
  const Tensor tokens = read_npy(kGolden + name + "/tokens.npy");  // [prompts, new tokens]
  const auto vocab = static_cast<std::size_t>(logits.shape()[2]),
             steps = static_cast<std::size_t>(tokens.shape()[1]);
  const StrategySpec dense = parse_strategy(Json::object(), "test");
  for (std::size_t p = 0; p < kLengths.size(); ++p) {
    SCOPED_TRACE("prompt of " + std::to_string(kLengths[p]) + " tokens");
    const auto prompt = tiny_prompt(kLengths[p]);
    const Variant variant{.evict = dense.evict,
                          .decode = dense.decode,
                          .sampling = {.max_new_tokens = static_cast<int>(steps), .ignore_stop = true}};
    const JobResult job = engine->run({.prompt = prompt,
                                       .prefill = dense.prefill,
                                       .variants = std::span(&variant, 1),
                                       .want_logits = true,
                                       .on_token = {},
                                       .cancelled = {}});
    ASSERT_EQ(job.variants[0].error, "");
    const float* expected = logits.as<float>() + p * 2 * vocab;
    EXPECT_LT(row_error(job.prompt_logits, std::span(expected, vocab)), kTolerance);
    const std::span<const std::int32_t> expected_tokens(tokens.as<std::int32_t>() + p * steps, steps);
    ASSERT_THAT(job.variants[0].ids, ::testing::ElementsAreArray(expected_tokens));
    ASSERT_EQ(job.variants[0].logits.size(), steps);
    EXPECT_LT(row_error(job.variants[0].logits.back(), std::span(expected + vocab, vocab)), kTolerance);
  }
}

/// The models that the CUDA engine is held against, in float32: their weights are what the reference had.
TEST_P(Golden, TheBfloat16ModelsGiveTheReferencesFloat32Logits) {
  const std::string golden = kGolden + "bf16/" + GetParam();
  const std::string config_text = read_file(golden + "/config.json");
  const ModelConfig config = parse_config(config_text, GetParam());
  if (!degree_works(config.q_heads, config.kv_heads, config.mlp, team_->size()))
    GTEST_SKIP() << "this degree does not work";
  TemporaryFolder folder("bf16_" + GetParam() + "_" + std::to_string(team_->rank()));
  write_tiny_model(folder.path(), config_text);
  const auto engine = Engine::load({.folder = folder.path(), .rope_override = {}}, *team_, threads_);
  const Tensor logits = read_npy(golden + "/logits.npy");  // [float32 or bfloat16, prompt, vocab]
  const auto vocab = static_cast<std::size_t>(logits.shape()[2]);
  const StrategySpec dense = parse_strategy(Json::object(), "test");
  const Variant variant{.evict = dense.evict, .decode = dense.decode, .sampling = {.max_new_tokens = 1}};
  for (std::size_t p = 0; p < kLengths.size(); ++p) {
    const auto prompt = tiny_prompt(kLengths[p]);
    const JobResult job = engine->run({.prompt = prompt,
                                       .prefill = dense.prefill,
                                       .variants = std::span(&variant, 1),
                                       .want_logits = true,
                                       .on_token = {},
                                       .cancelled = {}});
    EXPECT_LT(row_error(job.prompt_logits, std::span(logits.as<float>() + p * vocab, vocab)), kTolerance)
        << kLengths[p] << " tokens";
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Golden,
                         ::testing::Values("qwen2", "qwen2_yarn", "qwen2_mixed", "llama3", "llama_linear",
                                           "qwen3", "qwen3_yarn", "gemma3", "gemma3_nested", "mistral"),
                         [](const auto& param) { return param.param; });

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const lacuna::MpiSession session;
  return RUN_ALL_TESTS();
}
