// Choices must not depend on the tensor-parallel degree: the same kept tokens, pages and tiles at 1, 2 and 4
// ranks, with kv heads split over ranks and with kv heads shared by several ranks. Ranks are threads.
#include <gtest/gtest.h>

#include <barrier>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "attention/strategy.h"
#include "tests/attention/fixture.h"
#include "tests/attention/paged_cache.h"
#include "tests/attention/shard.h"

namespace lacuna {
namespace {

/// Memory shared by the ranks of a team.
struct Team {
  explicit Team(int ranks) : size(ranks), gate(ranks), slots(static_cast<std::size_t>(ranks)) {}
  int size;
  std::barrier<> gate;
  std::vector<const void*> slots;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(Team& team, int rank) : team_(team), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return team_.size; }
  void all_reduce_sum(float* data, std::size_t count) override {
    std::vector<float> all(count * static_cast<std::size_t>(team_.size));
    all_gather(data, all.data(), count * sizeof(float));
    for (std::size_t i = 0; i < count; ++i) {
      data[i] = 0;
      for (std::size_t r = 0; r < static_cast<std::size_t>(team_.size); ++r) data[i] += all[r * count + i];
    }
  }
  void all_gather(const void* send, void* receive, std::size_t bytes) override {
    team_.slots[static_cast<std::size_t>(rank_)] = send;
    team_.gate.arrive_and_wait();
    for (std::size_t r = 0; r < team_.slots.size(); ++r) {
      std::memcpy(static_cast<std::byte*>(receive) + r * bytes, team_.slots[r], bytes);
    }
    team_.gate.arrive_and_wait();
  }
  void broadcast(void* data, std::size_t bytes, int root) override {
    std::vector<std::byte> all(bytes * static_cast<std::size_t>(team_.size));
    all_gather(data, all.data(), bytes);
    std::memcpy(data, all.data() + static_cast<std::size_t>(root) * bytes, bytes);
  }
  void barrier() override { team_.gate.arrive_and_wait(); }

 private:
  Team& team_;
  int rank_;
};

/// Choices by global head number; ranks that share a kv head must agree.
using Choices = std::map<std::pair<std::string, int>, std::vector<std::int32_t>>;

Choices choose(const PrefillInput& whole, const StrategySpec& spec, int ranks) {
  Team team(ranks);
  Choices choices;
  std::mutex mutex;
  const auto note = [&](const char* slot, int head, const std::vector<std::int32_t>& chosen) {
    const std::scoped_lock lock(mutex);
    const auto [it, fresh] = choices.try_emplace({slot, head}, chosen);
    EXPECT_TRUE(fresh || it->second == chosen) << slot << " head " << head << ": ranks disagree";
  };
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadCommunicator communicator(team, rank);
      PrefillInput input = test::shard(whole, rank, ranks);
      input.communicator = &communicator;
      AttentionCounts counts;
      TileLists lists;
      make_prefill_selector(spec.prefill)->select(input, lists, counts);
      for (int h = 0; h < input.info.q_heads && !lists.dense; ++h) {
        std::vector<std::int32_t> flat(lists.columns_of(h).begin(), lists.columns_of(h).end());
        for (std::int64_t b = 0; b < lists.row_blocks(); ++b) {
          for (const KeyRange& r : lists.ranges_of(h, b)) flat.insert(flat.end(), {r.start, r.width});
        }
        note("prefill", input.info.q_head_begin + h, flat);
      }
      const auto kept = make_evictor(spec.evict)->keep(input, counts);
      for (std::size_t h = 0; h < kept.size(); ++h)
        note("evict", input.info.kv_head_begin + static_cast<int>(h), kept[h]);

      const auto selector = make_decode_selector(spec.decode);
      if (selector->reads_everything()) return;
      const test::PagedCache cache(input, kept);
      std::vector<float> q;
      for (int h = 0; h < input.info.q_heads; ++h) {
        q.insert(q.end(), input.q.row(h, input.q.tokens - 1),
                 input.q.row(h, input.q.tokens - 1) + input.info.head_dim);
      }
      const auto state = selector->make_state(input.info);
      std::vector<PageList> pages;
      selector->select(cache.input(q.data(), input.info, communicator), state.get(), pages, counts);
      const bool per_q = spec.decode.method == "quest" && !spec.decode.params.get_bool("share_pages");
      for (std::size_t h = 0; h < pages.size(); ++h) {
        note("decode", (per_q ? input.info.q_head_begin : input.info.kv_head_begin) + static_cast<int>(h),
             pages[h]);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return choices;
}

TEST(Team, ChoicesDoNotDependOnTheDegree) {
  const std::vector<std::string> prefill = {
      R"({"vertical_slash": {"verticals": 20, "slashes": 70, "window": 32}})",
      R"({"random": {"block": 16, "top_k": 3}})"};
  const std::vector<std::string> evict = {R"("none")",
                                          R"({"snapkv": {"capacity": 150, "window": 32}})",
                                          R"({"ada_snapkv": {"capacity": 170, "window": 32}})",
                                          R"({"pyramidkv": {"capacity": 170, "window": 32}})",
                                          R"({"tova": {"capacity": 60}})",
                                          R"({"expected_attention": {"capacity": 60}})",
                                          R"({"streaming": {"capacity": 50}})"};
  const std::vector<std::string> decode = {R"({"quest": {"budget": 64}})",
                                           R"({"quest": {"budget": 64, "share_pages": false}})",
                                           R"({"twilight": {"budget": 96, "top_p": 0.6}})",
                                           R"({"oracle_top_k": {"budget": 32}})",
                                           R"({"oracle_top_p": {"top_p": 0.5}})",
                                           R"({"streaming": {"window": 40}})"};
  for (const int kv_heads : {1, 2, 4, 8}) {
    // Real values: every rounding difference between degrees would show.
    test::Layer layer({.tokens = 250, .q_heads = 8, .kv_heads = kv_heads, .head_dim = 32}, 5);
    layer.input.info.layers = 4;
    for (std::size_t i = 0; i < evict.size() * decode.size(); ++i) {
      const std::string text = "{\"prefill\": " + prefill[i % prefill.size()] +
                               ", \"evict\": " + evict[i % evict.size()] +
                               ", \"decode\": " + decode[i % decode.size()] + "}";
      const StrategySpec spec = parse_strategy(Json::parse(text), "test");
      const Choices alone = choose(layer.input, spec, 1);
      EXPECT_EQ(choose(layer.input, spec, 2), alone) << text << ", " << kv_heads << " kv heads, 2 ranks";
      EXPECT_EQ(choose(layer.input, spec, 4), alone) << text << ", " << kv_heads << " kv heads, 4 ranks";
    }
  }
}

}  // namespace
}  // namespace lacuna
