// The scheduler under a simulated clock.
#pragma once

#include <cstdint>
#include <functional>

#include "runner/scheduler.h"

namespace lacuna {

struct Simulation {
  double makespan = 0;     ///< Seconds.
  double busy = 0;         ///< Rank-seconds spent on jobs.
  double loading = 0;      ///< Rank-seconds spent on loading models.
  double utilisation = 0;  ///< busy / (ranks * makespan)
  double lower_bound = 0;  ///< max(busy / ranks, longest load + job): no schedule is shorter.
  std::int64_t jobs = 0, teams_formed = 0, dropped = 0;
  double scheduler_seconds = 0;  ///< Real time spent in the scheduler.
};

/// Seconds that a job really takes; default: the group's estimate.
using JobSeconds = std::function<double(int group, std::int32_t sample)>;
/// Called for every action with the simulated time, for tests and traces.
using Observer = std::function<void(double now, const Scheduler::Action&)>;

Simulation simulate(const std::vector<Scheduler::Rank>& ranks, const std::vector<Scheduler::Model>& models,
                    const std::vector<Scheduler::Group>& groups, const JobSeconds& seconds = {},
                    const Observer& observer = {});

}  // namespace lacuna
