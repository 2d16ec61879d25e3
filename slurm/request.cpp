#include "slurm/request.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/text.h"
#include "runner/simulate.h"

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
      if (model.job_count() > 0 && gpus >= part && reachable[static_cast<std::size_t>(gpus - part)]) {
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

double seconds_of(const StudyDemand& demand, const JobDemand& jobs) {
  return demand.times_known ? jobs.seconds : 1;
}

double work_seconds(const StudyDemand& demand) {
  double work = 0;
  for (const auto& model : demand.models) {
    for (const auto& jobs : model.jobs)
      work += seconds_of(demand, jobs) * model.tp * static_cast<double>(jobs.jobs);
  }
  return work;
}

/// No schedule is shorter: all work evenly over all GPUs, and the longest job. Tells without a simulation
/// which requests are not worth one.
double shortest_makespan(const StudyDemand& demand, int nodes, int gpus_per_node, int array) {
  double longest = demand.times_known ? 0 : 1;
  for (const auto& model : demand.models) {
    if (demand.times_known) longest = std::max(longest, model.longest_job_seconds());
  }
  return std::max(work_seconds(demand) / (static_cast<double>(nodes) * gpus_per_node * array), longest);
}

/// As forecast(), with hours also where times are not known: of jobs of one second each.
Forecast simulated(const StudyDemand& demand, int nodes, int gpus_per_node, int array) {
  std::vector<Scheduler::Rank> ranks;
  for (int node = 0; node < nodes; ++node) {
    for (int gpu = 0; gpu < gpus_per_node; ++gpu) ranks.push_back({node, 0});
  }
  std::vector<Scheduler::Model> models;
  for (const auto& model : demand.models)
    models.push_back({model.tp, demand.times_known ? model.load_seconds : 0});
  double used = 0, held = 0, makespan = 0;
  for (int element = 0; element < array; ++element) {
    std::vector<Scheduler::Group> groups;
    long long dealt = 0;  // jobs are dealt out to the elements like cards, whatever their kind
    for (std::size_t m = 0; m < demand.models.size(); ++m) {
      for (const auto& jobs : demand.models[m].jobs) {
        const long long first = (element - dealt % array + array) % array;
        const long long count = jobs.jobs > first ? (jobs.jobs - first + array - 1) / array : 0;
        dealt += jobs.jobs;
        if (count == 0) continue;
        groups.push_back({static_cast<int>(m), seconds_of(demand, jobs), 0,
                          std::vector<std::int32_t>(static_cast<std::size_t>(count))});
      }
    }
    const Simulation simulation = simulate(ranks, models, groups);
    used += simulation.busy + simulation.loading;
    held += simulation.makespan * static_cast<double>(ranks.size());
    makespan = std::max(makespan, simulation.makespan);
  }
  return {held > 0 ? used / held : 1, makespan / 3600};
}

std::string shape_text(int nodes, int gpus) {
  return fmt::format("--nodes {} --gpus-per-node {}", nodes, gpus);
}

bool fits_teams(const StudyDemand& demand, int nodes, int gpus_per_node) {
  return std::all_of(demand.models.begin(), demand.models.end(),
                     [&](const auto& m) { return m.tp <= nodes * gpus_per_node; }) &&
         fillable_gpus(demand, gpus_per_node) == gpus_per_node;
}

struct Request {
  int nodes = 0, gpus_per_node = 0, array = 1;
  long long gpus() const { return static_cast<long long>(nodes) * gpus_per_node * array; }
};

/// Of `requests`, the one that ends first and keeps at least `least_utilisation` of its GPUs busy; of equals
/// the one with the fewest GPUs. Nothing when there is none.
std::optional<Request> quickest(const StudyDemand& demand, const std::vector<Request>& requests,
                                double least_utilisation) {
  std::vector<std::pair<double, Request>> by_bound;
  for (const auto& r : requests)
    by_bound.emplace_back(shortest_makespan(demand, r.nodes, r.gpus_per_node, r.array), r);
  std::ranges::stable_sort(by_bound, [](const auto& a, const auto& b) { return a.first < b.first; });
  std::optional<Request> best;
  double hours = std::numeric_limits<double>::infinity();
  for (const auto& [bound, request] : by_bound) {
    if (bound / 3600 > hours * (1 + 1e-9)) break;  // all that follow end later
    const Forecast seen = simulated(demand, request.nodes, request.gpus_per_node, request.array);
    if (seen.utilisation < least_utilisation) continue;
    const bool equal = seen.hours <= hours * (1 + 1e-9) && seen.hours >= hours * (1 - 1e-9);
    if (!best || (equal ? request.gpus() < best->gpus() : seen.hours < hours)) {
      best = request;
      hours = seen.hours;
    }
  }
  return best;
}

/// The request that ends first while it keeps most of its GPUs busy. Nodes have at most as many GPUs as asked
/// for. Nothing when every request leaves them idle.
std::optional<Request> better_request(const SlurmOptions& options, const StudyDemand& demand,
                                      long long jobs) {
  int widest = 1;
  for (const auto& model : demand.models) widest = std::max(widest, model.tp);
  const int enough_nodes = (widest + options.gpus_per_node - 1) / options.gpus_per_node;
  const int most_array = static_cast<int>(std::min<long long>(options.array, jobs));
  const auto requests = [&](int most_nodes) {
    std::vector<Request> all;
    for (int array = 1; array <= most_array; ++array) {
      for (int nodes = 1; nodes <= most_nodes; ++nodes) {
        for (int per_node = options.gpus_per_node; per_node >= 1; --per_node) {
          if (fits_teams(demand, nodes, per_node)) all.push_back({nodes, per_node, array});
        }
      }
    }
    return all;
  };
  // Near to what was asked first; then less well used; then more nodes.
  const auto near = requests(std::max(options.nodes, enough_nodes));
  if (const auto found = quickest(demand, near, kGoodUtilisation)) return found;
  if (const auto found = quickest(demand, near, kLeastUtilisation)) return found;
  return quickest(demand, requests(std::max(options.nodes, widest)), kLeastUtilisation);
}

std::string proposal_text(const SlurmOptions& options, const StudyDemand& demand, long long jobs) {
  const auto better = better_request(options, demand, jobs);
  if (better) {
    return shape_text(better->nodes, better->gpus_per_node) +
           (options.array > 1 ? fmt::format(" --array {}", better->array) : "");
  }
  int widest = 1;
  for (const auto& model : demand.models) widest = std::max(widest, model.tp);
  return fmt::format("nodes with {} GPUs", widest);
}

}  // namespace

