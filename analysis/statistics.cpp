#include "analysis/statistics.h"

#include <algorithm>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace lacuna::stats {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
/// Up to here all sign flips are enumerated: 65536 of them.
constexpr std::size_t kExactFlips = 16;

double p_of_t(double t, double df, Alternative alternative) {
  const boost::math::students_t dist(df);
  switch (alternative) {
    case Alternative::kTwoSided:
      return 2 * cdf(complement(dist, std::abs(t)));
    case Alternative::kGreater:
      return cdf(complement(dist, t));
    case Alternative::kLess:
      return cdf(dist, t);
  }
  return kNaN;
}

/// The test of a difference known without error.
TestResult without_spread(double difference, double df, Alternative alternative) {
  if (difference == 0) return {0, df, 1};
  const bool against =
      alternative == Alternative::kTwoSided || (alternative == Alternative::kGreater) == (difference > 0);
  return {difference > 0 ? kInfinity : -kInfinity, df, against ? 0.0 : 1.0};
}

/// Does a resampled value lie at least as far out as the observed one? The slack absorbs the rounding of sums
/// that are equal in exact arithmetic.
bool as_extreme(double value, double observed, Alternative alternative, double slack) {
  switch (alternative) {
    case Alternative::kTwoSided:
      return std::abs(value) >= std::abs(observed) - slack;
    case Alternative::kGreater:
      return value >= observed - slack;
    case Alternative::kLess:
      return value <= observed + slack;
  }
  return true;
}

std::vector<double> shifted(std::span<const double> x, double shift) {
  std::vector<double> out(x.begin(), x.end());
  for (double& v : out) v -= shift;
  return out;
}

}  // namespace

double mean(std::span<const double> x) {
  if (x.empty()) return kNaN;
  return std::accumulate(x.begin(), x.end(), 0.0) / double(x.size());
}

double variance(std::span<const double> x) {
  if (x.size() < 2) return kNaN;
  // Equal values have no spread; their rounded mean must not give them one.
  if (std::all_of(x.begin(), x.end(), [&](double v) { return v == x[0]; })) return 0;
  const double center = mean(x);
  double squares = 0, rest = 0;
  for (const double v : x) {
    squares += (v - center) * (v - center);
    rest += v - center;
  }
  return (squares - rest * rest / double(x.size())) / double(x.size() - 1);
}

double standard_error(std::span<const double> x) { return std::sqrt(variance(x) / double(x.size())); }

double quantile(std::span<const double> sorted, double probability) {
  LACUNA_CHECK(!sorted.empty(), "quantile of nothing");
  const double position = probability * double(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  if (below + 1 >= sorted.size()) return sorted.back();
  const double fraction = position - double(below);
  if (fraction == 0 || sorted[below] == sorted[below + 1]) return sorted[below];  // also keeps inf - inf out
  return sorted[below] + fraction * (sorted[below + 1] - sorted[below]);
}

double normal_cdf(double z) { return cdf(boost::math::normal(), z); }
double normal_quantile(double probability) { return quantile(boost::math::normal(), probability); }
double t_cdf(double t, double df) { return cdf(boost::math::students_t(df), t); }
double t_quantile(double probability, double df) {
  return quantile(boost::math::students_t(df), probability);
}

TestResult welch_t(std::span<const double> a, std::span<const double> b, Alternative alternative,
                   double shift) {
  if (a.size() < 2 || b.size() < 2) return {kNaN, 0, kNaN};
  const double va = variance(a) / double(a.size()), vb = variance(b) / double(b.size());
  const double difference = mean(a) - mean(b) - shift;
  if (va + vb == 0) return without_spread(difference, double(a.size() + b.size() - 2), alternative);
  const double df = (va + vb) * (va + vb) / (va * va / double(a.size() - 1) + vb * vb / double(b.size() - 1));
  const double t = difference / std::sqrt(va + vb);
  return {t, df, p_of_t(t, df, alternative)};
}

TestResult paired_t(std::span<const double> differences, Alternative alternative, double shift) {
  if (differences.size() < 2) return {kNaN, 0, kNaN};
  const double df = double(differences.size() - 1);
  const double difference = mean(differences) - shift, error = standard_error(differences);
  if (error == 0) return without_spread(difference, df, alternative);
  const double t = difference / error;
  return {t, df, p_of_t(t, df, alternative)};
}

TestResult sign_flip(std::span<const double> differences, Alternative alternative, double shift,
                     int resamples, Rng rng) {
  if (differences.size() < 2) return {kNaN, 0, kNaN};
  std::vector<double> d = shifted(differences, shift);
  std::erase(d, 0.0);  // flipping a zero changes nothing
  const double observed = std::accumulate(d.begin(), d.end(), 0.0), n = double(differences.size());
  double scale = 0;
  for (const double v : d) scale += std::abs(v);
  const double slack = 1e-12 * scale;
  if (d.empty()) return {0, 0, 1};
  std::int64_t hits = 0, tries = 0;
  if (d.size() <= kExactFlips) {
    tries = std::int64_t{1} << d.size();
    for (std::int64_t mask = 0; mask < tries; ++mask) {
      double sum = 0;
      for (std::size_t i = 0; i < d.size(); ++i) sum += (mask >> i & 1) != 0 ? -d[i] : d[i];
      hits += as_extreme(sum, observed, alternative, slack) ? 1 : 0;
    }
    return {observed / n, 0, double(hits) / double(tries)};
  }
  for (tries = 0; tries < resamples; ++tries) {
    double sum = 0;
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < d.size(); ++i) {
      if (i % 64 == 0) bits = rng.next_u64();
      sum += (bits >> (i % 64) & 1) != 0 ? -d[i] : d[i];
    }
    hits += as_extreme(sum, observed, alternative, slack) ? 1 : 0;
  }
  return {observed / n, 0, double(1 + hits) / double(1 + tries)};
}

