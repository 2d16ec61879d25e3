// isoFLOPS / isoCost: score against cost of every configuration at one length, what is best for a budget, and
// from which length on a larger sparse model beats a smaller dense one (arXiv 2504.17768, "isoFLOPS
// analysis").
#pragma once

#include <string>
#include <vector>

#include "analysis/options.h"
#include "analysis/result_table.h"
#include "analysis/statistics.h"
#include "core/thread_pool.h"

namespace lacuna {

/// One (model, strategy, level), its tasks averaged with equal weight.
struct Configuration {
  int model = 0;
  int strategy = 0;
  int method = 0;
  double nominal = 0;
  bool dense = false;
  double sparsity = 0;  ///< Measured, mean over tasks
  double cost = 0;      ///< Mean over tasks
  double score = 0;     ///< Mean over tasks
  double sem = 0;       ///< Of that mean, tasks independent
  bool frontier = false;
  std::vector<const ResultCell*> cells;  ///< One per task of the panel
};

/// All configurations of one length and phase; dense ones belong to every phase.
struct CostPanel {
  std::int64_t length = 0;
  Phase phase = Phase::kPrefill;
  std::string unit;
  std::vector<int> tasks;  ///< Every configuration of the panel has all of them.
  std::vector<Configuration> points;
};

struct BudgetChoice {
  std::size_t panel = 0;
  std::string budget_name;  ///< "cost of dense NAME" or "--budget"
  double budget = 0;
  int best = -1;       ///< Into the panel's points; -1: nothing fits
  int reference = -1;  ///< The dense configuration the budget comes from; -1 for --budget
};

/// Larger sparse against smaller dense at no more than its cost.
struct Crossover {
  Phase phase = Phase::kPrefill;
  int small = 0, large = 0;  ///< Models
  struct AtLength {
    std::int64_t length = 0;
    double advantage =
        0;  ///< Score of the best affordable sparse `large` minus dense `small`; NaN: none affordable
    stats::Interval interval;
    int best = -1;  ///< Into the panel's points
  };
  std::vector<AtLength> lengths;
  double length = 0;  ///< From here on the advantage is positive; inf: never; the shortest length: always
  stats::Interval interval;  ///< Bootstrap over samples
};

struct FrontierAnalysis {
  std::vector<CostPanel> panels;
  std::vector<BudgetChoice> choices;
  std::vector<Crossover> crossovers;
  std::vector<std::string> notes;  ///< What could not be done, and why
};

/// Cost of one cell in a panel of that phase; NaN when the model's shape or the measurement is unknown.
double cell_cost(const ResultTable& table, const ResultCell& cell, Phase phase, CostAxis axis);
std::string cost_unit(Phase phase, CostAxis axis);

/// Marks the points that no other beats: cheaper or equal, and better.
void mark_pareto(std::vector<Configuration>& points);

/// From which length on `advantage` (ascending lengths) stays positive; linear in ln(length) between
/// neighbours. inf: not at the longest length. NaN entries (nothing affordable) count as not positive.
double crossing_length(const std::vector<std::int64_t>& lengths, const std::vector<double>& advantage);

FrontierAnalysis analyze_frontier(const ResultTable& table, const AnalysisOptions& options,
                                  ThreadPool& threads);

}  // namespace lacuna
