// Does what is asked of the cluster fit the study? Refuses what cannot run or would leave GPUs idle, and says
// what would be better.
#pragma once

#include <string>
#include <vector>

#include "slurm/cluster.h"
#include "slurm/options.h"

namespace lacuna::slurm {

/// Jobs that are left to run and take equally long.
struct JobDemand {
  long long jobs = 0;
  double seconds = 0;  ///< Of one job on one team; without meaning when times are not known.
};

/// What one model of the study needs, from the plan.
struct ModelDemand {
  std::string name;
  int tp = 1;
  double load_seconds = 0;
  std::vector<JobDemand> jobs;

  long long job_count() const;
  double longest_job_seconds() const;
};

struct StudyDemand {
  std::vector<ModelDemand> models;
  long long samples = 0;     ///< Left to run; decides the disk space.
  bool times_known = false;  ///< Lower bounds, from the speed on the data sheet.
};

/// What the scheduler of the run (runner/scheduler.h) makes of the study, under a simulated clock.
struct Forecast {
  double utilisation = 1;  ///< Share of GPU time in which models load or jobs run.
  double hours = 0;        ///< From first start to end, waiting times not counted; 0 when unknown.
};
/// `array` Slurm jobs of `nodes` x `gpus_per_node` GPUs share the study's jobs evenly; each gives its GPUs
/// back when it ends. Where times are not known every job counts as equally long.
Forecast forecast(const StudyDemand& demand, int nodes, int gpus_per_node, int array);

/// Throws kUsage with what is wrong and a request that works. `allow_idle` skips only the complaint about
/// idle GPUs; a study that no request would serve better is remarked on, not refused. Returns remarks that do
/// not forbid the request.
std::vector<std::string> check_study(const SlurmOptions& options, const StudyDemand& demand, bool allow_idle);

/// Checks partition, node shape, node count and time limit against the cluster, and fills in cpus_per_gpu
/// (the GPUs' share of a node) where it is open. `gpu_memory_gib` is filled from the type of the partition's
/// GPUs.
void check_cluster(SlurmOptions& options, const std::vector<NodeGroup>& groups);

/// Throws kResource when the file system of `folder` has no room for the results. `samples` at about 4 KiB
/// each.
void check_space(const std::string& folder, long long samples);

}  // namespace lacuna::slurm
