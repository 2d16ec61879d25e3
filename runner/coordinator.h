// Rank 0's other job: hands out work and hears what became of it, on a thread of its own, so that no worker
// waits for another and no rank is lost to coordination.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "runner/journal.h"
#include "runner/launch.h"
#include "runner/progress.h"
#include "runner/scheduler.h"
#include "runner/team_board.h"
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
              Progress& progress, TeamBoard* board = nullptr)
      : endpoint_(endpoint),
        grid_(grid),
        jobs_(jobs),
        ranks_(static_cast<int>(ranks.size())),
        scheduler_(std::move(ranks), jobs.models, jobs.groups),
        failures_(failures),
        attempt_(attempt),
        launch_(launch),
        progress_(progress),
        board_(board) {}

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
  void show_progress();
  void note_end(int team);
  /// Between two looks at the mailbox.
  std::chrono::duration<double> pause() const;

  Endpoint& endpoint_;
  const Grid& grid_;
  const PlannedJobs& jobs_;
  int ranks_;
  Scheduler scheduler_;
  JournalWriter& failures_;
  int attempt_;
  LaunchFile& launch_;
  Progress& progress_;
  TeamBoard* board_;  ///< Null: nobody wants to see the teams.
  std::vector<int> leader_of_team_;
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> started_;  ///< Per team: its job.
  double mean_job_seconds_ = 1;             ///< Moving average; decides how often messages are looked for.
  std::size_t dropped_seen_ = 0;
  std::atomic<bool> abandoned_ = false;
  std::atomic<bool> interrupted_ = false;
};

/// A record that fails a whole cell.
SampleRecord cell_failure(const Cell& cell, const std::string& reason, int attempt);

}  // namespace lacuna
