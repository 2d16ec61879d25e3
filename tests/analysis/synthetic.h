// Result tables made from known laws, in memory and as results.h5, for tests and for looking at reports.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "analysis/result_table.h"
#include "core/rng.h"

namespace lacuna::synthetic {

/// One row of paper.md's scaling table.
struct Law {
  double eps = -16.92, alpha = 1.31, beta = -1.15, gamma = -1.00;
  /// Offsets in the order of paper_tasks().
  std::array<double, 9> delta{0, .27, .80, .76, 14.67, -1.60, -3.55, -3.21, 1.43};
  double logit(double parameters, double length, double compression, int task) const;
};

/// quality, squad, toefl, cwe, niah, vt, filtering, multihop, retrieval
std::vector<ResultTask> paper_tasks();

struct Spec {
  std::vector<std::string> models{"Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B", "Qwen2.5-72B"};
  std::vector<std::int64_t> lengths{16384, 32768, 65536, 131072};
  std::vector<std::pair<std::string, Phase>> methods{{"vertical_slash", Phase::kPrefill},
                                                     {"quest", Phase::kDecode}};
  std::vector<double> levels{.33, .5, .6, .7, .8, .87, .9, .93, .95};
  int samples = 100;
  std::uint64_t seed = 1;
  bool exact = false;  ///< One "sample" per cell with exactly the expected score
  /// Expected score of a cell; the default is Law{} with C = 1 for dense.
  std::function<double(const ResultModel&, int task, std::int64_t length, const std::string& method,
                       double sparsity)>
      score;
};

/// Samples are fractions of 4 right answers. Every (model, task, length, sample) has uniforms of its own that
/// all strategies share, so samples are paired as in real sweeps.
ResultTable make_table(const Spec& spec);

/// A results.h5 of the schema (without texts and cube, which the analysis does not read).
void write_results(const ResultTable& table, const std::string& path);

}  // namespace lacuna::synthetic
