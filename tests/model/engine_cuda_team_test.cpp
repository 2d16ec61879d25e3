// Tensor parallelism on GPUs: 2 and 4 ranks give one rank's tokens on the shipped models. Ranks share a GPU
// where there are fewer GPUs than ranks; sums then go through host memory.
#include <gtest/gtest.h>
#include <mpi.h>

#include "core/cuda.h"
#include "core/error.h"
#include "model/team_communicator.h"
#include "tests/model/gpu_common.h"
#include "tests/model/gpu_team_main.h"

namespace lacuna {
namespace {

using testing::compare_runs;
using testing::kMini;
using testing::Parting;
using testing::run_job;
using testing::task_prompt;
using testing::variant;

class CudaTeam : public ::testing::TestWithParam<const char*> {};

TEST_P(CudaTeam, GivesOneRanksTokens) {
  const auto team = make_team_communicator(MPI_COMM_WORLD, Device::kCuda);
  const std::string folder = kMini + GetParam();
  SelfCommunicator self;
  ThreadPool threads(2);
  constexpr std::int64_t kCache = std::int64_t{512} << 20;  // several ranks share the device
  const EngineOptions options{
      .folder = folder, .device = Device::kCuda, .rope_override = {}, .kv_bytes = kCache};
  const auto one = Engine::load(options, self, threads);
  const auto many = Engine::load(options, *team, threads);

  std::vector<Variant> variants;
  for (const char* json :
       {"{}", R"({"evict": {"snapkv": {"capacity": 512}}})",
        R"({"evict": {"ada_snapkv": {"capacity": 512}}})", R"({"decode": {"quest": {"budget": 512}}})"})
    variants.push_back(variant(json, 12));
  int compared = 0, parted = 0;
  for (const char* task : {"ruler_niah", "story_retrieval"}) {
    for (const std::uint64_t index : {0, 1, 2}) {
      const auto prompt = task_prompt(folder, task, 1000, index);
      const JobResult expected = run_job(*one, prompt, variants), actual = run_job(*many, prompt, variants);
      for (std::size_t v = 0; v < variants.size(); ++v) {
        ASSERT_EQ(actual.variants[v].error, "");
        const Parting parting = compare_runs(expected, actual, v, v);
        ++compared;
        parted += parting.parts;
        if (team->rank() == 0 && (parting.parts || v == 0))
          std::printf("%s, %s %d, variant %zu, %d ranks over %s: %s\n", GetParam(), task,
                      static_cast<int>(index), v, team->size(), team->kind().c_str(),
                      parting.to_string().c_str());
        // Sums of rounded parts are rounded differently; a wrong shard gives differences of about 1.
        EXPECT_LT(parting.noise, 0.1) << task << ' ' << index << ", variant " << v;
        if (v == 0) {
          EXPECT_FALSE(parting.parts) << task << ' ' << index << ": " << parting.to_string();
        }
      }
      // The same bits on every rank.
      std::vector<float> logits = actual.prompt_logits;
      team->broadcast(logits.data(), logits.size() * sizeof(float), 0);
      EXPECT_EQ(logits, actual.prompt_logits);
    }
  }
  // A token at the edge of a selection may tip a sparse variant; it must stay the exception.
  EXPECT_LE(parted * 10, compared) << parted << " of " << compared << " variants part from one rank's tokens";
}

INSTANTIATE_TEST_SUITE_P(Shipped, CudaTeam, ::testing::Values("nano", "micro"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) { return lacuna::testing::run_gpu_team_tests(argc, argv); }
