// Every eviction on the GPU against the CPU's, on integer-valued inputs; and on two ranks against one.
#include <algorithm>
#include <cstring>

#include "attention/cuda/prefill_methods.h"
#include "core/error.h"
#include "tests/attention/cuda/method_test_util.h"

namespace lacuna {
namespace {

using testing::ContextOwner;
using testing::layer_cases;
using testing::LayerCase;
using testing::LayerTwice;
using testing::short_cases;

using Kept = std::vector<std::vector<std::int32_t>>;

constexpr const char* kEvictions[] = {
    R"("none")",
    R"({"streaming": {"capacity": 100, "sinks": 4}})",
    R"({"random": {"capacity": 100, "first": 2, "last": 5}})",
    R"({"snapkv": {"capacity": 100, "window": 32, "kernel": 7, "last": 16}})",
    R"({"snapkv": {"capacity": 10, "window": 300, "kernel": 1, "first": 3, "last": 20}})",
    R"({"ada_snapkv": {"capacity": 100, "window": 32, "kernel": 5, "last": 16}})",
    R"({"ada_snapkv": {"capacity": 60, "min_share": 0, "window": 16, "first": 0, "last": 1}})",
    R"({"pyramidkv": {"capacity": 120, "window": 32, "last": 16}})",
    R"({"tova": {"capacity": 77}})",
    R"({"tova": {"capacity": 1}})",
    R"({"expected_attention": {"capacity": 90, "window": 64}})",
    R"({"expected_attention": {"capacity": 16, "sinks": 20, "epsilon": 0.01, "value_norm": false}})"};

std::string first_difference(const Kept& got, const Kept& wanted) {
  for (std::size_t h = 0; h < wanted.size(); ++h) {
    if (got[h].size() != wanted[h].size())
      return fmt::format("head {}: {} kept instead of {}", h, got[h].size(), wanted[h].size());
    for (std::size_t i = 0; i < wanted[h].size(); ++i) {
      if (got[h][i] != wanted[h][i])
        return fmt::format("head {} entry {}: {} instead of {}", h, i, got[h][i], wanted[h][i]);
    }
  }
  return "";
}

void check(const std::string& json, const LayerCase& c) {
  SCOPED_TRACE(json + " " + c.to_string());
  LayerTwice layer(c);
  const MethodSpec spec = testing::method(Slot::kEvict, json);
  AttentionCounts cpu, cuda;
  const Kept wanted = make_evictor(spec)->keep(layer.cpu(), cpu);
  ContextOwner owner;
  const auto evictor = make_cuda_evictor(spec, owner.context);
  const Kept got = evictor->keep(layer.cuda(), cuda);
  ASSERT_EQ(got.size(), wanted.size());
  EXPECT_EQ(first_difference(got, wanted), "");
  EXPECT_NEAR(cuda.index_flops, cpu.index_flops, 1e-9 * cpu.index_flops);
  owner.scratch.clear();
  EXPECT_EQ(evictor->keep(layer.cuda(), cuda), got);
}

TEST(EvictMethodsCuda, KeepWhatTheCpuKeeps) {
  for (const LayerCase& c : short_cases())
    for (const char* json : kEvictions) check(json, c);
}
TEST(EvictMethodsCudaLong, KeepWhatTheCpuKeeps) {
  for (const LayerCase& c : layer_cases())
    for (const char* json : kEvictions) check(json, c);
}
TEST(EvictMethodsCuda, EveryHeadDim) {
  for (const int head_dim : {96, 128, 256})
    for (const char* json : kEvictions)
      check(json, {.q_heads = 2, .kv_heads = 1, .head_dim = head_dim, .tokens = 250});
}
TEST(EvictMethodsCuda, SlidingWindowAndSoftcap) {
  for (const char* json : kEvictions) check(json, {.tokens = 700, .window = 256, .softcap = 30.0f});
}

/// A team whose ranks run one after another, because the emulator knows one thread: the first round collects
/// what each rank sends, the second gives everybody everything.
class TakenTurns final : public Communicator {
 public:
  struct Collected {};
  explicit TakenTurns(int size) : sent_(static_cast<std::size_t>(size)) {}
  void turn(int rank, bool collect) { rank_ = rank, collect_ = collect, calls_ = 0; }
  int calls() const { return calls_; }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(sent_.size()); }
  void all_gather(const void* send, void* receive, std::size_t bytes) override {
    ++calls_;
    auto& own = sent_[static_cast<std::size_t>(rank_)];
    const auto* from = static_cast<const unsigned char*>(send);
    if (collect_) {
      own.assign(from, from + bytes);
      throw Collected{};
    }
    EXPECT_TRUE(own.size() == bytes && std::memcmp(own.data(), send, bytes) == 0) << "rank " << rank_;
    for (std::size_t r = 0; r < sent_.size(); ++r)
      std::memcpy(static_cast<unsigned char*>(receive) + r * bytes, sent_[r].data(), bytes);
  }
  void all_reduce_sum(float*, std::size_t) override { ADD_FAILURE() << "all_reduce_sum"; }
  void broadcast(void*, std::size_t, int) override { ADD_FAILURE() << "broadcast"; }
  void barrier() override {}