TestResult paired_bootstrap(std::span<const double> differences, Alternative alternative, double shift,
                            int resamples, Rng rng) {
  const std::size_t n = differences.size();
  if (n < 2) return {kNaN, 0, kNaN};
  const double center = mean(differences), observed = center - shift;
  if (variance(differences) == 0) return without_spread(observed, 0, alternative);
  const double widen = std::sqrt(double(n) / double(n - 1));
  const double slack = 1e-12 * (std::abs(center) + std::abs(observed));
  std::int64_t hits = 0;
  for (int r = 0; r < resamples; ++r) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) sum += differences[rng.below(n)];
    hits += as_extreme((sum / double(n) - center) * widen, observed, alternative, slack) ? 1 : 0;
  }
  return {observed, 0, double(1 + hits) / double(1 + resamples)};
}

std::vector<double> holm(std::span<const double> p) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (!std::isnan(p[i])) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return p[a] < p[b]; });
  std::vector<double> adjusted(p.size(), kNaN);
  double largest = 0;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    largest = std::max(largest, std::min(1.0, double(order.size() - rank) * p[order[rank]]));
    adjusted[order[rank]] = largest;
  }
  return adjusted;
}

std::vector<double> ranks(std::span<const double> x) {
  std::vector<std::size_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] < x[b]; });
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < order.size();) {
    std::size_t j = i;
    while (j < order.size() && x[order[j]] == x[order[i]]) ++j;
    for (std::size_t k = i; k < j; ++k) out[order[k]] = (double(i + 1) + double(j)) / 2;
    i = j;
  }
  return out;
}

double pearson(std::span<const double> x, std::span<const double> y) {
  LACUNA_CHECK(x.size() == y.size(), "{} and {} values", x.size(), y.size());
  if (x.size() < 2) return kNaN;
  const double mx = mean(x), my = mean(y);
  double xx = 0, yy = 0, xy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mx) * (x[i] - mx);
    yy += (y[i] - my) * (y[i] - my);
    xy += (x[i] - mx) * (y[i] - my);
  }
  if (xx == 0 || yy == 0) return kNaN;
  return std::clamp(xy / std::sqrt(xx) / std::sqrt(yy), -1.0, 1.0);
}

double spearman(std::span<const double> x, std::span<const double> y) { return pearson(ranks(x), ranks(y)); }

double r_squared(std::span<const double> observed, std::span<const double> predicted) {
  LACUNA_CHECK(observed.size() == predicted.size(), "{} and {} values", observed.size(), predicted.size());
  const double center = mean(observed);
  double error = 0, total = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) {
    error += (observed[i] - predicted[i]) * (observed[i] - predicted[i]);
    total += (observed[i] - center) * (observed[i] - center);
  }
  return total > 0 ? 1 - error / total : kNaN;
}

double mean_absolute_error(std::span<const double> observed, std::span<const double> predicted) {
  LACUNA_CHECK(observed.size() == predicted.size(), "{} and {} values", observed.size(), predicted.size());
  if (observed.empty()) return kNaN;
  double sum = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) sum += std::abs(observed[i] - predicted[i]);
  return sum / double(observed.size());
}

Interval percentile_interval(std::vector<double> values, double confidence) {
  std::erase_if(values, [](double v) { return std::isnan(v); });
  if (values.empty()) return {kNaN, kNaN};
  std::sort(values.begin(), values.end());
  return {quantile(values, (1 - confidence) / 2), quantile(values, (1 + confidence) / 2)};
}

}  // namespace lacuna::stats
