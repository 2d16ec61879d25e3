// What the analyses can be asked to do. Every default is printed with the results.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

/// What "cost" means on the isoCost axis.
enum class CostAxis {
  kV1,        ///< Paper, v1: FLOPs for prefill, FLOPs of a step for decode
  kV2,        ///< Paper, v2: FLOPs for prefill, memory elements of a step for decode
  kFigures,   ///< As v2's figures count it
  kCausal,    ///< Cost model of the kernels: causal FLOPs for prefill, bytes of a step for decode
  kMeasured,  ///< From the executed lists: FLOPs for prefill, bytes of a step (weights modelled) for decode
  kSeconds,   ///< Wall time: of the prefill, of an output token
};
enum class LossTest { kWelch, kPairedT, kBootstrap, kPermutation };
enum class Link { kLogit, kLog, kIdentity };
enum class FitMethod { kLeastSquares, kFractional };

std::string_view name_of(CostAxis axis);
std::string_view name_of(LossTest test);
std::string_view name_of(Link link);
std::string_view name_of(FitMethod method);
// By name; throw kUsage starting with `where` and offering the nearest valid name.
CostAxis parse_cost_axis(std::string_view name, const std::string& where);
LossTest parse_test(std::string_view name, const std::string& where);
Link parse_link(std::string_view name, const std::string& where);
FitMethod parse_fit_method(std::string_view name, const std::string& where);

/// A setting nobody measured, for the scaling law.
struct PredictRequest {
  std::string model;       ///< As given: a name of the sweep, or a count as in "72B"
  double parameters = 0;   ///< Resolved; 0: by name
  double length = 0;       ///< Tokens
  double compression = 1;  ///< 1 / (1 - sparsity)
  std::string task;        ///< Empty: every task
};
/// "model=72B,length=256K,compression=20[,task=NAME]" (or sparsity=0.95). Throws kUsage saying what is wrong.
PredictRequest parse_predict(const std::string& text);

struct AnalysisOptions {
  CostAxis cost = CostAxis::kV2;
  LossTest test = LossTest::kPairedT;
  double alpha = 0.05;
  double margin =
      0;             ///< > 0: non-inferiority, a level passes when its loss is significantly below the margin
  bool holm = true;  ///< Over the levels of one curve
  bool two_sided = false;  ///< Published v1 did not say; one-sided asks about losses only
  Link link = Link::kLogit;
  FitMethod fit = FitMethod::kFractional;  ///< Unbiased on scores of 0 and 1, which clipping is not
  double clip = 0;  ///< Scores are clipped to [clip, 1 - clip] before the link; 0: half an answer, 1/(2n)
  double confidence = 0.95;
  double target_error = 0.05;  ///< Relative error that a budget must meet
  std::optional<double>
      budget;  ///< A cost for which the best configuration is asked, in the unit of the axis
  std::vector<std::string> methods;  ///< Only these; empty: all
  int resamples = 2000;
  std::uint64_t seed = 1;
  std::vector<PredictRequest> predict;

  /// Throws kUsage naming the option that is out of its range.
  void check() const;
};
nlohmann::json to_json(const AnalysisOptions& options);

/// The paper's sparsity levels (budgets 1, 1/1.5, 1/2, ... 1/20).
const std::vector<double>& paper_sparsity_grid();

}  // namespace lacuna