long long ModelDemand::job_count() const {
  long long count = 0;
  for (const auto& kind : jobs) count += kind.jobs;
  return count;
}

double ModelDemand::longest_job_seconds() const {
  double longest = 0;
  for (const auto& kind : jobs) {
    if (kind.jobs > 0) longest = std::max(longest, kind.seconds);
  }
  return longest;
}

Forecast forecast(const StudyDemand& demand, int nodes, int gpus_per_node, int array) {
  Forecast seen = simulated(demand, nodes, gpus_per_node, array);
  if (!demand.times_known) seen.hours = 0;  // of equally long jobs of one second
  return seen;
}

std::vector<std::string> check_study(const SlurmOptions& options, const StudyDemand& demand,
                                     bool allow_idle) {
  std::vector<std::string> remarks;
  const auto limit = parse_time(options.time, "--time");
  long long jobs = 0;
  for (const auto& model : demand.models) jobs += model.job_count();
  LACUNA_REQUIRE(jobs > 0, "nothing is left to run: every sample of this study is finished");
  for (const auto& model : demand.models) {
    LACUNA_REQUIRE(model.tp <= options.ranks(),
                   "model '{}' needs tp {}, but {} node(s) x {} GPU(s) are only {} ranks; use {}", model.name,
                   model.tp, options.nodes, options.gpus_per_node, options.ranks(),
                   proposal_text(options, demand, jobs));
    if (model.tp > options.gpus_per_node) {
      remarks.push_back(
          fmt::format("model '{}': its teams of {} span nodes of {} GPUs; one node with {} would be faster",
                      model.name, model.tp, options.gpus_per_node, model.tp));
    }
    if (!demand.times_known) continue;
    const double longest = model.longest_job_seconds();
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
                 proposal_text(options, demand, jobs));
  if (allow_idle) return remarks;

  const int usable = fillable_gpus(demand, options.gpus_per_node);
  if (usable < options.gpus_per_node) {
    throw_usage(
        "{} of the {} GPUs of every node would idle: teams of tp {} do not fill them; use {} (or "
        "--allow-idle)",
        options.gpus_per_node - usable, options.gpus_per_node, demand.models.front().tp,
        proposal_text(options, demand, jobs));
  }
  const double utilisation =
      forecast(demand, options.nodes, options.gpus_per_node, options.array).utilisation;
  if (utilisation < kLeastUtilisation) {
    const std::string complaint = fmt::format(
        "{} GPUs would be busy only {:.0f} % of the time: the study has {} jobs{}",
        options.ranks() * options.array, utilisation * 100, jobs,
        demand.times_known
            ? fmt::format(", at peak speed {} of one GPU's work", format_seconds(work_seconds(demand)))
            : "");
    const auto better = better_request(options, demand, jobs);
    if (better) throw_usage("{}; use {} (or --allow-idle)", complaint, proposal_text(options, demand, jobs));
    remarks.push_back(complaint + ", and no other request would use them much better");
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
