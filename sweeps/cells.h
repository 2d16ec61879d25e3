// The grid of a sweep: its cells, and the jobs that compute them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sweeps/sweep.h"

namespace lacuna {

/// One (model, task, length, strategy, level). A sample's result is a function of (cell, sample number)
/// alone.
struct Cell {
  std::uint64_t key = 0;  ///< Hash of the settings that decide the result; see cell_settings().
  int model = 0, task = 0, length_index = 0;  ///< Into the sweep's lists.
  int strategy = 0;                           ///< Into Grid::strategies.
  int sparsity_index = 0;                     ///< Into Grid::sparsities.
  int spec = 0;                               ///< Into Grid::specs.
  Budget level;
  int samples = 0, max_new_tokens = 0;
  std::int64_t length = 0;
  std::string problem;  ///< Not empty: the cell cannot run, and why.
};

/// One value of the cube's strategy axis.
struct GridStrategy {
  std::string name, phase, prefill, evict, decode;
};

/// All jobs that differ only in the sample: one prefill each, and every cell that can share it.
struct JobGroup {
  int model = 0, task = 0, length_index = 0;
  std::int64_t length = 0;
  int max_new_tokens = 0;
  int load = 0;            ///< Into Grid::loads.
  int prefill_spec = 0;    ///< Into Grid::specs; all cells agree on its prefill slot.
  std::vector<int> cells;  ///< In the grid's order.
};

/// A model as it must be loaded: RoPE settings can depend on the length.
struct ModelLoad {
  int model = 0;
  std::string rope;  ///< Override as JSON text, or empty.
};

struct Grid {
  std::vector<Cell> cells;
  std::vector<JobGroup> groups;
  std::vector<ModelLoad> loads;
  std::vector<StrategySpec> specs;       ///< Distinct resolved strategies.
  std::vector<GridStrategy> strategies;  ///< In order of appearance.
  std::vector<double> sparsities;        ///< Ascending; a last NaN when a cell has no requested sparsity.

  std::int64_t samples() const;
};

struct GridOptions {
  bool share_prefills = true;  ///< false: every cell in a job of its own, for comparison.
};

/// Expands a sweep. Two cells of equal settings are an error (kUsage) that names both.
Grid expand(const Sweep& sweep, const GridOptions& options = {});

/// What decides a cell's result and so its key. Paths are not in it (folders move; fingerprints are compared
/// instead), nor the tensor-parallel degree and the number of samples.
nlohmann::json cell_settings(const Sweep& sweep, const Grid& grid, const Cell& cell);

/// Cuts groups with more cells than fit into memory at once. `most(group)` gives the largest number of cells
/// for one job of the group, at least 1.
void split_groups(Grid& grid, const std::function<int(const JobGroup&)>& most);

/// "model task length strategy level", for people.
std::string cell_name(const Sweep& sweep, const Grid& grid, const Cell& cell);

}  // namespace lacuna
