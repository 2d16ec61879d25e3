// Which Slurm jobs belong to a results folder, and how they get there and away again.
#pragma once

#include <string>
#include <vector>

#include "slurm/cluster.h"
#include "slurm/script.h"

namespace lacuna::slurm {

/// One submission as DIR/slurm/jobs.json remembers it.
struct SubmittedJob {
  std::string id;    ///< As sbatch printed it; of the whole array.
  std::string kind;  ///< "run" or "merge"
  int array = 1;     ///< Array elements.
  std::string name, comment;
  std::string submitted;  ///< ISO 8601, UTC.
};

/// Oldest first; none when the folder has no jobs.json. Throws kUsage when the file is damaged.
std::vector<SubmittedJob> read_submitted_jobs(const std::string& out);

/// Writes the scripts into OUT/slurm. Throws kLibrary when the disk is full or not writable, and leaves no
/// half script.
void write_scripts(const Study& study, const SlurmOptions& options);

/// Submits the written scripts (an array with its merge job) and records them. Refuses while jobs of this
/// folder wait or run: two runs in one folder would do the same work twice. Returns the new jobs.
std::vector<SubmittedJob> submit(Cluster& cluster, const Study& study, const SlurmOptions& options);

/// Cancels the jobs of this folder that wait or run: those in jobs.json and those that somebody submitted by
/// hand from the same scripts. Each id is looked up first and cancelled only when its name and comment are
/// this folder's, so that an id that Slurm has given to another job meanwhile is left alone. Returns what was
/// cancelled.
std::vector<std::string> cancel(Cluster& cluster, const std::string& out);

}  // namespace lacuna::slurm
