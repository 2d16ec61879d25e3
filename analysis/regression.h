// Linear and fractional-logit regression with covariances, on Eigen.
#pragma once

#include <Eigen/Dense>
#include <string>

#include "analysis/statistics.h"

namespace lacuna::stats {

/// A fitted linear predictor x'b.
struct Fit {
  Eigen::VectorXd coefficients;
  Eigen::MatrixXd covariance;  ///< Of the coefficients.
  double scale = 0;     ///< Residual variance (least squares) or Pearson dispersion (fractional logit).
  double df = 0;        ///< Observations less coefficients.
  bool normal = false;  ///< Intervals from the normal rather than from Student's t.

  double error(Eigen::Index i) const;
  Interval interval(Eigen::Index i, double confidence) const;
  double p(Eigen::Index i) const;  ///< Two-sided, coefficient = 0.
  double predict(const Eigen::VectorXd& x) const { return x.dot(coefficients); }
  /// Interval of the mean of the linear predictor at x.
  Interval mean_interval(const Eigen::VectorXd& x, double confidence) const;
  /// Interval of a new observation at x; least squares only.
  Interval prediction_interval(const Eigen::VectorXd& x, double confidence) const;
};

/// Ordinary least squares. X [n, k] of full column rank, n > k (kInternal otherwise: callers check).
Fit least_squares(const Eigen::MatrixXd& X, const Eigen::VectorXd& y);

/// Quasi-likelihood with logit mean for y in [0, 1] (Papke & Wooldridge 1996) by iteratively reweighted least
/// squares; the dispersion is Pearson's X^2 / df. Throws kUsage when it does not converge (separated data).
Fit fractional_logit(const Eigen::MatrixXd& X, const Eigen::VectorXd& y);

/// Which columns of X, scanned from left to right, add to the rank: those that can be estimated.
std::vector<Eigen::Index> independent_columns(const Eigen::MatrixXd& X);

}  // namespace lacuna::stats
