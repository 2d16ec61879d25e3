#include "sweeps/cells.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <tuple>
#include <unordered_map>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"

namespace lacuna {

namespace {

template <class T>
bool selected(const std::vector<T>& only, const T& value) {
  return only.empty() || std::ranges::find(only, value) != only.end();
}

/// The name on the strategy axis: a budget in tokens belongs to it.
std::string axis_name(const SweepStrategy& strategy, const Budget& level) {
  if (level.kind != Budget::Kind::kTokens) return strategy.name;
  return fmt::format("{} tokens={:.0f}", strategy.name, level.value);
}

double requested_sparsity(const StrategySpec& spec, const Budget& level) {
  if (level.kind == Budget::Kind::kSparsity) return level.value;
  return phase_of(spec) == "dense" ? 0.0 : std::numeric_limits<double>::quiet_NaN();
}

/// Builds the lists of distinct things that cells point into.
class Expansion {
 public:
  Expansion(const Sweep& sweep, Grid& grid)
      : sweep_(sweep),
        grid_(grid),
        calibration_(sweep.calibration.is_null()
                         ? Document::parse(paper_calibration_yaml(), "the built-in calibration").root()
                         : sweep.calibration) {}

  void run() {
    for (std::size_t m = 0; m < sweep_.models.size(); ++m) {
      for (std::size_t t = 0; t < sweep_.tasks.size(); ++t) {
        for (std::size_t l = 0; l < sweep_.lengths.size(); ++l) expand_point(m, t, l);
      }
    }
    order_sparsities();
    set_keys();
  }

 private:
  void expand_point(std::size_t m, std::size_t t, std::size_t l) {
    const SweepModel& model = sweep_.models[m];
    const SweepTask& task = sweep_.tasks[t];
    const std::int64_t length = sweep_.lengths[l];
    if (!selected(model.lengths, length) || !selected(task.lengths, length)) return;
    for (std::size_t s = 0; s < sweep_.strategies.size(); ++s) {
      const SweepStrategy& strategy = sweep_.strategies[s];
      if (!selected(strategy.models, model.name) || !selected(strategy.tasks, task.name) ||
          !selected(strategy.lengths, length)) {
        continue;
      }
      for (std::size_t v = 0; v < strategy.levels.size(); ++v) {
        const Budget& level = strategy.levels[v];
        Cell cell;
        cell.model = static_cast<int>(m);
        cell.task = static_cast<int>(t);
        cell.length_index = static_cast<int>(l);
        cell.length = length;
        cell.level = level;
        cell.samples = task.samples.value_or(model.samples.value_or(sweep_.samples));
        cell.max_new_tokens = task.max_new_tokens.value_or(sweep_.max_new_tokens);
        const Resolved& resolved = resolve(s, v, length);
        cell.spec = resolved.spec;
        cell.problem = resolved.problem;
        cell.strategy = strategy_index(strategy, level);
        requested_.push_back(requested_sparsity(strategy.base, level));
        grid_.cells.push_back(std::move(cell));
      }
    }
  }

  struct Resolved {
    int spec = 0;
    std::string problem;
  };
  const Resolved& resolve(std::size_t s, std::size_t v, std::int64_t length) {
    const auto [it, is_new] = resolved_.try_emplace({s, v, length});
    if (is_new) {
      const SweepStrategy& strategy = sweep_.strategies[s];
      StrategySpec spec = strategy.base;
      try {
        spec = with_budget(strategy.base, strategy.levels[v], length, calibration_, strategy.name);
      } catch (const Error& e) {
        it->second.problem = e.what();
      }
      it->second.spec = spec_index(spec);
    }
    return it->second;
  }

  int spec_index(const StrategySpec& spec) {
    const auto [it, is_new] = specs_.try_emplace(to_json(spec).dump(), static_cast<int>(grid_.specs.size()));
    if (is_new) grid_.specs.push_back(spec);
    return it->second;
  }

  int strategy_index(const SweepStrategy& strategy, const Budget& level) {
    const std::string name = axis_name(strategy, level);
    const auto [it, is_new] = strategies_.try_emplace(name, static_cast<int>(grid_.strategies.size()));
    if (is_new) {
      grid_.strategies.push_back({name, std::string(phase_of(strategy.base)), strategy.base.prefill.method,
                                  strategy.base.evict.method, strategy.base.decode.method});
    }
    return it->second;
  }

  void order_sparsities() {
    bool has_nan = false;
    for (const double value : requested_) {
      if (std::isnan(value))
        has_nan = true;
      else
        grid_.sparsities.push_back(value);
    }
    std::ranges::sort(grid_.sparsities);
    const auto repeated = std::ranges::unique(grid_.sparsities);
    grid_.sparsities.erase(repeated.begin(), repeated.end());
    if (has_nan) grid_.sparsities.push_back(std::numeric_limits<double>::quiet_NaN());
    for (std::size_t i = 0; i < requested_.size(); ++i) {
      const auto index = std::isnan(requested_[i])
                             ? grid_.sparsities.size() - 1
                             : static_cast<std::size_t>(std::ranges::find(grid_.sparsities, requested_[i]) -
                                                        grid_.sparsities.begin());
      grid_.cells[i].sparsity_index = static_cast<int>(index);
    }
  }

