// Before anything is loaded: which cells cannot run and why, what memory jobs need, what they will cost.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/engine.h"
#include "runner/scheduler.h"
#include "runner/services.h"
#include "sweeps/cells.h"
#include "sweeps/cost_model.h"

namespace lacuna {

/// What the sweep will run on.
struct Hardware {
  Device device = Device::kCpu;
  int ranks = 1;
  std::int64_t memory = 0;  ///< Bytes per rank, the smallest of all; 0: unknown, nothing is refused.
  HardwareProfile profile;
};

/// One model of the sweep, looked at but not loaded.
struct ModelCheck {
  std::optional<ModelFacts> facts;  ///< From the folder.
  std::optional<ModelShape> shape;  ///< From the folder, or from `shape:` in the sweep.
  std::string problem;              ///< Why it cannot run.
};

/// Estimates for one job of a group.
struct JobCost {
  double seconds = 0;  ///< On one team.
  double prefill_seconds = 0;
  double flops = 0;         ///< Prefill and decode, as the kernels count.
  double bytes = 0;         ///< Read by decode steps.
  std::int64_t memory = 0;  ///< Per rank; 0: unknown.
};

struct Preflight {
  std::vector<ModelCheck> models;         ///< Of the sweep.
  std::vector<std::string> notes;         ///< For plans: data files that are not here.
  std::vector<std::string> cell_problem;  ///< Of the grid; empty: can run.
  std::vector<MemoryPlan> plans;          ///< Of the groups, per rank.
  std::vector<JobCost> costs;             ///< Of the grid's groups, after they were split for memory.

  bool can_run(int cell) const { return cell_problem[static_cast<std::size_t>(cell)].empty(); }
};

/// Checks every model folder, data file and memory plan, and splits the grid's groups for memory. Never
/// throws for what is wrong with a cell. `for_plan`: a model whose folder is not here is judged by its shape.
/// `answer_tokens`: how long answers are taken to be in estimates of time; 0: as long as they may be.
Preflight check_sweep(const Sweep& sweep, Grid& grid, const ModelServices& services, const Hardware& hardware,
                      bool for_plan, double answer_tokens = 0);

/// Leaving-out that a resolved strategy intends, as far as its level or a budget in tokens says it: for
/// estimates only.
struct IntendedSparsity {
  double prefill = 0, decode = 0;
};
IntendedSparsity intended_sparsity(const StrategySpec& spec, const Budget& level, std::int64_t length);

/// For CPU runs without a measured profile: about what two cores do. Good for the order of jobs, not for
/// promises.
HardwareProfile cpu_profile_guess();

/// A profile file (anything with a dot or a slash in its name), or a data sheet's by name.
HardwareProfile find_profile(const std::string& file_or_name);
/// The same, or for "" what stands in for a measured one. Throws kUsage when the file was measured on another
/// kind of device.
HardwareProfile choose_profile(const std::string& file_or_name, Device device);

/// Seconds to load a model's shard from disk, at the profile's rate or kLoadBytesPerSecond.
inline constexpr double kLoadBytesPerSecond = 1e9;
double load_seconds(const ModelShape& shape, int tp, double element_bytes,
                    const HardwareProfile& profile = {});

/// Bytes per element of weights and cache on a device.
inline double element_bytes(Device device) { return device == Device::kCpu ? 4 : 2; }

}  // namespace lacuna
