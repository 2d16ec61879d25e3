// The Slurm side of `lacuna status DIR`.
//
// In status.cpp it is used so (it prints nothing for folders that were never submitted to Slurm):
//
//   #include "slurm/job_status.h"
//   lacuna::slurm::SystemCommands commands(10);
//   fmt::print("{}", lacuna::slurm::format_job_statuses(lacuna::slurm::job_statuses(dir, commands)));
//
// and for machine-readable output, to_json() of the same list.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "slurm/commands.h"

namespace lacuna::slurm {

/// One Slurm job of a results folder, or one task of an array.
struct JobStatus {
  std::string id;    ///< "12", "12_3", "12_[4-7]" for tasks that wait together.
  std::string kind;  ///< "run" or "merge"
  std::string
      state;  ///< Slurm's word (PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, ...), or "unknown".
  std::string reason;     ///< Why it waits or failed, in Slurm's word; empty for none.
  int restarts = 0;       ///< Times it was put back into the queue.
  std::string exit_code;  ///< "3:0"; empty while it has not ended.
  std::string nodes;
  std::string run_time;  ///< Of the current start.
  std::string start;     ///< When it started, or Slurm's estimate for one that waits; empty when unknown.
  std::string note;      ///< Last word of the batch script: "2026-05-01 12:00:00 work is left ...".
};

/// All jobs of DIR's last submission, and those of earlier ones that still wait or run. Empty when nothing
/// was submitted. Never throws for a Slurm that does not answer: the states are then "unknown" and the reason
/// says why.
std::vector<JobStatus> job_statuses(const std::string& dir, Commands& commands);

/// Lines for people: "Slurm job 12_3: running on node1 for 1:02:03, requeued 2 times; last: ...". Ends with a
/// newline unless empty.
std::string format_job_statuses(const std::vector<JobStatus>& jobs);
nlohmann::json to_json(const std::vector<JobStatus>& jobs);

}  // namespace lacuna::slurm
