// The CUDA engine against transformers' logits, and against itself on the shipped models.
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/file.h"
#include "core/npy.h"
#include "model/engine.h"
#include "tests/model/gpu_common.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using testing::compare_runs;
using testing::Difference;
using testing::difference;
using testing::kMini;
using testing::run_job;
using testing::task_prompt;
using testing::TemporaryFolder;
using testing::tiny_prompt;
using testing::variant;

std::unique_ptr<Engine> load(const std::string& folder, std::int64_t kv_bytes = 0) {
  static SelfCommunicator alone;
  static ThreadPool threads(4);
  return Engine::load({.folder = folder, .device = Device::kCuda, .rope_override = {}, .kv_bytes = kv_bytes},
                      alone, threads);
}

class Bf16Golden : public ::testing::TestWithParam<std::string> {};

/// Ours may be as far from float32 as twice what transformers' own bfloat16 is, over all prompts of a family.
TEST_P(Bf16Golden, LogitsAreAsGoodAsTheReferencesOwn) {
  const std::string golden = "tests/model/golden/bf16/" + GetParam();
  TemporaryFolder folder("bf16_" + GetParam());
  testing::write_tiny_model(folder.path(), read_file(golden + "/config.json"));
  const auto engine = load(folder.path());
  const Tensor logits = read_npy(golden + "/logits.npy");  // [float32 or bfloat16, prompt, vocab]
  const std::vector<int> lengths = {1, 7, 64, 257};
  const auto vocab = static_cast<std::size_t>(logits.shape()[2]), all = lengths.size() * vocab;
  const std::span<const float> exact(logits.as<float>(), all), rounded(logits.as<float>() + all, all);
  const Difference allowed = difference(rounded, exact);

  std::vector<float> ours;
  for (const int length : lengths) {
    const std::vector<Variant> one = {variant("{}", 1)};
    const JobResult job = run_job(*engine, tiny_prompt(length), one);
    ASSERT_EQ(job.variants[0].error, "");
    const std::size_t at = ours.size();
    ours.insert(ours.end(), job.prompt_logits.begin(), job.prompt_logits.end());
    const Difference own = difference(std::span(ours).subspan(at), exact.subspan(at, vocab));
    std::printf("%s, %d tokens: ours is off by %.4f (rms %.4f), the reference by %.4f at most\n",
                GetParam().c_str(), length, own.largest, own.rms, allowed.largest);
  }
  const Difference actual = difference(ours, exact);
  EXPECT_LE(actual.largest, 2 * allowed.largest)
      << "logit " << actual.at % vocab << " of prompt " << lengths[actual.at / vocab] << ": got "
      << ours[actual.at] << ", float32 " << exact[actual.at] << ", reference in bfloat16 "
      << rounded[actual.at];
  EXPECT_LE(actual.rms, 2 * allowed.rms);
}

