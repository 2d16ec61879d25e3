#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

#include "attention/reference/reference.h"
#include "core/error.h"

namespace lacuna::reference {

namespace {

using Kept = std::vector<std::vector<std::int32_t>>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Mean over `kernel` neighbours, absent ones counted as zero.
std::vector<double> smooth(const std::vector<double>& x, std::int64_t kernel) {
  std::vector<double> y(x.size());
  for (std::int64_t j = 0; j < std::ssize(x); ++j) {
    for (std::int64_t t = j - kernel / 2; t <= j + kernel / 2; ++t) {
      if (t >= 0 && t < std::ssize(x)) y[at(j)] += x[at(t)];
    }
    y[at(j)] /= static_cast<double>(kernel);
  }
  return y;
}

void always_keep(std::vector<double>& importance, std::int64_t first, std::int64_t last) {
  for (std::int64_t t = 0; t < std::ssize(importance); ++t) {
    if (t < first || t >= std::ssize(importance) - last) importance[at(t)] = INFINITY;
  }
}

/// Sum over the window, mean over the query heads of the kv head.
std::vector<double> snapkv_importance(const Params& params, const PrefillInput& input, int kv) {
  const int group = input.info.q_heads / input.info.kv_heads;
  std::vector<double> mean(at(input.q.tokens));
  for (int g = 0; g < group; ++g) {
    std::vector<double> sums(mean.size());
    for (const auto& row : window_weights(input, kv * group + g, params.get_int("window"))) {
      for (std::size_t t = 0; t < sums.size(); ++t) sums[t] += static_cast<double>(row[t]);
    }
    for (std::size_t t = 0; t < sums.size(); ++t) mean[t] += sums[t];
  }
  for (double& m : mean) m /= group;
  auto importance = smooth(mean, params.get_int("kernel"));
  always_keep(importance, params.get_int("first"), params.get_int("last"));
  return importance;
}

Kept snapkv(const Params& params, const PrefillInput& input, std::int64_t capacity) {
  Kept kept;
  for (int kv = 0; kv < input.info.kv_heads; ++kv) {
    kept.push_back(top(snapkv_importance(params, input, kv),
                       std::max(capacity, params.get_int("first") + params.get_int("last"))));
  }
  return kept;
}

Kept ada_snapkv(const Params& params, const PrefillInput& input) {
  const int group = input.info.q_heads / input.info.kv_heads;
  const std::int64_t capacity = params.get_int("capacity");
  const auto floor = std::max<std::int64_t>(
      params.get_int("first") + params.get_int("last"),
      static_cast<std::int64_t>(params.get_double("min_share") * static_cast<double>(capacity)));
  Kept kept;
  std::vector<std::tuple<double, int, std::int32_t>> rest;  // best first when sorted
  std::int64_t left = capacity * input.info.kv_heads;
  for (int kv = 0; kv < input.info.kv_heads; ++kv) {
    std::vector<double> peak(at(input.q.tokens));
    for (int g = 0; g < group; ++g) {
      for (const auto& row : window_weights(input, kv * group + g, params.get_int("window"))) {
        for (std::size_t t = 0; t < peak.size(); ++t)
          peak[t] = std::max(peak[t], static_cast<double>(row[t]));
      }
    }
    auto importance = smooth(peak, params.get_int("kernel"));
    always_keep(importance, params.get_int("first"), params.get_int("last"));
    kept.push_back(top(importance, floor));
    left -= std::ssize(kept.back());
    for (std::int32_t t = 0; t < input.q.tokens; ++t) {
      if (!std::binary_search(kept.back().begin(), kept.back().end(), t))
        rest.emplace_back(-importance[at(t)], kv, t);
    }
  }
  std::sort(rest.begin(), rest.end());
  for (std::int64_t i = 0; i < std::min<std::int64_t>(left, std::ssize(rest)); ++i) {
    const auto [score, kv, token] = rest[at(i)];
    kept[at(kv)].push_back(token);
  }
  for (auto& head : kept) std::sort(head.begin(), head.end());
  return kept;
}

std::int64_t pyramid_capacity(const Params& params, const PrefillInput& input) {
  const auto c = static_cast<double>(params.get_int("capacity"));
  const LayerInfo& info = input.info;
  if (info.layers == 1) return params.get_int("capacity");
  double last = c / params.get_double("beta");
  if (2 * c - last > static_cast<double>(input.q.tokens)) last = 2 * c - static_cast<double>(input.q.tokens);
  const double first = 2 * c - last;
  return std::max<std::int64_t>(1, std::llround(first - (first - last) * info.layer / (info.layers - 1)));
}

Kept tova(const Params& params, const PrefillInput& input) {
  std::vector<double> total(at(input.q.tokens));
  for (int h = 0; h < input.info.q_heads; ++h) {
    const auto last = window_weights(input, h, 1).front();
    for (std::size_t t = 0; t < total.size(); ++t) total[t] += static_cast<double>(last[t]);
  }
  always_keep(total, 0, 1);
  return Kept(at(input.info.kv_heads), top(total, params.get_int("capacity")));
}

/// E[exp(s q.k)] under the normal distribution of the last queries, times |v|.
Kept expected_attention(const Params& params, const PrefillInput& input) {
  const LayerInfo& info = input.info;
  const std::int64_t tokens = input.q.tokens, rows = std::min(params.get_int("window"), tokens);
  const int dim = info.head_dim, group = info.q_heads / info.kv_heads;
  Kept kept;
  for (int kv = 0; kv < info.kv_heads; ++kv) {
    std::vector<double> importance(at(tokens));
    for (int h = kv * group; h < (kv + 1) * group; ++h) {
      std::vector<double> log_weight(at(tokens));
      for (std::int64_t j = 0; j < tokens; ++j) {
        // m.k and k'Ck are the mean and the variance of q.k over the rows.
        double mean = 0, square = 0;
        std::vector<double> dots;
        for (std::int64_t i = tokens - rows; i < tokens; ++i) {
          double dot = 0;
          for (int c = 0; c < dim; ++c)
            dot += static_cast<double>(input.q.row(h, i)[c]) * static_cast<double>(input.k.row(kv, j)[c]);
          dots.push_back(dot);
          mean += dot / static_cast<double>(rows);
        }
        for (const double d : dots) square += (d - mean) * (d - mean) / static_cast<double>(rows);
        const auto s = static_cast<double>(info.scale);
        log_weight[at(j)] = s * mean + s * s * square / 2;
      }
      const double peak = *std::max_element(log_weight.begin(), log_weight.end());
      double sum = 0;
      for (const double w : log_weight) sum += std::exp(w - peak);
      for (std::int64_t j = 0; j < tokens; ++j) {
        double norm = 0;
        for (int c = 0; c < dim; ++c) norm += std::pow(static_cast<double>(input.v.row(kv, j)[c]), 2);
        norm = params.get_bool("value_norm") ? std::sqrt(norm) : 1;
        importance[at(j)] +=
            (std::exp(log_weight[at(j)] - peak) / sum + params.get_double("epsilon")) * norm / group;
      }
    }
    always_keep(importance, params.get_int("sinks"), 0);
    kept.push_back(top(importance, std::max(params.get_int("capacity"), params.get_int("sinks"))));
  }
  return kept;
}

Kept everything(const PrefillInput& input) {
  std::vector<std::int32_t> all(at(input.q.tokens));
  std::iota(all.begin(), all.end(), 0);
  return Kept(at(input.info.kv_heads), all);
}

}  // namespace

Kept evict(const std::string& method, const Params& params, const PrefillInput& input) {
  if (method == "none" || params.get_int("capacity") >= input.q.tokens) return everything(input);
  if (method == "snapkv") return snapkv(params, input, params.get_int("capacity"));
  if (method == "pyramidkv") return snapkv(params, input, pyramid_capacity(params, input));
  if (method == "ada_snapkv") return ada_snapkv(params, input);
  if (method == "tova") return tova(params, input);
  if (method == "expected_attention") return expected_attention(params, input);
  if (method == "streaming") {
    std::vector<double> importance(at(input.q.tokens));
    std::iota(importance.begin(), importance.end(), 0.0);
    always_keep(importance, params.get_int("sinks"), 0);
    return Kept(at(input.info.kv_heads), top(importance, params.get_int("capacity")));
  }
  throw_internal("no reference for the evictor {}", method);
}

}  // namespace lacuna::reference
