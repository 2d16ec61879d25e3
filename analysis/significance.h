// The largest sparsity that keeps accuracy: every sparse level against dense on the same samples.
#pragma once

#include <string>
#include <vector>

#include "analysis/options.h"
#include "analysis/result_table.h"
#include "analysis/statistics.h"
#include "core/thread_pool.h"

namespace lacuna {

/// One sparse cell against its dense cell.
struct LevelTest {
  const ResultCell* cell = nullptr;
  const ResultCell* dense = nullptr;
  int method = 0;
  int pairs = 0;             ///< Samples both have (Welch uses all of each)
  double loss = 0;           ///< Mean score, dense - sparse
  stats::Interval interval;  ///< Of the loss, paired t, at options.confidence
  double p = 1;              ///< Of the criterion (see docs/analysis.md); NaN: too few samples
  double p_adjusted = 1;     ///< Holm over the levels of its curve, or p
  double p_better = 1;       ///< One-sided: sparse beats dense, Holm over the curve too
  double detectable = 0;     ///< Loss that this many samples find with 80 % power at alpha
  bool keeps = false;        ///< Passes
  bool beats_dense = false;  ///< p_better < alpha
};

/// One curve: model, task, length, method.
struct LargestSparsity {
  int model = 0, task = 0, method = 0;
  std::int64_t length = 0;
  std::vector<LevelTest> levels;  ///< By measured sparsity, ascending
  int largest = -1;               ///< The highest level that passes (the published rule); -1: none
  int unbroken = -1;              ///< The highest level up to which all pass
  double largest_sparsity() const { return largest < 0 ? 0 : levels[std::size_t(largest)].cell->sparsity; }
  double unbroken_sparsity() const { return unbroken < 0 ? 0 : levels[std::size_t(unbroken)].cell->sparsity; }
};

/// Over tasks and lengths, for one model (or all: -1) and method.
struct LargestSummary {
  int model = -1, method = 0;
  int curves = 0;
  double mean = 0, median = 0, minimum = 0;  ///< Of the largest sparsity
  double mean_unbroken = 0;
};

struct SignificanceAnalysis {
  std::vector<LargestSparsity> curves;
  std::vector<LargestSummary> summaries;
  std::vector<std::string> notes;
  std::vector<std::string> warnings;  ///< Sparse beats dense, and why that should make one suspicious
};

SignificanceAnalysis analyze_significance(const ResultTable& table, const AnalysisOptions& options,
                                          ThreadPool& threads);

/// "paired t test, one-sided, alpha 0.05, Holm over the levels of a curve" for tables and figures.
std::string describe_test(const AnalysisOptions& options);

}  // namespace lacuna
