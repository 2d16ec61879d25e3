// The statistics that the analyses stand on. Each agrees with SciPy or statsmodels to 1e-10
// (tests/analysis/golden).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.h"

namespace lacuna::stats {

/// NaN when empty.
double mean(std::span<const double> x);
/// Sum of squares over n - 1; NaN for n < 2.
double variance(std::span<const double> x);
/// s / sqrt(n); NaN for n < 2.
double standard_error(std::span<const double> x);
/// Linear interpolation between order statistics (NumPy's default). `sorted` ascending and not empty.
double quantile(std::span<const double> sorted, double probability);

double normal_cdf(double z);
double normal_quantile(double probability);
double t_cdf(double t, double df);
double t_quantile(double probability, double df);

struct Interval {
  double low = 0, high = 0;
  bool contains(double x) const { return low <= x && x <= high; }
};

enum class Alternative { kTwoSided, kGreater, kLess };

struct TestResult {
  double statistic = 0;
  double df = 0;  ///< 0 for resampling tests
  double p = 1;   ///< NaN: too few values to test
};

/// H0: mean(a) - mean(b) = shift, unequal variances (Welch 1947). Without any spread the p-value is 1 when
/// the means differ by exactly the shift, else 0 or 1 by the direction.
TestResult welch_t(std::span<const double> a, std::span<const double> b, Alternative alternative,
                   double shift = 0);
/// H0: the mean of the differences is `shift` (Student). The same convention without spread.
TestResult paired_t(std::span<const double> differences, Alternative alternative, double shift = 0);
/// H0: the differences are symmetric about `shift`. Exact for at most 16 nonzero differences, else
/// `resamples` random sign flips with p = (1 + hits) / (1 + resamples), which keeps the level (Phipson &
/// Smyth 2010). On scores of 0 and 1 this is McNemar's exact test in the limit of many flips.
TestResult sign_flip(std::span<const double> differences, Alternative alternative, double shift,
                     int resamples, Rng rng);
/// H0: the mean difference is `shift`. Bootstrap of the centred mean, widened by sqrt(n/(n-1)) for the lost
/// degree of freedom; p as above.
TestResult paired_bootstrap(std::span<const double> differences, Alternative alternative, double shift,
                            int resamples, Rng rng);

/// Holm's step-down adjusted p-values, in the order given. NaNs stay NaN and do not count.
std::vector<double> holm(std::span<const double> p);

/// 1, 2, ...; ties share their mean rank.
std::vector<double> ranks(std::span<const double> x);
/// NaN when either side is constant or has fewer than two values.
double pearson(std::span<const double> x, std::span<const double> y);
double spearman(std::span<const double> x, std::span<const double> y);
/// 1 - SSE/SST about the mean of `observed`; NaN when the observed values are constant.
double r_squared(std::span<const double> observed, std::span<const double> predicted);
double mean_absolute_error(std::span<const double> observed, std::span<const double> predicted);

/// Percentile interval of values that a bootstrap made; non-finite ones are ordered too (-inf, inf), NaNs
/// left out.
Interval percentile_interval(std::vector<double> values, double confidence);

}  // namespace lacuna::stats
