// The scaling law of sparse attention: link(score) = eps + delta_task + alpha ln N + beta ln L + gamma ln C,
// with N parameters, L tokens, C = 1 / (1 - measured sparsity); prefill and decode apart (arXiv 2504.17768,
// section 5).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "analysis/options.h"
#include "analysis/regression.h"
#include "analysis/result_table.h"

namespace lacuna {

/// One cell as the law sees it.
struct LawPoint {
  int model = 0, task = 0, method = -1;  ///< method -1: dense
  double ln_parameters = 0, ln_length = 0, ln_compression = 0;
  double nominal = 0;
  double score = 0;
  int samples = 0;
};

/// The four numbers that stand in the paper's table; NaN when not estimable.
struct LawCoefficients {
  double eps, alpha, beta, gamma;
};

struct LawFit {
  Phase phase = Phase::kPrefill;
  FitMethod method = FitMethod::kLeastSquares;
  Link link = Link::kLogit;
  std::vector<std::string>
      terms;               ///< "eps", "alpha", "beta", "gamma", "delta NAME": those that could be estimated
  stats::Fit fit;          ///< Over `terms`
  int reference_task = 0;  ///< delta = 0
  std::vector<int> task_term;  ///< [tasks] index into terms; -1: the reference; -2: not in the fit
  std::vector<LawPoint> points;
  std::vector<double> fitted;                   ///< [points], scores
  double r_squared = 0, mae = 0, spearman = 0;  ///< On scores, in the sample
  std::vector<std::string> notes;

  LawCoefficients coefficients() const;
  /// Row of the design matrix.
  Eigen::VectorXd row(int task, double ln_parameters, double ln_length, double ln_compression) const;
};

/// Fit on all but the largest value of one axis, judged on that value.
struct HoldOut {
  Phase phase = Phase::kPrefill;
  FitMethod method = FitMethod::kLeastSquares;
  std::string axis;        ///< "size", "length", "compression"
  std::string held;        ///< The value held out, for people
  std::string impossible;  ///< Not empty: why there is no result
  std::size_t training = 0, tested = 0;
  LawCoefficients coefficients{};
  double r_squared = 0, mae = 0, spearman = 0;
  struct PerTask {
    int task = 0;
    std::size_t tested = 0;
    double r_squared = 0, mae = 0, spearman = 0;
  };
  std::vector<PerTask> tasks;
};

struct Prediction {
  Phase phase = Phase::kPrefill;
  PredictRequest request;
  double parameters = 0;
  int task = -1;  ///< -1: mean over the tasks of the fit
  double score = 0;
  stats::Interval mean;  ///< Of the expected score
  stats::Interval
      observation;      ///< Of a cell that would be measured (least squares); NaN for the fractional fit
  std::string warning;  ///< Not empty: it extrapolates, and how far
};

struct ScalingAnalysis {
  std::vector<LawFit> fits;  ///< Per phase: options.fit first, then the other
  std::vector<HoldOut> hold_outs;
  std::vector<Prediction> predictions;
  std::vector<std::string> notes;
};

/// `link` of a score clipped to [clip, 1 - clip] (log: from below only; identity: not at all), and back.
double apply_link(Link link, double score, double clip);
double invert_link(Link link, double value);

/// What of the table belongs to a phase: its sparse cells and every dense one.
std::vector<LawPoint> law_points(const ResultTable& table, const AnalysisOptions& options, Phase phase);
/// Throws kUsage saying why there can be no fit.
LawFit fit_law(const ResultTable& table, const AnalysisOptions& options, Phase phase, FitMethod method,
               std::vector<LawPoint> points);
ScalingAnalysis analyze_scaling(const ResultTable& table, const AnalysisOptions& options);

}  // namespace lacuna
