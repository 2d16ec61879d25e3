#include "slurm/request.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/text.h"

namespace lacuna::slurm {
namespace {

/// Share of GPU time that must be in use for a request to pass.
constexpr double kLeastUtilisation = 0.5;
/// What a proposal should reach.
constexpr double kGoodUtilisation = 0.8;
/// Journal line, row of results.h5 and texts of one sample.
constexpr double kBytesPerSample = 4096;
constexpr double kLeastFreeBytes = 64.0 * 1024 * 1024;
constexpr int kMostCpusPerGpu = 16;

/// The most GPUs of a node that teams of these degrees can fill together. A degree larger than the node takes
/// it whole.
int fillable_gpus(const StudyDemand& demand, int gpus_per_node) {
  std::vector<bool> reachable(static_cast<std::size_t>(gpus_per_node) + 1);
  reachable[0] = true;
  for (int gpus = 1; gpus <= gpus_per_node; ++gpus) {
    for (const auto& model : demand.models) {
      const int part = model.tp <= gpus_per_node ? model.tp : gpus_per_node;
      if (model.jobs > 0 && gpus >= part && reachable[static_cast<std::size_t>(gpus - part)]) {
        reachable[static_cast<std::size_t>(gpus)] = true;
      }
    }
  }
  int best = 0;
  for (int gpus = 0; gpus <= gpus_per_node; ++gpus) {
    if (reachable[static_cast<std::size_t>(gpus)]) best = gpus;
  }
  return best;
}

/// GPU-seconds of all jobs, or GPU-jobs when no times are known.
double total_work(const StudyDemand& demand) {
  double work = 0;
  for (const auto& m : demand.models) {
    work += static_cast<double>(m.tp) * (demand.times_known ? m.job_seconds : static_cast<double>(m.jobs));
  }
  return work;
}

/// No schedule is shorter: all work evenly over all GPUs, the longest job, and per model its jobs in whole
/// rounds over the teams there can be.
double shortest_makespan(const StudyDemand& demand, int nodes, int gpus_per_node, int array) {
  const double ranks = static_cast<double>(nodes) * gpus_per_node * array;
  const int usable = fillable_gpus(demand, gpus_per_node);
  double makespan = total_work(demand) / (ranks * std::max(1, usable) / gpus_per_node);
  for (const auto& m : demand.models) {
    if (m.jobs == 0) continue;
    const int per_element =
        m.tp <= gpus_per_node ? nodes * (gpus_per_node / m.tp) : nodes * gpus_per_node / m.tp;
    const double teams = std::max(1, per_element) * static_cast<double>(array);
    const double mean = demand.times_known ? m.job_seconds / static_cast<double>(m.jobs) : 1;
    const double longest = demand.times_known ? std::max(mean, m.longest_job_seconds) : 1;
    makespan = std::max({makespan, longest, mean * std::ceil(static_cast<double>(m.jobs) / teams)});
  }
  return makespan;
}

std::string shape_text(int nodes, int gpus) {
  return fmt::format("--nodes {} --gpus-per-node {}", nodes, gpus);
}

bool fits_teams(const StudyDemand& demand, int nodes, int gpus_per_node) {
  return std::all_of(demand.models.begin(), demand.models.end(),
                     [&](const auto& m) { return m.tp <= nodes * gpus_per_node; }) &&
         fillable_gpus(demand, gpus_per_node) == gpus_per_node;
}

/// The request that ends first while it keeps most of its GPUs busy; of equals the one with the fewest GPUs.
/// Nodes have at most as many GPUs as asked for.
std::string better_request(const SlurmOptions& options, const StudyDemand& demand, long long jobs) {
  int widest = 1;
  for (const auto& model : demand.models) widest = std::max(widest, model.tp);
  const int enough_nodes = (widest + options.gpus_per_node - 1) / options.gpus_per_node;
  const int most_array = static_cast<int>(std::min<long long>(options.array, jobs));
  struct {
    double makespan = std::numeric_limits<double>::infinity();
    long long gpus = 0;
    int nodes = 0, per_node = 0, array = 1;
  } best;
  // Near to what was asked first; then more nodes, then less well used.
  const struct {
    int nodes;
    double utilisation;
  } limits[] = {{std::max(options.nodes, enough_nodes), kGoodUtilisation},
                {std::max(options.nodes, enough_nodes), kLeastUtilisation},
                {std::max(options.nodes, widest), kLeastUtilisation}};
  for (const auto& limit : limits) {
    for (int array = 1; array <= most_array; ++array) {
      for (int nodes = 1; nodes <= limit.nodes; ++nodes) {
        for (int per_node = options.gpus_per_node; per_node >= 1; --per_node) {
          if (!fits_teams(demand, nodes, per_node)) continue;
          if (expected_utilisation(demand, nodes, per_node, array) < limit.utilisation) continue;
          const double makespan = shortest_makespan(demand, nodes, per_node, array);
          const long long gpus = static_cast<long long>(nodes) * per_node * array;
          const bool better = makespan < best.makespan * (1 - 1e-9);
          const bool equal = makespan <= best.makespan * (1 + 1e-9);
          if (better || (equal && gpus < best.gpus)) best = {makespan, gpus, nodes, per_node, array};
        }
      }
    }
    if (best.nodes > 0) break;
  }
  if (best.nodes == 0) return fmt::format("nodes with {} GPUs", widest);
  return shape_text(best.nodes, best.per_node) +
         (options.array > 1 ? fmt::format(" --array {}", best.array) : "");
}

}  // namespace

double expected_utilisation(const StudyDemand& demand, int nodes, int gpus_per_node, int array) {
  const double work = total_work(demand);
  if (work <= 0) return 1;
  const double ranks = static_cast<double>(nodes) * gpus_per_node * array;
  return work / (ranks * shortest_makespan(demand, nodes, gpus_per_node, array));
}

double expected_hours(const StudyDemand& demand, int nodes, int gpus_per_node, int array) {
  return demand.times_known ? shortest_makespan(demand, nodes, gpus_per_node, array) / 3600 : 0;
}

std::vector<std::string> check_study(const SlurmOptions& options, const StudyDemand& demand,
                                     bool allow_idle) {
  std::vector<std::string> remarks;
  const auto limit = parse_time(options.time, "--time");
  long long jobs = 0;
  for (const auto& model : demand.models) jobs += model.jobs;
  LACUNA_REQUIRE(jobs > 0, "nothing is left to run: every sample of this study is finished");
  for (const auto& model : demand.models) {
    LACUNA_REQUIRE(model.tp <= options.ranks(),
                   "model '{}' needs tp {}, but {} node(s) x {} GPU(s) are only {} ranks; use {}", model.name,
                   model.tp, options.nodes, options.gpus_per_node, options.ranks(),
                   better_request(options, demand, jobs));
    if (model.tp > options.gpus_per_node) {
      remarks.push_back(
          fmt::format("model '{}': its teams of {} span nodes of {} GPUs; one node with {} would be faster",
                      model.name, model.tp, options.gpus_per_node, model.tp));
    }
    if (!demand.times_known) continue;
    const double longest = model.longest_job_seconds;
    LACUNA_REQUIRE(
        !limit || longest <= static_cast<double>(*limit),
        "model '{}': its longest job takes at least {}, which never ends within --time {}; use --time {}",
        model.name, format_seconds(longest), options.time, format_time(static_cast<long long>(longest * 2)));
    if (longest > options.signal_seconds) {
      remarks.push_back(
          fmt::format("model '{}': its longest job takes at least {}, longer than the {} s of warning before "
                      "the time limit: what runs "
                      "then is lost and runs again; --signal {}@{} would let it end",
                      model.name, format_seconds(longest), options.signal_seconds, options.signal,
                      static_cast<long long>(longest * 2)));
    }
  }
  LACUNA_REQUIRE(options.array <= jobs, "--array {}: the study has only {} jobs; use {}", options.array, jobs,
                 better_request(options, demand, jobs));
  if (allow_idle) return remarks;

  const int usable = fillable_gpus(demand, options.gpus_per_node);
  if (usable < options.gpus_per_node) {
    throw_usage(
        "{} of the {} GPUs of every node would idle: teams of tp {} do not fill them; use {} (or "
        "--allow-idle)",
        options.gpus_per_node - usable, options.gpus_per_node, demand.models.front().tp,
        better_request(options, demand, jobs));
  }
  const double utilisation =
      expected_utilisation(demand, options.nodes, options.gpus_per_node, options.array);
  if (utilisation < kLeastUtilisation) {
    throw_usage(
        "{} GPUs would be busy only {:.0f} % of the time: the study has {} jobs; use {} (or --allow-idle)",
        options.ranks() * options.array, utilisation * 100, jobs, better_request(options, demand, jobs));
  }
  return remarks;
}

void check_cluster(SlurmOptions& options, const std::vector<NodeGroup>& groups) {
  std::vector<std::string> names;
  std::string default_partition;
  for (const auto& group : groups) {
    if (std::find(names.begin(), names.end(), group.partition) == names.end())
      names.push_back(group.partition);
    if (group.is_default) default_partition = group.partition;
  }
  std::vector<std::string> asked = split(options.partition, ',');
  if (options.partition.empty()) asked = {default_partition};
  LACUNA_REQUIRE(!asked[0].empty(), "this cluster has no default partition: use --partition ({})",
                 fmt::join(names, ", "));

  int most_gpus = 0, matching = 0, cpus = 0;
  std::optional<long long> longest;
  bool unlimited = false;
  for (const auto& partition : asked) {
    LACUNA_REQUIRE(std::find(names.begin(), names.end(), partition) != names.end(), "--partition: {}",
                   unknown_name_message("partition", partition, names));
    for (const auto& group : groups) {
      if (group.partition != partition) continue;
      LACUNA_REQUIRE(group.up, "--partition: '{}' is down", partition);
      if (!group.time_limit) unlimited = true;
      if (group.time_limit) longest = std::max(longest.value_or(0), *group.time_limit);
      const int gpus = group.gpu_count(options.gpu_type);
      most_gpus = std::max(most_gpus, gpus);
      if (gpus < options.gpus_per_node) continue;
      matching += group.nodes;
      const int share = std::max(1, group.cpus / gpus);
      cpus = cpus == 0 ? share : std::min(cpus, share);
      if (!options.gpu_memory_gib) {
        for (const auto& [type, count] : group.gpus) {
          const auto known = gpu_memory_by_type(type);
          if (count > 0 && known && (options.gpu_type.empty() || type == options.gpu_type))
            options.gpu_memory_gib = known;
        }
      }
    }
  }
  const std::string where = fmt::format("{}", fmt::join(asked, ","));
  const std::string kind = options.gpu_type.empty() ? "" : options.gpu_type + " ";
  LACUNA_REQUIRE(most_gpus > 0, "partition '{}' has no {}GPUs (see: sinfo -o '%P %G')", where, kind);
  LACUNA_REQUIRE(options.gpus_per_node <= most_gpus,
                 "--gpus-per-node {}: a node of partition '{}' has {} {}GPUs; use {}", options.gpus_per_node,
                 where, most_gpus, kind,
                 shape_text((options.ranks() + most_gpus - 1) / most_gpus, most_gpus));
  LACUNA_REQUIRE(options.nodes <= matching,
                 "--nodes {}: partition '{}' has {} nodes with {} {}GPUs; use --nodes {}", options.nodes,
                 where, matching, options.gpus_per_node, kind, matching);
  const auto time = parse_time(options.time, "--time");
  LACUNA_REQUIRE(
      unlimited || !longest || (time && *time <= *longest),
      "--time {}: partition '{}' allows at most {}; use --time {} (a longer study starts again by itself)",
      options.time, where, format_time(*longest), format_time(*longest));
  if (options.cpus_per_gpu == 0) options.cpus_per_gpu = std::min(cpus, kMostCpusPerGpu);
}

void check_space(const std::string& folder, long long samples) {
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) return;  // some file systems do not say; writing will tell
  const double have = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
  const double need = std::max(kLeastFreeBytes, static_cast<double>(samples) * kBytesPerSample);
  if (have < need) {
    throw_resource(
        "{}: only {} free, the results of {} samples need about {}; make room or use another --out", folder,
        format_bytes(have), samples, format_bytes(need));
  }
}

}  // namespace lacuna::slurm
