// The scheduler by its promises: every job exactly once, no team beyond memory or over nodes without need, no
// deadlock, and a schedule close to the best possible.
#include "runner/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "core/rng.h"
#include "runner/simulate.h"

namespace lacuna {
namespace {

std::vector<Scheduler::Rank> cluster(int nodes, int per_node, std::int64_t memory = 0) {
  std::vector<Scheduler::Rank> ranks;
  for (int n = 0; n < nodes; ++n) {
    for (int r = 0; r < per_node; ++r) ranks.push_back({n, memory});
  }
  return ranks;
}

std::vector<std::int32_t> samples(int n) {
  std::vector<std::int32_t> list;
  for (int i = 0; i < n; ++i) list.push_back(i);
  return list;
}

TEST(Scheduler, OneRankRunsEverythingLongestFirst) {
  std::vector<double> order;
  const std::vector<Scheduler::Group> groups = {
      {0, 1.0, 0, samples(2)}, {0, 5.0, 0, samples(1)}, {0, 3.0, 0, samples(1)}};
  const auto observe = [&](double, const Scheduler::Action& a) {
    if (a.kind == Scheduler::Action::Kind::kRun)
      order.push_back(groups[static_cast<std::size_t>(a.group)].seconds);
  };
  const auto s = simulate(cluster(1, 1), {{1, 2.0}}, groups, {}, observe);
  EXPECT_EQ(order, (std::vector<double>{5, 3, 1, 1}));
  EXPECT_DOUBLE_EQ(s.makespan, 12.0);
  EXPECT_DOUBLE_EQ(s.busy, 10.0);
}

TEST(Scheduler, WiderModelsRunFirstAndTeamsSplit) {
  std::vector<std::size_t> sizes;
  const auto observe = [&](double, const Scheduler::Action& a) {
    if (a.kind == Scheduler::Action::Kind::kForm) sizes.push_back(a.ranks.size());
  };
  const auto s = simulate(cluster(1, 4), {{1, 0}, {4, 0}, {2, 0}},
                          {{0, 1, 0, samples(8)}, {1, 1, 0, samples(3)}, {2, 1, 0, samples(4)}}, {}, observe);
  EXPECT_EQ(sizes, (std::vector<std::size_t>{4, 2, 2, 1, 1, 1, 1}));
  EXPECT_DOUBLE_EQ(s.makespan, 7.0);
  EXPECT_DOUBLE_EQ(s.utilisation, 1.0);
}

TEST(Scheduler, TeamsStayOnOneNodeWhereTheyCan) {
  const auto observe = [&](double, const Scheduler::Action& a) {
    if (a.kind != Scheduler::Action::Kind::kForm) return;
    for (const int r : a.ranks) EXPECT_EQ(r / 3, a.ranks[0] / 3);
  };
  const auto s = simulate(cluster(4, 3), {{2, 0}}, {{0, 1, 0, samples(50)}}, {}, observe);
  EXPECT_EQ(s.jobs, 50);
  EXPECT_EQ(s.teams_formed, 4);
}

TEST(Scheduler, AModelWiderThanANodeSpansNodes) {
  const auto s = simulate(cluster(4, 2), {{4, 0}}, {{0, 1, 0, samples(6)}});
  EXPECT_EQ(s.jobs, 6);
  EXPECT_EQ(s.teams_formed, 2);
  EXPECT_DOUBLE_EQ(s.makespan, 3.0);
}

TEST(Scheduler, WhatCannotRunIsReportedAndDoesNotStopTheRest) {
  const auto s = simulate(cluster(1, 2, 100), {{4, 0}, {1, 0}},
                          {{0, 1, 10, samples(3)}, {1, 1, 10, samples(4)}, {1, 9, 101, samples(2)}});
  EXPECT_EQ(s.jobs, 4);
  EXPECT_EQ(s.dropped, 5);
}

TEST(Scheduler, AModelThatDoesNotLoadIsDroppedOnce) {
  Scheduler scheduler(cluster(1, 2), {{1, 0}, {1, 0}}, {{0, 2, 0, samples(5)}, {1, 1, 0, samples(3)}});
  auto actions = scheduler.start();
  ASSERT_EQ(actions.size(), 4U);  // two teams on model 0
  auto next = scheduler.load_failed(actions[0].team);
  ASSERT_EQ(next.size(), 2U);
  EXPECT_EQ(next[0].model, 1);
  next = scheduler.load_failed(actions[2].team);
  ASSERT_EQ(next.size(), 2U);
  EXPECT_EQ(next[0].model, 1);
  EXPECT_EQ(scheduler.dropped().size(), 5U);
  EXPECT_EQ(scheduler.pending_jobs(), 1);
}

TEST(Scheduler, StopLetsRunningJobsEnd) {
  Scheduler scheduler(cluster(1, 2), {{1, 0}}, {{0, 1, 0, samples(10)}});
  const auto actions = scheduler.start();
  scheduler.stop();
  EXPECT_FALSE(scheduler.finished());
  EXPECT_TRUE(scheduler.job_done(actions[0].team).empty());
  EXPECT_TRUE(scheduler.job_done(actions[2].team).empty());
  EXPECT_TRUE(scheduler.finished());
  EXPECT_EQ(scheduler.pending_jobs(), 8);
  EXPECT_TRUE(scheduler.dropped().empty());
}

/// Random clusters, models, memory and real durations.
TEST(Scheduler, PropertiesOverRandomSweeps) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed, stream_id("scheduler_test"));
    std::vector<Scheduler::Rank> ranks;
    const int nodes = 1 + static_cast<int>(rng.below(5));
    for (int n = 0; n < nodes; ++n) {
      const int per_node = 1 + static_cast<int>(rng.below(8));
      const std::int64_t memory = rng.below(3) == 0 ? 50 : 100;
      for (int r = 0; r < per_node; ++r) ranks.push_back({n, memory});
    }
    std::vector<Scheduler::Model> models;
    for (std::uint64_t m = 0, n = 1 + rng.below(5); m < n; ++m) {
      models.push_back({1 + static_cast<int>(rng.below(9)), rng.uniform() * 5});
    }
    std::vector<Scheduler::Group> groups;
    std::int64_t jobs = 0;
    for (std::uint64_t g = 0, n = rng.below(30); g < n; ++g) {
      const int count = static_cast<int>(rng.below(12));
      jobs += count;
      groups.push_back({static_cast<int>(rng.below(models.size())), rng.uniform() * 10,
                        static_cast<std::int64_t>(rng.below(130)), samples(count)});
    }

