#include "analysis/regression.h"

#include <cmath>

#include "core/error.h"

namespace lacuna::stats {

namespace {
double critical(const Fit& fit, double confidence) {
  const double tail = (1 + confidence) / 2;
  return fit.normal ? normal_quantile(tail) : t_quantile(tail, fit.df);
}
}  // namespace

double Fit::error(Eigen::Index i) const { return std::sqrt(covariance(i, i)); }

Interval Fit::interval(Eigen::Index i, double confidence) const {
  const double half = critical(*this, confidence) * error(i);
  return {coefficients(i) - half, coefficients(i) + half};
}

double Fit::p(Eigen::Index i) const {
  if (error(i) == 0) return coefficients(i) == 0 ? 1 : 0;  // an exact fit leaves no doubt
  const double z = std::abs(coefficients(i) / error(i));
  LACUNA_CHECK(std::isfinite(z), "coefficient {} is {} with error {}", i, coefficients(i), error(i));
  return 2 * (normal ? normal_cdf(-z) : t_cdf(-z, df));
}

Interval Fit::mean_interval(const Eigen::VectorXd& x, double confidence) const {
  const double half = critical(*this, confidence) * std::sqrt(x.dot(covariance * x));
  return {predict(x) - half, predict(x) + half};
}

Interval Fit::prediction_interval(const Eigen::VectorXd& x, double confidence) const {
  const double half = critical(*this, confidence) * std::sqrt(scale + x.dot(covariance * x));
  return {predict(x) - half, predict(x) + half};
}

Fit least_squares(const Eigen::MatrixXd& X, const Eigen::VectorXd& y) {
  LACUNA_CHECK(X.rows() == y.size() && X.rows() > X.cols(), "{} rows, {} columns, {} values", X.rows(),
               X.cols(), y.size());
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(X);
  Fit fit;
  fit.coefficients = qr.solve(y);
  fit.df = double(X.rows() - X.cols());
  fit.scale = (y - X * fit.coefficients).squaredNorm() / fit.df;
  // (X'X)^-1 = R^-1 R^-T: the condition number of X is not squared.
  const Eigen::MatrixXd r = qr.matrixQR().topRows(X.cols()).triangularView<Eigen::Upper>();
  const Eigen::MatrixXd inverse =
      r.triangularView<Eigen::Upper>().solve(Eigen::MatrixXd::Identity(X.cols(), X.cols()));
  fit.covariance = fit.scale * inverse * inverse.transpose();
  return fit;
}

Fit fractional_logit(const Eigen::MatrixXd& X, const Eigen::VectorXd& y) {
  LACUNA_CHECK(X.rows() == y.size() && X.rows() > X.cols(), "{} rows, {} columns, {} values", X.rows(),
               X.cols(), y.size());
  constexpr int kIterations = 100;
  const Eigen::Index n = X.rows();
  Eigen::VectorXd eta(n), mu(n), weight(n);
  for (Eigen::Index i = 0; i < n; ++i) eta(i) = std::log((y(i) + 0.5) / (1.5 - y(i)));  // statsmodels' start
  Fit fit;
  fit.normal = true;
  fit.df = double(n - X.cols());
  Eigen::MatrixXd inverse;
  bool converged = false;
  for (int iteration = 0; iteration < kIterations && !converged; ++iteration) {
    Eigen::MatrixXd scaled = X;
    Eigen::VectorXd target(n);
    for (Eigen::Index i = 0; i < n; ++i) {
      mu(i) = 1 / (1 + std::exp(-eta(i)));
      weight(i) = std::max(mu(i) * (1 - mu(i)), 1e-300);
      const double root = std::sqrt(weight(i));
      scaled.row(i) *= root;
      target(i) = root * (eta(i) + (y(i) - mu(i)) / weight(i));
    }
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(scaled);
    const Eigen::VectorXd next = qr.solve(target);
    LACUNA_REQUIRE(next.allFinite(), "the fractional fit does not converge: the scores are separated");
    converged = iteration > 0 && (next - fit.coefficients).norm() <= 1e-12 * (1 + next.norm());
    fit.coefficients = next;
    eta = X * next;
    const Eigen::MatrixXd r = qr.matrixQR().topRows(X.cols()).triangularView<Eigen::Upper>();
    const Eigen::MatrixXd root_inverse =
        r.triangularView<Eigen::Upper>().solve(Eigen::MatrixXd::Identity(X.cols(), X.cols()));
    inverse = root_inverse * root_inverse.transpose();
  }
  // Beyond this the logit is that of a score nobody can tell from 0 or 1: the coefficients are on their way
  // to infinity.
  const bool separated = eta.cwiseAbs().maxCoeff() > 30;
  LACUNA_REQUIRE(converged && !separated && inverse.allFinite(),
                 "the fractional fit does not converge: the scores are separated");
  double pearson_chi2 = 0;
  for (Eigen::Index i = 0; i < n; ++i) {
    mu(i) = 1 / (1 + std::exp(-eta(i)));
    pearson_chi2 += (y(i) - mu(i)) * (y(i) - mu(i)) / std::max(mu(i) * (1 - mu(i)), 1e-300);
  }
  fit.scale = pearson_chi2 / fit.df;
  fit.covariance = fit.scale * inverse;
  return fit;
}

std::vector<Eigen::Index> independent_columns(const Eigen::MatrixXd& X) {
  std::vector<Eigen::Index> kept;
  Eigen::MatrixXd basis(X.rows(), 0);
  for (Eigen::Index j = 0; j < X.cols(); ++j) {
    Eigen::VectorXd rest = X.col(j);
    // Twice is enough (Gram-Schmidt with reorthogonalisation).
    for (int pass = 0; pass < 2 && basis.cols() > 0; ++pass) rest -= basis * (basis.transpose() * rest);
    if (rest.norm() <= 1e-9 * (X.col(j).norm() + 1e-300)) continue;
    basis.conservativeResize(Eigen::NoChange, basis.cols() + 1);
    basis.col(basis.cols() - 1) = rest.normalized();
    kept.push_back(j);
  }
  return kept;
}

}  // namespace lacuna::stats
