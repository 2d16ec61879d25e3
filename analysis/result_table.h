// What a sweep measured, in memory: the one input of every analysis. Read from results.h5 through its schema.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sweeps/cost_model.h"

namespace lacuna {

/// Where a strategy is sparse; decode includes eviction.
enum class Phase { kDense, kPrefill, kDecode, kBoth };
std::string_view name_of(Phase phase);
/// "dense", "prefill", "decode", "both"; throws kUsage starting with `where`.
Phase parse_phase(std::string_view name, const std::string& where);

struct ResultModel {
  std::string name;
  std::string family;  ///< Empty: the model never loaded, its shape is unknown.
  ModelShape shape;
  std::string device, dtype, rope, weights_hash;
  int tp = 1;
  bool has_shape() const { return shape.layers > 0 && shape.hidden > 0; }
};

struct ResultTask {
  std::string name;
  std::string task;   ///< Registered name
  std::string group;  ///< "single_qa", "multiple_qa", "high_scope", "high_dispersion"
  std::string metric;
};

struct ResultStrategy {
  std::string name;
  Phase phase = Phase::kDense;
  std::string prefill, evict, decode;
};

/// One cell of the grid and its ok samples.
struct ResultCell {
  int model = 0, task = 0, strategy = 0;  ///< Indices into the table's lists.
  std::int64_t length = 0;                ///< Target tokens
  double nominal = 0;                     ///< Requested sparsity; NaN: the method's own parameters.
  int asked = 0, ok = 0, failed = 0;      ///< Samples
  int no_answer = 0, cut = 0;             ///< Of the ok ones: without an answer; stopped by the output limit.
  std::string reason;                     ///< Of the first failure
  std::vector<int> sample;    ///< [ok], ascending: equal numbers are equal prompts across strategies.
  std::vector<double> score;  ///< [ok]

  // Means over the ok samples; NaN without any.
  double score_mean = 0, score_sem = 0;
  double sparsity = 0;  ///< Measured, over the phases in which the strategy is sparse.
  double sparsity_prefill = 0, sparsity_decode = 0, sparsity_bytes = 0, sparsity_resident = 0;
  double input_tokens = 0, output_tokens = 0;
  double prefill_s = 0, decode_s = 0;
  double flops = 0, kv_bytes_read = 0, index_bytes_read = 0, index_flops = 0;
};

/// Everything, in the sweep's order. Call index() after filling the lists.
struct ResultTable {
  std::vector<ResultModel> models;
  std::vector<ResultTask> tasks;
  std::vector<ResultStrategy> strategies;
  std::vector<ResultCell> cells;
  /// Provenance for the report: pairs of name and value, in display order.
  std::vector<std::pair<std::string, std::string>> provenance;
  bool complete = true;  ///< Nothing of the sweep is left to run.

  // --- made by index() ---
  std::vector<std::int64_t> lengths;  ///< Ascending
  /// Methods: strategies that differ only in their own parameters ("quest budget=1024", "quest budget=512")
  /// are one.
  std::vector<std::string> methods;
  std::vector<Phase> method_phase;
  std::vector<int> method_of;  ///< [strategies]

  /// Sorts the samples of each cell, computes its score means and the derived lists. Throws kUsage on bad
  /// indices.
  void index();
  /// The dense cell of (model, task, length) that has ok samples, or null.
  const ResultCell* dense(int model, int task, std::int64_t length) const;
  Phase phase(const ResultCell& cell) const {
    return strategies[static_cast<std::size_t>(cell.strategy)].phase;
  }
  int method(const ResultCell& cell) const { return method_of[static_cast<std::size_t>(cell.strategy)]; }

 private:
  std::vector<int> dense_;  ///< [models * tasks * lengths]
};

/// Reads DIR/results.h5 or a results file. Throws kUsage naming the file and what is missing or of another
/// version.
ResultTable read_results(const std::string& path);

/// Scores that two cells have in common, sample by sample.
struct Pairs {
  std::vector<double> a, b, difference;  ///< difference = a - b
};
Pairs common_samples(const ResultCell& a, const ResultCell& b);

}  // namespace lacuna
