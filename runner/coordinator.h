// Rank 0's other job: hands out work and hears what became of it, on a thread of its own, so that no worker
// waits for another and no rank is lost to coordination.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "runner/journal.h"
#include "runner/launch.h"
#include "runner/progress.h"
#include "runner/scheduler.h"
#include "runner/transport.h"
#include "sweeps/cells.h"

namespace lacuna {

/// What the scheduler's group numbers mean.
struct PlannedJobs {
  std::vector<Scheduler::Model> models;  ///< One per Grid::loads.
  std::vector<Scheduler::Group> groups;
  std::vector<std::vector<std::int32_t>> cells;  ///< Per group: the cells that are still to be done.
};

class Coordinator {
 public:
  Coordinator(Endpoint& endpoint, const Grid& grid, const PlannedJobs& jobs,
              std::vector<Scheduler::Rank> ranks, JournalWriter& failures, int attempt, LaunchFile& launch,
              Progress& progress)
      : endpoint_(endpoint),
        grid_(grid),
        jobs_(jobs),
        ranks_(static_cast<int>(ranks.size())),
        scheduler_(std::move(ranks), jobs.models, jobs.groups),
        failures_(failures),
        attempt_(attempt),
        launch_(launch),
        progress_(progress) {}

  /// Until everything is done, or what ran has ended after a signal. Then tells every rank to stop. Throws
  /// what the journal threw.
  void run();
  /// From another thread, when this rank's worker has failed: run() returns without waiting for anybody.
  void abandon() { abandoned_ = true; }
  bool interrupted() const { return interrupted_; }

 private:
  void hand_out();
  void carry_out(const std::vector<Scheduler::Action>& actions, int reporting_team);
  void handle(const Message& message);
  void fail_dropped(const std::string& reason);

  Endpoint& endpoint_;
  const Grid& grid_;
  const PlannedJobs& jobs_;
  int ranks_;
  Scheduler scheduler_;
  JournalWriter& failures_;
  int attempt_;
  LaunchFile& launch_;
  Progress& progress_;
  std::vector<int> leader_of_team_;
  std::size_t dropped_seen_ = 0;
  std::atomic<bool> abandoned_ = false;
  std::atomic<bool> interrupted_ = false;
};

/// A record that fails a whole cell.
SampleRecord cell_failure(const Cell& cell, const std::string& reason, int attempt);

}  // namespace lacuna