  void set_keys() {
    // cell_settings() of each cell, with the parts that repeat dumped once.
    std::vector<std::string> specs;
    for (const auto& spec : grid_.specs) specs.push_back(to_json(spec).dump());
    std::map<std::tuple<int, int, int>, std::string> points;
    std::unordered_map<std::uint64_t, std::size_t> seen;
    for (std::size_t i = 0; i < grid_.cells.size(); ++i) {
      Cell& cell = grid_.cells[i];
      auto [point, is_new] = points.try_emplace({cell.model, cell.task, cell.length_index});
      if (is_new) {
        Json settings = cell_settings(sweep_, grid_, cell);
        settings.erase("strategy");
        point->second = settings.dump();
      }
      // The level is part of it: two levels may round to the same parameters and are still two cells.
      Hasher hasher;
      hasher.add(point->second).add(specs[static_cast<std::size_t>(cell.spec)]);
      hasher.add(fmt::format("{} {}", static_cast<int>(cell.level.kind), cell.level.value));
      cell.key = hasher.digest64();
      const auto [other, fresh] = seen.try_emplace(cell.key, i);
      if (!fresh) {
        throw_usage("{}: the cells '{}' and '{}' are the same in every setting; remove one", sweep_.name,
                    cell_name(sweep_, grid_, grid_.cells[other->second]), cell_name(sweep_, grid_, cell));
      }
    }
  }

  const Sweep& sweep_;
  Grid& grid_;
  const Json calibration_;
  std::map<std::tuple<std::size_t, std::size_t, std::int64_t>, Resolved> resolved_;
  std::unordered_map<std::string, int> specs_, strategies_;
  std::vector<double> requested_;  // per cell
};

void make_groups(const Sweep& sweep, const GridOptions& options, Grid& grid) {
  std::vector<std::string> prefills;
  for (const auto& spec : grid.specs)
    prefills.push_back(spec.prefill.method + " " + spec.prefill.params.to_json().dump());
  std::unordered_map<std::string, int> groups, loads;
  for (std::size_t i = 0; i < grid.cells.size(); ++i) {
    const Cell& cell = grid.cells[i];
    if (!cell.problem.empty()) continue;
    const std::string rope =
        rope_for(sweep.models[static_cast<std::size_t>(cell.model)], cell.length, cell.max_new_tokens);
    const auto [load, new_load] =
        loads.try_emplace(fmt::format("{} {}", cell.model, rope), static_cast<int>(grid.loads.size()));
    if (new_load) grid.loads.push_back({cell.model, rope});
    std::string name = fmt::format("{} {} {} {}", cell.model, cell.task, cell.length_index,
                                   prefills[static_cast<std::size_t>(cell.spec)]);
    if (!options.share_prefills) name += fmt::format(" {}", i);
    const auto [group, is_new] = groups.try_emplace(name, static_cast<int>(grid.groups.size()));
    if (is_new) {
      grid.groups.push_back({cell.model,
                             cell.task,
                             cell.length_index,
                             cell.length,
                             cell.max_new_tokens,
                             load->second,
                             cell.spec,
                             {}});
    }
    grid.groups[static_cast<std::size_t>(group->second)].cells.push_back(static_cast<int>(i));
  }
}

}  // namespace

std::int64_t Grid::samples() const {
  std::int64_t total = 0;
  for (const auto& cell : cells) total += cell.samples;
  return total;
}

Json cell_settings(const Sweep& sweep, const Grid& grid, const Cell& cell) {
  const SweepModel& model = sweep.models[static_cast<std::size_t>(cell.model)];
  const SweepTask& task = sweep.tasks[static_cast<std::size_t>(cell.task)];
  Json params = task.params.to_json();
  if (const auto data = params.find("data"); data != params.end() && data->is_string()) {
    *data = std::filesystem::path(data->get<std::string>()).filename().string();
  }
  return {{"model", model.name},
          {"dtype", model.dtype},
          {"device", model.device},
          {"chat", model.chat},
          {"rope", rope_for(model, cell.length, cell.max_new_tokens)},
          {"task", task.task},
          {"params", std::move(params)},
          {"length", cell.length},
          {"seed", sweep.seed},
          {"max_new_tokens", cell.max_new_tokens},
          {"strategy", to_json(grid.specs[static_cast<std::size_t>(cell.spec)])}};
}

Grid expand(const Sweep& sweep, const GridOptions& options) {
  Grid grid;
  Expansion(sweep, grid).run();
  LACUNA_REQUIRE(!grid.cells.empty(),
                 "{}: the sweep has no cells: its lengths, models and tasks leave nothing over", sweep.name);
  make_groups(sweep, options, grid);
  return grid;
}

void split_groups(Grid& grid, const std::function<int(const JobGroup&)>& most) {
  std::vector<JobGroup> split;
  for (auto& group : grid.groups) {
    const auto limit = static_cast<std::size_t>(most(group));
    LACUNA_CHECK(limit >= 1, "a job of no cells");
    if (group.cells.size() <= limit) {
      split.push_back(std::move(group));
      continue;
    }
    // Equal parts rather than full ones and a small rest: every part pays one prefill.
    const std::size_t parts = (group.cells.size() + limit - 1) / limit;
    for (std::size_t p = 0; p < parts; ++p) {
      JobGroup part = group;
      const std::size_t begin = group.cells.size() * p / parts, end = group.cells.size() * (p + 1) / parts;
      part.cells.assign(group.cells.begin() + static_cast<std::ptrdiff_t>(begin),
                        group.cells.begin() + static_cast<std::ptrdiff_t>(end));
      split.push_back(std::move(part));
    }
  }
  grid.groups = std::move(split);
}

std::string cell_name(const Sweep& sweep, const Grid& grid, const Cell& cell) {
  std::string name = fmt::format("{} {} {} {}", sweep.models[static_cast<std::size_t>(cell.model)].name,
                                 sweep.tasks[static_cast<std::size_t>(cell.task)].name, cell.length,
                                 grid.strategies[static_cast<std::size_t>(cell.strategy)].name);
  if (cell.level.kind == Budget::Kind::kSparsity) name += fmt::format(" sparsity={:g}", cell.level.value);
  return name;
}

}  // namespace lacuna