 private:
  int rank_ = 0, calls_ = 0;
  bool collect_ = false;
  std::vector<std::vector<unsigned char>> sent_;
};

Kept keep_on_ranks(const MethodSpec& spec, LayerTwice& layer, int ranks, const LayerCase& c) {
  TakenTurns team(ranks);
  Kept all(static_cast<std::size_t>(c.kv_heads));
  for (const bool collect : {true, false})
    for (int rank = 0; rank < ranks; ++rank) {
      team.turn(rank, collect);
      PrefillInput part = layer.cuda(rank, ranks);
      part.communicator = &team;
      ContextOwner owner;
      AttentionCounts counts;
      try {
        const Kept own = make_cuda_evictor(spec, owner.context)->keep(part, counts);
        for (std::size_t h = 0; h < own.size(); ++h) {
          auto& to = all[static_cast<std::size_t>(part.info.kv_head_begin) + h];
          if (!to.empty()) {
            EXPECT_EQ(to, own[h]) << "rank " << rank << " disagrees about kv head "
                                  << part.info.kv_head_begin + static_cast<int>(h);
          }
          to = own[h];
        }
      } catch (const TakenTurns::Collected&) {
      }
    }
  return all;
}

TEST(EvictMethodsCuda, RanksKeepWhatOneRankKeeps) {
  // Two kv heads on two ranks each; kv heads split over ranks.
  for (const LayerCase& c :
       {LayerCase{.q_heads = 4, .kv_heads = 2}, LayerCase{.q_heads = 4, .kv_heads = 1, .tokens = 333},
        LayerCase{.q_heads = 12, .kv_heads = 3, .tokens = 250}})
    for (const char* json : kEvictions) {
      if (json == std::string(R"("none")")) continue;
      SCOPED_TRACE(std::string(json) + " " + c.to_string());
      LayerTwice layer(c);
      const MethodSpec spec = testing::method(Slot::kEvict, json);
      ContextOwner owner;
      AttentionCounts counts;
      const Kept alone = make_cuda_evictor(spec, owner.context)->keep(layer.cuda(), counts);
      EXPECT_EQ(first_difference(keep_on_ranks(spec, layer, 2, c), alone), "");
    }
}

TEST(EvictMethodsCuda, ScoresThatAreNotFiniteNameLayerAndHead) {
  for (const char* json : {R"({"snapkv": {"capacity": 20}})", R"({"ada_snapkv": {"capacity": 20}})",
                           R"({"pyramidkv": {"capacity": 20}})", R"({"tova": {"capacity": 20}})",
                           R"({"expected_attention": {"capacity": 20}})"}) {
    SCOPED_TRACE(json);
    LayerTwice layer({.q_heads = 4, .kv_heads = 1, .tokens = 200});
    layer.set_query(3, 199, NAN);
    ContextOwner owner;
    AttentionCounts counts;
    try {
      (void)make_cuda_evictor(testing::method(Slot::kEvict, json), owner.context)->keep(layer.cuda(), counts);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("layer 1, query head 3"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace lacuna
