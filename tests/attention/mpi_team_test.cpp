// Over real MPI ranks: what a rank keeps and reads equals its part of what one rank alone would.
#include <gtest/gtest.h>
#include <mpi.h>

#include "attention/strategy.h"
#include "model/mpi.h"
#include "tests/attention/fixture.h"
#include "tests/attention/paged_cache.h"
#include "tests/attention/shard.h"

namespace lacuna {
namespace {

std::vector<float> last_queries(const PrefillInput& input) {
  std::vector<float> q;
  for (int h = 0; h < input.info.q_heads; ++h) {
    const float* row = input.q.row(h, input.q.tokens - 1);
    q.insert(q.end(), row, row + input.info.head_dim);
  }
  return q;
}

std::vector<PageList> pages_of(const PrefillInput& input, const MethodSpec& spec,
                               Communicator& communicator) {
  const test::PagedCache cache(input);
  const std::vector<float> q = last_queries(input);
  const auto selector = make_decode_selector(spec);
  const auto state = selector->make_state(input.info);
  std::vector<PageList> pages;
  AttentionCounts counts;
  selector->select(cache.input(q.data(), input.info, communicator), state.get(), pages, counts);
  return pages;
}

TEST(MpiTeam, RanksChooseTheirPartOfWhatOneRankChooses) {
  MpiCommunicator team(MPI_COMM_WORLD);
  SelfCommunicator self;
  AttentionCounts counts;
  for (const int kv_heads : {1, 2, 4}) {
    test::Layer layer({.tokens = 250, .q_heads = 8, .kv_heads = kv_heads, .head_dim = 32}, 5);
    layer.input.communicator = &self;
    PrefillInput part = test::shard(layer.input, team.rank(), team.size());
    part.communicator = &team;
    for (const char* text :
         {R"({"snapkv": {"capacity": 150, "window": 32}})",
          R"({"ada_snapkv": {"capacity": 170, "window": 32}})", R"({"tova": {"capacity": 60}})",
          R"({"expected_attention": {"capacity": 60}})"}) {
      const auto evictor = make_evictor(parse_strategy(Json{{"evict", Json::parse(text)}}, "test").evict);
      const auto whole = evictor->keep(layer.input, counts);
      const auto mine = evictor->keep(part, counts);
      const auto begin = whole.begin() + part.info.kv_head_begin;
      EXPECT_EQ(mine, std::vector(begin, begin + part.info.kv_heads))
          << text << ", " << kv_heads << " kv heads";
    }
    for (const char* text : {R"({"quest": {"budget": 64}})", R"({"twilight": {"budget": 96, "top_p": 0.6}})",
                             R"({"oracle_top_p": {"top_p": 0.5}})"}) {
      const MethodSpec spec = parse_strategy(Json{{"decode", Json::parse(text)}}, "test").decode;
      const auto whole = pages_of(layer.input, spec, self);
      const auto mine = pages_of(part, spec, team);
      const auto begin = whole.begin() + part.info.kv_head_begin;
      EXPECT_EQ(mine, std::vector(begin, begin + part.info.kv_heads))
          << text << ", " << kv_heads << " kv heads";
    }
  }
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const lacuna::MpiSession session;
  return RUN_ALL_TESTS();
}
