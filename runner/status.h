// What `lacuna status` says of a run folder. Reads journals only; never locks, never writes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "runner/run_folder.h"

namespace lacuna {

struct StatusLine {
  std::string axis, name;  ///< "model", "7B"
  RunState::Counts counts;
};

struct FailureReason {
  std::string reason, example;  ///< The cell that showed it first.
  int cells = 0;
};

struct Status {
  std::string folder, sweep;
  RunState::Counts total;
  int cells = 0, cells_done = 0, cells_failed = 0;
  std::vector<StatusLine> axes;  ///< model, task, length, strategy: one line per value.
  double per_minute = 0;         ///< Over the last ten minutes before the newest sample; 0 when too few.
  double eta_seconds = -1;       ///< -1: unknown.
  double idle_seconds = 0;       ///< Since the newest sample.
  bool complete = false;         ///< OUT/COMPLETE is there.
  std::vector<FailureReason> failures;  ///< Most frequent first.
  std::int64_t duplicates = 0, foreign = 0;
  std::uint64_t bad_lines = 0;
  std::vector<JournalIssue> issues;  ///< At most ten.
  std::vector<std::string> conflicts;
};

/// A folder that is looked at again and again.
class StatusReader {
 public:
  /// Throws kUsage when the folder is no run folder.
  explicit StatusReader(const std::string& folder);
  Status read();

 private:
  RunPaths paths_;
  Sweep sweep_;
  Grid grid_;
  RunState state_;
  std::vector<double> finished_;  // times of the newest samples
};

std::string to_text(const Status& status);
nlohmann::json to_json(const Status& status);

}  // namespace lacuna