    std::set<std::pair<int, std::int32_t>> run;
    std::map<int, std::vector<int>> members;
    std::vector<int> team_of(ranks.size(), -1);
    std::vector<int> model_of;
    const auto observe = [&](double, const Scheduler::Action& a) {
      if (a.kind == Scheduler::Action::Kind::kForm) {
        ASSERT_EQ(static_cast<int>(a.ranks.size()), models[static_cast<std::size_t>(a.model)].tp);
        for (const int r : a.ranks) team_of[static_cast<std::size_t>(r)] = a.team;
        members[a.team] = a.ranks;
        return;
      }
      ASSERT_TRUE(run.emplace(a.group, a.sample).second) << "job runs twice, seed " << seed;
      const auto& group = groups[static_cast<std::size_t>(a.group)];
      for (const int r : members[a.team]) {
        ASSERT_EQ(team_of[static_cast<std::size_t>(r)], a.team) << "a rank in two teams, seed " << seed;
        ASSERT_LE(group.memory, ranks[static_cast<std::size_t>(r)].memory)
            << "too little memory, seed " << seed;
      }
      ASSERT_EQ(group.model, a.model);
    };
    Rng durations(seed, 7);
    const auto s = simulate(
        ranks, models, groups, [&](int, std::int32_t) { return durations.uniform() * 10; }, observe);
    ASSERT_EQ(s.jobs + s.dropped, jobs) << "a job was lost, seed " << seed;
    ASSERT_EQ(s.jobs, static_cast<std::int64_t>(run.size()));
    // What was dropped could not run: too wide, or too large for every possible team.
    if (s.dropped > 0) {
      std::int64_t impossible = 0;
      for (const auto& group : groups) {
        const int tp = models[static_cast<std::size_t>(group.model)].tp;
        std::map<int, int> roomy;
        int all = 0, largest = 0, best = 0;
        std::map<int, int> size;
        for (const auto& rank : ranks) largest = std::max(largest, ++size[rank.node]);
        for (const auto& rank : ranks) {
          if (rank.memory >= group.memory) best = std::max(best, ++roomy[rank.node]), ++all;
        }
        const bool possible = tp <= largest ? best >= tp : all >= tp;
        if (!possible) impossible += static_cast<std::int64_t>(group.samples.size());
      }
      ASSERT_EQ(s.dropped, impossible) << "seed " << seed;
    }
  }
}

TEST(Scheduler, ManyTeamsCostLittle) {
  // 256 teams of one rank, jobs of about a second: the coordinator's share of one core stays under 1 %.
  std::vector<Scheduler::Group> groups;
  for (int g = 0; g < 500; ++g) groups.push_back({0, 0.5 + 0.002 * g, 0, samples(200)});
  const auto s = simulate(cluster(32, 8), {{1, 10}}, groups);
  EXPECT_EQ(s.jobs, 100'000);
  EXPECT_LT(s.scheduler_seconds, 0.01 * s.makespan);
  EXPECT_GT(s.utilisation, 0.95);
  EXPECT_LT(s.makespan, 1.05 * s.lower_bound);
}

}  // namespace
}  // namespace lacuna
