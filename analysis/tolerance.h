// Score curves on the paper's sparsity grid, relative errors per length, the budget a target error needs and
// how it grows with length, and the same by group of tasks.
#pragma once

#include <string>
#include <vector>

#include "analysis/options.h"
#include "analysis/result_table.h"
#include "analysis/statistics.h"

namespace lacuna {

/// One curve, interpolated linearly over *measured* sparsity, dense standing at 0.
struct GridCurve {
  int model = 0, task = 0, method = 0;
  std::int64_t length = 0;
  double dense = 0;
  std::vector<double> score;  ///< [grid]; NaN beyond the highest measured level
  std::vector<double>
      sem;  ///< [grid]; of neighbours that share their samples, hence weighted, not added in squares
  /// (dense - score) / dense; NaN where dense scores too little for a ratio.
  double relative_error(std::size_t g) const;
};

/// Mean over curves (models and tasks) with the standard error between them.
struct GridMean {
  int method = -1;  ///< -1: every method of the phase
  Phase phase = Phase::kPrefill;
  std::string group;                                       ///< Group of tasks; empty: all
  std::int64_t length = 0;                                 ///< 0: all lengths
  std::vector<double> score, score_sem, error, error_sem;  ///< [grid]
  std::vector<int> curves;                                 ///< [grid] that stand behind the error
};

/// Tokens per query that keep the mean relative error at the target.
struct BudgetNeed {
  int method = 0;
  std::int64_t length = 0;
  double sparsity = 0;  ///< The highest tolerated; NaN: not even the lowest grid level was measured
  double tokens = 0;    ///< (1 - sparsity) * length
  bool bound = false;   ///< The target holds up to the highest measured level: `tokens` is an upper bound
};
struct BudgetGrowth {
  int method = 0;
  double exponent = 0;       ///< tokens ~ length^exponent; 0: fixed budget, 1: fixed share
  stats::Interval interval;  ///< NaN with fewer than three lengths
  int lengths = 0;
};

struct ToleranceAnalysis {
  std::vector<GridCurve> curves;
  std::vector<GridMean> by_length;  ///< Per method and phase total, per length
  std::vector<GridMean> by_group;   ///< Per method, group and length
  std::vector<BudgetNeed> needs;
  std::vector<BudgetGrowth> growth;
  std::vector<std::string> notes;
};

/// Piecewise linear through (x, y), x ascending (equal x averaged); NaN outside.
double interpolate(const std::vector<double>& x, const std::vector<double>& y, double at);

ToleranceAnalysis analyze_tolerance(const ResultTable& table, const AnalysisOptions& options);

}  // namespace lacuna
