// Which rank takes which GPU, and what it is told about sharing.
#include "runner/launch.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {
namespace {

RankSight sight(const std::string& host, std::vector<std::string> gpus) {
  return {.host = host, .gpus = std::move(gpus)};
}

std::vector<int> gpus_of(const std::vector<RankSight>& ranks) {
  std::vector<int> gpus;
  for (int r = 0; r < static_cast<int>(ranks.size()); ++r) gpus.push_back(choose_device(ranks, r).gpu);
  return gpus;
}

TEST(ChooseDevice, RanksOfAHostTakeItsGpusInOrder) {
  const std::vector<RankSight> ranks = {sight("a", {"x", "y"}), sight("b", {"z"}), sight("a", {"x", "y"})};
  EXPECT_EQ(gpus_of(ranks), (std::vector{0, 0, 1}));
  const DeviceChoice last = choose_device(ranks, 2);
  EXPECT_EQ(last.local_rank, 1);
  EXPECT_EQ(last.local_ranks, 2);
  EXPECT_EQ(last.gpus, 2);
  EXPECT_EQ(last.sharing, 1);
}

TEST(ChooseDevice, ABoundRankTakesItsOwnWhateverItsNumber) {
  // As under CUDA_VISIBLE_DEVICES: each sees one, and calls it 0.
  const std::vector<RankSight> ranks = {sight("a", {"x"}), sight("a", {"y"}), sight("a", {"z"})};
  EXPECT_EQ(gpus_of(ranks), (std::vector{0, 0, 0}));
  for (int r = 0; r < 3; ++r) EXPECT_EQ(choose_device(ranks, r).sharing, 1);
  // The same GPUs under other numbers.
  EXPECT_EQ(gpus_of({sight("a", {"x", "y"}), sight("a", {"y", "x"})}), (std::vector{0, 0}));
  EXPECT_EQ(gpus_of({sight("a", {"x", "y"}), sight("a", {"x"})}), (std::vector{0, 0}));
}

TEST(ChooseDevice, RanksBeyondTheGpusShareEvenly) {
  const std::vector<RankSight> ranks(5, sight("a", {"x", "y"}));
  EXPECT_EQ(gpus_of(ranks), (std::vector{0, 1, 0, 1, 0}));
  EXPECT_EQ(choose_device(ranks, 0).sharing, 3);
  EXPECT_EQ(choose_device(ranks, 3).sharing, 2);
}

TEST(ChooseDevice, WithoutGpusOnlyTheHostCounts) {
  const std::vector<RankSight> ranks(3, sight("a", {}));
  const DeviceChoice choice = choose_device(ranks, 1);
  EXPECT_EQ(choice.gpu, -1);
  EXPECT_EQ(choice.local_rank, 1);
  EXPECT_EQ(choice.local_ranks, 3);
}

TEST(RankFacts, TheCacheOfASharedGpuLeavesRoomForTheOthers) {
  RankFacts facts;
  facts.device = Device::kCuda;
  facts.memory = 1000;
  EXPECT_EQ(kv_share(facts, 400), 0) << "alone: no limit";
  facts.sharing = 2;
  EXPECT_EQ(kv_share(facts, 400), 420);
  EXPECT_THROW(kv_share(facts, 1000), Error);
}

TEST(RankFacts, TravelAsJson) {
  RankFacts facts;
  facts.host = "a";
  facts.device = Device::kCuda;
  facts.device_name = "GPU";
  facts.gpu = "0000:18:00.0";
  facts.driver = "580.1";
  facts.memory = 7;
  facts.threads = 3;
  facts.sharing = 2;
  const RankFacts again = rank_facts_from(to_json(facts));
  EXPECT_EQ(to_json(again).dump(), to_json(facts).dump());
  EXPECT_EQ(again.device, Device::kCuda);
  EXPECT_EQ(again.sharing, 2);
  const RankSight seen = rank_sight_from(to_json(sight("h", {"x", "y"})));
  EXPECT_EQ(seen.gpus.size(), 2u);
}

TEST(RankFacts, ACpuRankTakesItsShareOfTheHost) {
  EXPECT_TRUE(look_around("cpu").gpus.empty());
  const RankFacts one = claim_device("cpu", 0, 1), four = claim_device("cpu", 0, 4);
  EXPECT_EQ(one.device, Device::kCpu);
  EXPECT_LT(four.memory, one.memory);
  EXPECT_GE(four.threads, 1);
}

}  // namespace
}  // namespace lacuna
