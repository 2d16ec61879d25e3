// Against SciPy and statsmodels (golden/make_statistics.py), and by simulation where a level is promised.
#include "analysis/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "analysis/regression.h"
#include "core/error.h"
#include "core/json.h"

namespace lacuna::stats {
namespace {

using Vector = std::vector<double>;

const Json& golden() {
  static const Json g = read_json_file("tests/analysis/golden/statistics.json");
  return g;
}

/// Relative to the larger of 1 and the value: 1e-10 everywhere.
void expect_same(double ours, double theirs, const std::string& what) {
  EXPECT_NEAR(ours, theirs, 1e-10 * std::max(1.0, std::abs(theirs))) << what;
}

Eigen::VectorXd vector_of(const Json& values) {
  const auto v = values.get<Vector>();
  return Eigen::Map<const Eigen::VectorXd>(v.data(), Eigen::Index(v.size()));
}
Eigen::MatrixXd matrix_of(const Json& rows) {
  Eigen::MatrixXd m(Eigen::Index(rows.size()), Eigen::Index(rows.at(0).size()));
  for (Eigen::Index i = 0; i < m.rows(); ++i) m.row(i) = vector_of(rows.at(std::size_t(i)));
  return m;
}

TEST(Statistics, TestsEqualSciPy) {
  for (const Json& c : golden().at("tests")) {
    const std::string name = c.at("name");
    const auto a = c.at("a").get<Vector>(), b = c.at("b").get<Vector>();
    Vector d(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) d[i] = a[i] - b[i];
    expect_same(mean(a), c.at("mean"), name);
    expect_same(variance(a), c.at("variance"), name);
    expect_same(standard_error(a), c.at("sem"), name);
    const std::pair<const char*, Alternative> alternatives[] = {{"two-sided", Alternative::kTwoSided},
                                                                {"greater", Alternative::kGreater},
                                                                {"less", Alternative::kLess}};
    for (const auto& [key, alternative] : alternatives) {
      const Json& g = c.at(key);
      const std::pair<const char*, TestResult> results[] = {{"welch", welch_t(a, b, alternative)},
                                                            {"paired", paired_t(d, alternative)},
                                                            {"shifted", paired_t(d, alternative, 0.05)}};
      for (const auto& [test, result] : results) {
        expect_same(result.statistic, g.at(test).at(0), name + test + key);
        expect_same(result.df, g.at(test).at(1), name + test + key);
        expect_same(result.p, g.at(test).at(2), name + test + key);
      }
      const Vector first(d.begin(), d.begin() + std::min<std::ptrdiff_t>(12, std::ssize(d)));
      expect_same(sign_flip(first, alternative, 0, 10, Rng(1)).p, g.at("flip_first_12"), name + "flip" + key);
    }
  }
}

TEST(Statistics, RanksQuantilesAndHolm) {
  const Json& s = golden().at("spearman");
  const auto x = s.at("x").get<Vector>(), y = s.at("y").get<Vector>();
  EXPECT_EQ(ranks(x), s.at("ranks").get<Vector>());
  expect_same(spearman(x, y), s.at("rho"), "spearman");
  expect_same(pearson(x, y), s.at("pearson"), "pearson");
  const Json& q = golden().at("quantile");
  for (std::size_t i = 0; i < q.at("q").size(); ++i) {
    expect_same(quantile(q.at("x").get<Vector>(), q.at("q")[i]), q.at("values")[i], "quantile");
  }
  for (const Json& row : golden().at("t_quantile"))
    expect_same(t_quantile(row[0], row[1]), row[2], "t quantile");
  const auto adjusted = holm(golden().at("holm").at("p").get<Vector>());
  for (std::size_t i = 0; i < adjusted.size(); ++i)
    expect_same(adjusted[i], golden().at("holm").at("adjusted")[i], "holm");
  const auto with_nan = holm(Vector{0.02, NAN, 0.03});
  EXPECT_DOUBLE_EQ(with_nan[0], 0.04);
  EXPECT_TRUE(std::isnan(with_nan[1]));
  EXPECT_DOUBLE_EQ(with_nan[2], 0.04);
}

TEST(Regression, EqualsStatsmodels) {
  const Json& g = golden().at("regression");
  const Eigen::MatrixXd X = matrix_of(g.at("X"));
  const Eigen::VectorXd x = vector_of(g.at("new"));
  const auto compare = [&](const Fit& fit, const Json& theirs, const std::string& name) {
    for (Eigen::Index i = 0; i < X.cols(); ++i) {
      const auto k = std::size_t(i);
      expect_same(fit.coefficients(i), theirs.at("params")[k], name + " params");
      expect_same(fit.error(i), theirs.at("bse")[k], name + " bse");
      expect_same(fit.p(i), theirs.at("pvalues")[k], name + " p");
      expect_same(fit.interval(i, 0.95).low, theirs.at("conf_int")[k][0], name + " low");
      expect_same(fit.interval(i, 0.95).high, theirs.at("conf_int")[k][1], name + " high");
      for (Eigen::Index j = 0; j < X.cols(); ++j) {
        expect_same(fit.covariance(i, j), theirs.at("cov")[k][std::size_t(j)], name + " covariance");
      }
    }
    expect_same(fit.scale, theirs.at("scale"), name + " scale");
  };
  const Fit ols = least_squares(X, vector_of(g.at("logit")));
  compare(ols, g.at("ols"), "OLS");
  expect_same(ols.predict(x), g.at("ols").at("mean"), "mean");
  expect_same(ols.mean_interval(x, 0.9).low, g.at("ols").at("mean_ci")[0], "mean low");
  expect_same(ols.mean_interval(x, 0.9).high, g.at("ols").at("mean_ci")[1], "mean high");
  expect_same(ols.prediction_interval(x, 0.9).low, g.at("ols").at("obs_ci")[0], "new low");
  expect_same(ols.prediction_interval(x, 0.9).high, g.at("ols").at("obs_ci")[1], "new high");
  const Eigen::VectorXd fitted = X * ols.coefficients, observed = vector_of(g.at("logit"));
  expect_same(
      r_squared({observed.data(), std::size_t(observed.size())}, {fitted.data(), std::size_t(fitted.size())}),
      g.at("ols").at("rsquared"), "R2");
  compare(fractional_logit(X, vector_of(g.at("score"))), g.at("glm"), "GLM");
}

TEST(Regression, DependentColumnsAreFound) {
  Eigen::MatrixXd X(5, 4);
  X << 1, 2, 3, 23,  //
      1, 4, 5, 23,   //
      1, 0, 1, 23,   //
      1, 7, 8, 23,   //
      1, 1, 2, 23;
  EXPECT_EQ(independent_columns(X),
            (std::vector<Eigen::Index>{0, 1}));  // column 2 = 0 + 1, column 3 constant
}

TEST(Regression, SeparatedScoresAreRefused) {
  Eigen::MatrixXd X(6, 2);
  Eigen::VectorXd y(6);
  for (int i = 0; i < 6; ++i) {
    X(i, 0) = 1;
    X(i, 1) = i < 3 ? 0 : 1;
    y(i) = i < 3 ? 0 : 1;
  }
  EXPECT_THROW(fractional_logit(X, y), Error);
}

TEST(Statistics, DegenerateSamplesHaveStatedAnswers) {
  const Vector zeros(10, 0.0), lost(10, 0.3), one{0.5};
  EXPECT_EQ(paired_t(zeros, Alternative::kGreater).p, 1);
  EXPECT_EQ(paired_t(lost, Alternative::kGreater).p, 0);
  EXPECT_EQ(paired_t(lost, Alternative::kLess).p, 1);
  EXPECT_EQ(paired_bootstrap(lost, Alternative::kTwoSided, 0, 100, Rng(1)).p, 0);
  EXPECT_EQ(sign_flip(zeros, Alternative::kTwoSided, 0, 100, Rng(1)).p, 1);
  EXPECT_EQ(welch_t(zeros, zeros, Alternative::kTwoSided).p, 1);
  EXPECT_TRUE(std::isnan(paired_t(one, Alternative::kGreater).p));
  EXPECT_TRUE(std::isnan(welch_t(one, one, Alternative::kGreater).p));
  EXPECT_TRUE(std::isnan(sign_flip(one, Alternative::kGreater, 0, 100, Rng(1)).p));
  EXPECT_TRUE(std::isnan(spearman(zeros, lost)));
  EXPECT_TRUE(std::isnan(r_squared(zeros, lost)));
  EXPECT_EQ(variance(Vector(3, 0.1)), 0);
}

TEST(Statistics, SameSeedSameAnswer) {
  Vector d;
  Rng rng(3);
  for (int i = 0; i < 50; ++i) d.push_back(rng.normal());
  EXPECT_EQ(sign_flip(d, Alternative::kGreater, 0, 500, Rng(1, 2)).p,
            sign_flip(d, Alternative::kGreater, 0, 500, Rng(1, 2)).p);
  EXPECT_EQ(paired_bootstrap(d, Alternative::kGreater, 0, 500, Rng(1, 2)).p,
            paired_bootstrap(d, Alternative::kGreater, 0, 500, Rng(1, 2)).p);
  EXPECT_NE(sign_flip(d, Alternative::kGreater, 0, 500, Rng(1, 2)).p,
            sign_flip(d, Alternative::kGreater, 0, 500, Rng(1, 3)).p);
}

/// Share of 2000 true null hypotheses that each test rejects at 5 %. 60 pairs with scores of 0, 1/4, ..., 1
/// and shared difficulty; dense and sparse have the same distribution.
TEST(Statistics, TypeOneErrorIsWithinItsLevel) {
  constexpr int kDraws = 2000, kPairs = 60, kResamples = 199;
  constexpr double kAlpha = 0.05;
  int welch = 0, paired = 0, flip = 0, bootstrap = 0, two_sided = 0;
  Rng rng(11);
  for (int draw = 0; draw < kDraws; ++draw) {
    Vector a(kPairs), b(kPairs), d(kPairs);
    for (int i = 0; i < kPairs; ++i) {
      const double difficulty = rng.uniform();
      const auto score = [&] {
        int right = 0;
        for (int q = 0; q < 4; ++q) right += rng.uniform() < difficulty ? 1 : 0;
        return right / 4.0;
      };
      const auto k = std::size_t(i);
      a[k] = score();
      b[k] = score();
      d[k] = a[k] - b[k];
    }
    const auto stream = std::uint64_t(draw);
    welch += welch_t(a, b, Alternative::kGreater).p < kAlpha ? 1 : 0;
    paired += paired_t(d, Alternative::kGreater).p < kAlpha ? 1 : 0;
    two_sided += paired_t(d, Alternative::kTwoSided).p < kAlpha ? 1 : 0;
    flip += sign_flip(d, Alternative::kGreater, 0, kResamples, Rng(5, stream)).p <= kAlpha ? 1 : 0;
    bootstrap +=
        paired_bootstrap(d, Alternative::kGreater, 0, kResamples, Rng(6, stream)).p <= kAlpha ? 1 : 0;
  }
  // 4 standard deviations of the simulation itself: 0.05 +- 0.0195.
  const double slack = 4 * std::sqrt(kAlpha * (1 - kAlpha) / kDraws);
  EXPECT_NEAR(double(paired) / kDraws, kAlpha, slack);
  EXPECT_NEAR(double(two_sided) / kDraws, kAlpha, slack);
  EXPECT_NEAR(double(flip) / kDraws, kAlpha, slack);
  EXPECT_NEAR(double(bootstrap) / kDraws, kAlpha, slack);
  EXPECT_LT(double(welch) / kDraws, kAlpha);  // pairs share their difficulty: Welch throws power away
}

}  // namespace
}  // namespace lacuna::stats
