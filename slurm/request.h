// Does what is asked of the cluster fit the study? Refuses what cannot run or would leave GPUs idle, and says
// what would be better.
#pragma once

#include <string>
#include <vector>

#include "slurm/cluster.h"
#include "slurm/options.h"

namespace lacuna::slurm {

/// What one model of the study needs, from the plan.
struct ModelDemand {
  std::string name;
  int tp = 1;
  long long jobs = 0;      ///< That are left to run.
  double job_seconds = 0;  ///< All of them together on one team; 0: unknown.
  double longest_job_seconds = 0;
};

struct StudyDemand {
  std::vector<ModelDemand> models;
  long long samples = 0;     ///< Left to run; decides the disk space.
  bool times_known = false;  ///< Lower bounds, from the speed on the data sheet.
};

/// How well `ranks` GPUs in jobs of `options` would be used: share of GPU time, from the longest-first
/// schedule of whole jobs over teams. 1 when nothing is known. `ranks` counts one array element; elements
/// share the jobs evenly.
double expected_utilisation(const StudyDemand& demand, int nodes, int gpus_per_node, int array);
/// Hours from first start to end, waiting times not counted; 0 when unknown.
double expected_hours(const StudyDemand& demand, int nodes, int gpus_per_node, int array);

/// Throws kUsage with what is wrong and a request that works. `allow_idle` skips only the complaint about
/// idle GPUs. Returns remarks that do not forbid the request.
std::vector<std::string> check_study(const SlurmOptions& options, const StudyDemand& demand, bool allow_idle);

/// Checks partition, node shape, node count and time limit against the cluster, and fills in cpus_per_gpu
/// (the GPUs' share of a node) where it is open. `gpu_memory_gib` is filled from the type of the partition's
/// GPUs.
void check_cluster(SlurmOptions& options, const std::vector<NodeGroup>& groups);

/// Throws kResource when the file system of `folder` has no room for the results. `samples` at about 4 KiB
/// each.
void check_space(const std::string& folder, long long samples);

}  // namespace lacuna::slurm
