// A rank that runs out of memory alone: every rank of the team has the same error, none waits for it, and the
// next job runs. With the CPU engine, and with the CUDA engine on a GPU or in the emulator (where
// LACUNA_TEAM_MEMORY_CUDA is defined).
#include <gtest/gtest.h>
#include <mpi.h>

#include "core/error.h"
#include "core/json.h"
#include "core/memory_use.h"
#include "model/engine.h"
#include "model/mpi.h"
#include "model/tensor_parallel.h"
#include "tests/model/tiny_model.h"
#ifdef LACUNA_TEAM_MEMORY_CUDA
#include "model/team_communicator.h"
#endif

namespace lacuna {
namespace {

using testing::small_config;
using testing::TemporaryFolder;
using testing::tiny_prompt;
using testing::write_tiny_model;

#ifdef LACUNA_TEAM_MEMORY_CUDA
constexpr Device kDevice = Device::kCuda;
constexpr std::int64_t kElementBytes = 2;
std::unique_ptr<Communicator> make_team() { return make_team_communicator(MPI_COMM_WORLD, kDevice); }
#else
constexpr Device kDevice = Device::kCpu;
constexpr std::int64_t kElementBytes = 4;
std::unique_ptr<Communicator> make_team() { return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD); }
#endif
constexpr Buffer::Kind kMemory = kDevice == Device::kCuda ? Buffer::Kind::kDevice : Buffer::Kind::kHost;
constexpr int kLayers = 3, kKvHeads = 4, kHeadDim = 64;
constexpr std::int64_t kPageBytes = 2 * kPageTokens * kHeadDim * kElementBytes;

Variant variant(const std::string& json, int new_tokens) {
  const StrategySpec s = parse_strategy(parse_json(json, "test"), "test");
  return {
      .evict = s.evict, .decode = s.decode, .sampling = {.max_new_tokens = new_tokens, .ignore_stop = true}};
}

class TinyTeamMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    team_ = make_team();
    if (team_->size() > kKvHeads) GTEST_SKIP() << "one kv head per rank at least";
    folder_ = std::make_unique<TemporaryFolder>("team_memory_" + std::to_string(team_->rank()));
    write_tiny_model(
        folder_->path(),
        small_config("llama", R"("head_dim": 64, "hidden_size": 128, "intermediate_size": 1024)"));
  }
  void TearDown() override { limit_buffers(kMemory, 0); }

  bool is_last() const { return team_->rank() == team_->size() - 1; }
  /// The last rank's cache holds `pages` in each layer and kv head; 0: no limit. The others have plenty.
  void load(std::int64_t pages) {
    const std::int64_t heads = kLayers * (kKvHeads / team_->size());
    const std::int64_t bytes = is_last() && pages > 0 ? heads * pages * kPageBytes : std::int64_t{64} << 20;
    engine_ =
        Engine::load({.folder = folder_->path(), .device = kDevice, .rope_override = {}, .kv_bytes = bytes},
                     *team_, threads_);
  }
  JobResult run(int tokens, std::span<const Variant> variants,
                const std::function<void(int, const PrefillInput&)>& on_layer = {}) {
    const auto prompt = tiny_prompt(tokens);
    return engine_->run({.prompt = prompt,
                         .prefill = parse_strategy(Json::object(), "test").prefill,
                         .variants = variants,
                         .seed = 3,
                         .on_token = {},
                         .cancelled = {},
                         .on_layer = on_layer});
  }
  /// What run() throws; every rank must say the same.
  std::string error_of(int tokens, std::span<const Variant> variants,
                       const std::function<void(int, const PrefillInput&)>& on_layer = {}) {
    std::string text;
    try {
      (void)run(tokens, variants, on_layer);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kResource) << e.what();
      text = e.what();
    }
    expect_same(text);
    return text;
  }
  void expect_same(const std::string& text) {
    char first[512] = {};
    if (team_->rank() == 0) text.copy(first, sizeof(first) - 1);
    team_->broadcast(first, sizeof(first), 0);
    EXPECT_EQ(text.substr(0, sizeof(first) - 1), first);
  }
  void expect_the_next_job_runs() {
    const std::vector<Variant> variants = {variant("{}", 4)};
    const JobResult job = run(40, variants);
    EXPECT_EQ(job.variants[0].error, "");
    EXPECT_EQ(job.variants[0].ids.size(), 4u);
  }

  std::unique_ptr<Communicator> team_;
  std::unique_ptr<TemporaryFolder> folder_;
  ThreadPool threads_{1};
  std::unique_ptr<Engine> engine_;
};

