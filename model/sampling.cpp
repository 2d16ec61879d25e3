#include "model/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/rng.h"

namespace lacuna {

void check_sampling(const SamplingOptions& options, const std::string& where) {
  LACUNA_REQUIRE(options.max_new_tokens >= 1, "{}: max_new_tokens is {}, expected at least 1", where,
                 options.max_new_tokens);
  LACUNA_REQUIRE(std::isfinite(options.temperature) && options.temperature >= 0,
                 "{}: temperature is {}, expected 0 or more", where, options.temperature);
  LACUNA_REQUIRE(options.top_p > 0 && options.top_p <= 1, "{}: top_p is {}, expected above 0 and up to 1",
                 where, options.top_p);
}

TokenId sample_token(std::span<const float> logits, const SamplingOptions& options, std::uint64_t step) {
  float largest = -std::numeric_limits<float>::infinity();
  for (const float l : logits) {
    if (std::isnan(l)) throw_resource("a logit is not a number");
    largest = std::max(largest, l);
  }
  if (!std::isfinite(largest)) throw_resource("the largest logit is {}", largest);

  std::vector<double> mass(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    mass[i] = std::exp((static_cast<double>(logits[i]) - static_cast<double>(largest)) /
                       static_cast<double>(options.temperature));
  }
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return mass[static_cast<std::size_t>(a)] > mass[static_cast<std::size_t>(b)];
  });
  double kept = 0;
  std::size_t count = 0;
  while (count < order.size() && (count == 0 || kept < static_cast<double>(options.top_p) * total))
    kept += mass[static_cast<std::size_t>(order[count++])];

  Rng rng(options.seed, stream_id("sampling", step));
  double target = rng.uniform() * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    target -= mass[static_cast<std::size_t>(order[i])];
    if (target < 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace lacuna