/// What decoding computes for a token is what prefilling the longer prompt computes.
TEST_P(Bf16Golden, DecodingContinuesWhatPrefillComputes) {
  const std::string golden = "tests/model/golden/bf16/" + GetParam();
  TemporaryFolder folder("bf16_decode_" + GetParam());
  testing::write_tiny_model(folder.path(), read_file(golden + "/config.json"));
  const auto engine = load(folder.path());
  const Tensor logits = read_npy(golden + "/logits.npy");
  const auto all = static_cast<std::size_t>(logits.shape()[1] * logits.shape()[2]);
  const Difference loss =
      difference(std::span(logits.as<float>() + all, all), std::span(logits.as<float>(), all));
  for (const int length : {5, 64, 120}) {
    SCOPED_TRACE(length);
    std::vector<TokenId> prompt = tiny_prompt(length);
    const std::vector<Variant> eight = {variant("{}", 8)};
    const JobResult decoded = run_job(*engine, prompt, eight);
    prompt.insert(prompt.end(), decoded.variants[0].ids.begin(), decoded.variants[0].ids.end());
    const JobResult prefilled = run_job(*engine, prompt, std::span(eight).first(1));
    const Difference d = difference(decoded.variants[0].logits.back(), prefilled.prompt_logits);
    EXPECT_LE(d.largest, 2 * loss.largest)
        << "logit " << d.at << ": decoded " << decoded.variants[0].logits.back()[d.at] << ", prefilled "
        << prefilled.prompt_logits[d.at];
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Bf16Golden,
                         ::testing::Values("qwen2", "qwen2_yarn", "qwen2_mixed", "llama3", "llama_linear",
                                           "qwen3", "qwen3_yarn", "gemma3", "gemma3_nested", "mistral"),
                         [](const auto& param) { return param.param; });

class MiniModel : public ::testing::TestWithParam<const char*> {
 protected:
  std::string folder() const { return kMini + GetParam(); }
};

const std::vector<std::string> kDecodeVariants = {
    "{}",
    R"({"evict": {"snapkv": {"capacity": 256}}})",
    R"({"evict": {"ada_snapkv": {"capacity": 256}}})",
    R"({"decode": {"quest": {"budget": 128}}})",
    R"({"evict": {"snapkv": {"capacity": 512}}, "decode": {"quest": {"budget": 128}}})",
    R"({"decode": {"streaming": {"window": 128, "sinks": 4}}})"};

TEST_P(MiniModel, AFreshEngineGivesTheSameBits) {
  const auto prompt = task_prompt(folder(), "ruler_niah", 2048, 0);
  std::vector<Variant> variants;
  for (const auto& json : kDecodeVariants) variants.push_back(variant(json, 16));
  const JobResult first = run_job(*load(folder()), prompt, variants);
  const auto engine = load(folder());
  (void)run_job(*engine, task_prompt(folder(), "ruler_niah", 700, 1), variants);
  const JobResult second = run_job(*engine, prompt, variants);
  EXPECT_EQ(first.prompt_logits, second.prompt_logits);
  for (std::size_t v = 0; v < variants.size(); ++v) {
    EXPECT_EQ(first.variants[v].error, "");
    EXPECT_EQ(first.variants[v].ids, second.variants[v].ids) << kDecodeVariants[v];
    EXPECT_EQ(first.variants[v].logits, second.variants[v].logits)
        << kDecodeVariants[v] << ": " << compare_runs(first, second, v, v).to_string();
  }
}

TEST_P(MiniModel, VariantsDecodeTogetherAsOneByOne) {
  const auto engine = load(folder());
  for (const char* task : {"ruler_niah", "story_retrieval"}) {
    const auto prompt = task_prompt(folder(), task, 1500, 2);
    std::vector<Variant> variants;
    for (const auto& json : kDecodeVariants) variants.push_back(variant(json, 24));
    const JobResult together = run_job(*engine, prompt, variants);
    for (std::size_t v = 0; v < variants.size(); ++v) {
      const JobResult alone = run_job(*engine, prompt, std::span(&variants[v], 1));
      EXPECT_EQ(together.variants[v].error, "");
      EXPECT_EQ(together.variants[v].ids, alone.variants[0].ids)
          << task << ' ' << kDecodeVariants[v] << ": " << compare_runs(alone, together, 0, v).to_string();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shipped, MiniModel, ::testing::Values("nano", "micro"),
                         [](const auto& param) { return std::string(param.param); });

TEST(CudaEngine, AJobThatDoesNotFitFailsAndTheNextOneWorks) {
  const auto engine = load(kMini + "nano", std::int64_t{2} << 20);
  const std::vector<Variant> one = {variant("{}", 4)};
  try {
    (void)run_job(*engine, task_prompt(kMini + "nano", "ruler_niah", 2000, 0), one);
    FAIL() << "2000 tokens do not fit into 2 MiB";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResource) << error.what();
  }
  const JobResult small = run_job(*engine, task_prompt(kMini + "nano", "ruler_niah", 400, 0), one);
  EXPECT_EQ(small.variants[0].error, "");
  EXPECT_EQ(small.variants[0].ids.size(), 4u);
}

}  // namespace
}  // namespace lacuna