TEST_F(TinyTeamMemory, APromptThatFillsOneRanksCacheFailsOnAll) {
  load(6);
  const std::vector<Variant> variants = {
      variant("{}", 4), variant(R"({"evict": {"snapkv": {"capacity": 72, "window": 16}}})", 4),
      variant(R"({"evict": {"ada_snapkv": {"capacity": 72, "window": 16}}})", 4),
      variant(R"({"evict": {"tova": {"capacity": 72}}})", 4)};
  EXPECT_NE(error_of(200, variants).find("KV cache is full"), std::string::npos);
  expect_the_next_job_runs();
}

TEST_F(TinyTeamMemory, ACacheThatFillsWhileDecodingEndsTheVariantOnAll) {
  // The prompt takes 4 pages of a head; every variant takes one more at once and one more after 16 tokens.
  load(4 + 3 + 1);
  const std::vector<Variant> variants(3, variant("{}", 20));
  const JobResult job = run(64, variants);
  int failed = 0;
  for (const VariantResult& v : job.variants) {
    expect_same(v.error);
    expect_same(std::to_string(v.ids.size()));
    failed += v.error.empty() ? 0 : 1;
    if (v.error.empty()) {
      EXPECT_EQ(v.ids.size(), 20u);
    } else {
      EXPECT_NE(v.error.find("KV cache is full"), std::string::npos) << v.error;
    }
  }
  EXPECT_GE(failed, 1);
  EXPECT_LT(failed, 3) << "what a failed variant held is for the others";
  expect_the_next_job_runs();
}

TEST_F(TinyTeamMemory, ARankWithoutMemoryForAJobFailsItOnAll) {
  load(0);
  const std::vector<Variant> variants = {variant("{}", 4)};
  (void)run(40, variants);
  if (is_last()) limit_buffers(kMemory, buffer_bytes(kMemory) + (1 << 10));
  EXPECT_NE(error_of(3000, variants).find("out of memory"), std::string::npos);
  limit_buffers(kMemory, 0);
  expect_the_next_job_runs();
}

TEST_F(TinyTeamMemory, ARankThatRunsOutInTheMiddleOfAPrefillFailsItOnAll) {
  load(0);
  const std::vector<Variant> variants = {variant("{}", 4),
                                         variant(R"({"evict": {"snapkv": {"capacity": 72}}})", 4)};
  for (int layer = 0; layer < kLayers; ++layer) {
    // From the end of this layer's attention on; what follows in the layer or in the next one needs more.
    const auto at_layer = [&](int at, const PrefillInput&) {
      if (at == layer && is_last()) limit_buffers(kMemory, 1);
    };
    const std::string error = error_of(160, variants, at_layer);
    limit_buffers(kMemory, 0);
    // Memory that is there from the start is not asked for again, so that later layers may get by.
    if (layer == 0 && kDevice == Device::kCpu) {
      EXPECT_NE(error.find("out of memory"), std::string::npos);
    }
    expect_the_next_job_runs();
    load(0);
  }
}

TEST_F(TinyTeamMemory, ARankThatRunsOutBeforeAStepFailsTheVariantsOnAll) {
  load(0);
  const std::vector<Variant> variants(2, variant(R"({"decode": {"quest": {"budget": 32}}})", 6));
  // What decoding holds is taken by the first step, after start_variants().
  const auto at_layer = [&](int at, const PrefillInput&) {
    if (at == kLayers - 1 && is_last()) limit_buffers(kMemory, 1);
  };
  const std::string error = error_of(100, variants, at_layer);
  limit_buffers(kMemory, 0);
  if (kDevice == Device::kCuda) {
    EXPECT_NE(error.find("out of memory"), std::string::npos);
  }
  expect_the_next_job_runs();
}

TEST_F(TinyTeamMemory, AStepThatOneRankCannotPrepareEndsItsVariantsOnAll) {
  load(0);
  const std::vector<Variant> variants(2, variant(R"({"decode": {"quest": {"budget": 32}}})", 6));
  const auto prompt = tiny_prompt(100);
  // The team polls between the start of decoding and each step: the first time there is after the prefill's.
  int polls = 0;
  const JobResult job = engine_->run({.prompt = prompt,
                                      .prefill = parse_strategy(Json::object(), "test").prefill,
                                      .variants = variants,
                                      .seed = 3,
                                      .on_token = {},
                                      .cancelled = [&] {
                                        if (++polls == kLayers + 1 && is_last()) limit_buffers(kMemory, 1);
                                        return false;
                                      }});
  limit_buffers(kMemory, 0);
  for (const VariantResult& v : job.variants) {
    expect_same(v.error);
    expect_same(std::to_string(v.ids.size()));
    if (kDevice == Device::kCuda) {
      EXPECT_NE(v.error.find("out of memory"), std::string::npos);
    }
  }
  expect_the_next_job_runs();
}

}  // namespace
}  // namespace lacuna
