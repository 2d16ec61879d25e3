// Teams of ranks: exact collectives, and the same kept tokens and generated tokens as one rank, sparse
// methods included.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <mpi.h>

#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "model/engine.h"
#include "model/mpi.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using testing::small_config;
using testing::TemporaryFolder;
using testing::tiny_prompt;
using testing::write_tiny_model;

TEST(MpiCommunicator, SumsInRankOrderWithTheSameBitsEverywhere) {
  MpiCommunicator team(MPI_COMM_WORLD);
  // Values whose float sum depends on the order: the result must be that of adding rank 0, 1, 2, ...
  const auto value = [](int rank, std::size_t i) {
    return (rank % 2 == 0 ? 1.0f : 1e-8f) * static_cast<float>(i % 97 + 1) * (rank == 3 ? -1.0f : 1.0f);
  };
  for (const std::size_t count : {std::size_t{1}, std::size_t{5}, std::size_t{2048}, std::size_t{2049},
                                  std::size_t{100003}, (std::size_t{1} << 20) + 7}) {
    std::vector<float> data(count);
    for (std::size_t i = 0; i < count; ++i) data[i] = value(team.rank(), i);
    team.all_reduce_sum(data.data(), count);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) {
      float expected = value(0, i);
      for (int r = 1; r < team.size(); ++r) expected += value(r, i);
      wrong += data[i] != expected;
    }
    EXPECT_EQ(wrong, 0u) << count;
  }
}

TEST(MpiCommunicator, GathersAndBroadcasts) {
  MpiCommunicator team(MPI_COMM_WORLD);
  const int mine[2] = {team.rank(), 100 + team.rank()};
  std::vector<int> all(2 * static_cast<std::size_t>(team.size()));
  team.all_gather(mine, all.data(), sizeof(mine));
  for (int r = 0; r < team.size(); ++r) {
    EXPECT_EQ(all[static_cast<std::size_t>(2 * r)], r);
    EXPECT_EQ(all[static_cast<std::size_t>(2 * r + 1)], 100 + r);
  }
  int value = team.rank() == team.size() - 1 ? 42 : 0;
  team.broadcast(&value, sizeof(value), team.size() - 1);
  EXPECT_EQ(value, 42);
  team.barrier();
}

class TeamEngine : public ::testing::TestWithParam<const char*> {};

TEST_P(TeamEngine, KeepsAndGeneratesWhatOneRankDoes) {
  MpiCommunicator team(MPI_COMM_WORLD);
  SelfCommunicator self;
  ThreadPool threads(1);
  TemporaryFolder folder("team_" + std::to_string(team.rank()));
  write_tiny_model(folder.path(),
                   small_config(GetParam(), std::string(GetParam()) == "gemma3_text"
                                                ? R"("sliding_window": 48, "sliding_window_pattern": 2)"
                                                : ""));
  const auto one = Engine::load({.folder = folder.path(), .rope_override = {}}, self, threads);
  const auto many = Engine::load({.folder = folder.path(), .rope_override = {}}, team, threads);

  std::vector<Variant> variants;
  for (const char* text : {"{}", R"({"evict": {"snapkv": {"capacity": 160, "window": 32}}})",
                           R"({"evict": {"ada_snapkv": {"capacity": 150, "window": 32}}})",
                           R"({"decode": {"quest": {"budget": 96}}})"}) {
    const StrategySpec s = parse_strategy(parse_json(text, "test"), "test");
    variants.push_back(
        {.evict = s.evict, .decode = s.decode, .sampling = {.max_new_tokens = 24, .ignore_stop = true}});
  }
  variants.push_back(variants[0]);
  variants.back().sampling.temperature = 0.7f;
  const auto prompt = tiny_prompt(300);
  for (const char* prefill :
       {"{}", R"({"prefill": {"vertical_slash": {"verticals": 64, "slashes": 96, "window": 64}}})"}) {
    SCOPED_TRACE(prefill);
    const JobRequest request{.prompt = prompt,
                             .prefill = parse_strategy(parse_json(prefill, "test"), "test").prefill,
                             .variants = variants,
                             .want_logits = true,
                             .on_token = {},
                             .cancelled = {}};
    const JobResult expected = one->run(request), actual = many->run(request);
    EXPECT_EQ(actual.prefill_all.visited_cells, expected.prefill_all.visited_cells);
    EXPECT_EQ(actual.prefill_sparse.causal_cells, expected.prefill_sparse.causal_cells);
    for (std::size_t v = 0; v < variants.size(); ++v) {
      SCOPED_TRACE(v);
      const VariantResult &e = expected.variants[v], &a = actual.variants[v];
      ASSERT_EQ(a.error, "");
      EXPECT_EQ(a.ids, e.ids);
      EXPECT_EQ(a.decode_all.visited_cells, e.decode_all.visited_cells);
      // Replicated kv heads are held by several ranks; the share that stays is the same.
      EXPECT_DOUBLE_EQ(
          static_cast<double>(a.kv_bytes_resident) / static_cast<double>(a.kv_bytes_resident_dense),
          static_cast<double>(e.kv_bytes_resident) / static_cast<double>(e.kv_bytes_resident_dense));
      double difference = 0, size = 0;
      for (std::size_t i = 0; i < e.logits.back().size(); ++i) {
        difference =
            std::max(difference, std::abs(static_cast<double>(a.logits.back()[i] - e.logits.back()[i])));
        size = std::max(size, std::abs(static_cast<double>(e.logits.back()[i])));
      }
      EXPECT_LT(difference, 1e-4 * size);
    }
    // Every rank holds the same result.
    std::vector<TokenId> ids = actual.variants[0].ids;
    team.broadcast(ids.data(), ids.size() * sizeof(TokenId), 0);
    EXPECT_EQ(ids, actual.variants[0].ids);
  }
}

TEST_P(TeamEngine, CancellingOnOneRankEndsTheJobOnAll) {
  MpiCommunicator team(MPI_COMM_WORLD);
  ThreadPool threads(1);
  TemporaryFolder folder("cancel_" + std::to_string(team.rank()));
  write_tiny_model(folder.path(), small_config(GetParam()));
  const auto engine = Engine::load({.folder = folder.path(), .rope_override = {}}, team, threads);
  const StrategySpec dense = parse_strategy(Json::object(), "test");
  const Variant variant{
      .evict = dense.evict, .decode = dense.decode, .sampling = {.max_new_tokens = 50, .ignore_stop = true}};
  const auto prompt = tiny_prompt(40);
  int polls = 0;
  const bool last = team.rank() == team.size() - 1;
  EXPECT_THROW(engine->run({.prompt = prompt,
                            .prefill = dense.prefill,
                            .variants = std::span(&variant, 1),
                            .on_token = {},
                            .cancelled = [&] { return last && ++polls == 7; }}),
               Error);
  const JobResult after = engine->run({.prompt = prompt,
                                       .prefill = dense.prefill,
                                       .variants = std::span(&variant, 1),
                                       .on_token = {},
                                       .cancelled = {}});
  EXPECT_EQ(after.variants[0].ids.size(), 50u);
}

INSTANTIATE_TEST_SUITE_P(Families, TeamEngine, ::testing::Values("qwen2", "gemma3_text"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const lacuna::MpiSession session;
  return RUN_ALL_TESTS();
}
