// Expected Attention (arXiv 2510.00636): the attention that queries to come will pay, in closed form. If
// queries are normal with mean m and covariance C, E[exp(s q.k)] = exp(s m.k + s^2 k'Ck / 2).
//
// A layer hands over queries that are rotated already, so m and C are those of the rotated last queries,
// which stand for the rotated queries to come.
#include <algorithm>
#include <cmath>

#include "attention/cpu/kernels.h"
#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

struct QueryStatistics {
  std::vector<float> mean;        // [head_dim]
  std::vector<float> covariance;  // [head_dim, head_dim]
};

QueryStatistics query_statistics(const HeadsView& q, int head, std::int64_t window) {
  const auto dim = static_cast<std::size_t>(q.head_dim);
  const std::int64_t rows = std::min(window, q.tokens);
  std::vector<double> mean(dim), covariance(dim * dim);
  for (std::int64_t t = q.tokens - rows; t < q.tokens; ++t) {
    for (std::size_t c = 0; c < dim; ++c)
      mean[c] += static_cast<double>(q.row(head, t)[c]) / static_cast<double>(rows);
  }
  std::vector<double> x(dim);
  for (std::int64_t t = q.tokens - rows; t < q.tokens; ++t) {
    for (std::size_t c = 0; c < dim; ++c) x[c] = static_cast<double>(q.row(head, t)[c]) - mean[c];
    for (std::size_t a = 0; a < dim; ++a) {
      for (std::size_t b = 0; b < dim; ++b)
        covariance[a * dim + b] += x[a] * x[b] / static_cast<double>(rows);
    }
  }
  return {{mean.begin(), mean.end()}, {covariance.begin(), covariance.end()}};
}

class ExpectedAttention final : public Evictor {
 public:
  explicit ExpectedAttention(const Params& params)
      : capacity_(params.get_int("capacity")),
        window_(params.get_int("window")),
        sinks_(params.get_int("sinks")),
        epsilon_(params.get_double("epsilon")),
        value_norm_(params.get_bool("value_norm")) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    if (capacity_ >= input.q.tokens) return {};
    const IndexTimer timer(counts);
    const auto scores =
        score_all_heads(input, counts, [&](int head, double& flops) { return score(input, head, flops); });
    KeptTokens kept;
    for (auto& importance : group_heads(input.info, scores, GroupBy::kMean)) {
      force_ends(importance, sinks_, 0);
      kept.push_back(top_indices(importance, std::max(capacity_, sinks_)));
    }
    return local_heads(input.info, std::move(kept));
  }

 private:
  /// (expected weight + epsilon) * |v| per token.
  std::vector<double> score(const PrefillInput& input, int head, double& flops) const {
    const LayerInfo& info = input.info;
    const CpuKernels& kernels = cpu_kernels();
    const int dim = info.head_dim, kv = info.kv_head_of(head);
    const auto tokens = static_cast<std::size_t>(input.q.tokens);
    const QueryStatistics stats = query_statistics(input.q, head, window_);
    std::vector<float> mean_dot(tokens), product(tokens * static_cast<std::size_t>(dim));
    std::vector<float> pack(static_cast<std::size_t>(kernels.pack_size(dim)));
    kernels.gemm_nt(input.q.tokens, 1, dim, 1.0f, input.k.row(kv, 0), input.k.token_stride, stats.mean.data(),
                    dim, mean_dot.data(), 1, pack.data());
    kernels.gemm_nt(input.q.tokens, dim, dim, 1.0f, input.k.row(kv, 0), input.k.token_stride,
                    stats.covariance.data(), dim, product.data(), dim, pack.data());
    std::vector<double> weights(tokens);
    const auto s = static_cast<double>(info.scale);
    for (std::size_t t = 0; t < tokens; ++t) {
      const float* k = input.k.row(kv, static_cast<std::int64_t>(t));
      double quadratic = 0;
      for (int c = 0; c < dim; ++c) {
        quadratic +=
            static_cast<double>(k[c]) *
            static_cast<double>(product[t * static_cast<std::size_t>(dim) + static_cast<std::size_t>(c)]);
      }
      weights[t] = s * static_cast<double>(mean_dot[t]) + s * s * quadratic / 2;
    }
    const double top = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& w : weights) sum += w = std::exp(w - top);
    if (!std::isfinite(sum)) throw_not_finite(info, head);
    for (std::size_t t = 0; t < tokens; ++t) weights[t] = (weights[t] / sum + epsilon_) * norm(input, kv, t);
    flops = static_cast<double>(tokens) * dim * (2.0 * dim + 6.0);
    return weights;
  }

  double norm(const PrefillInput& input, int kv, std::size_t token) const {
    if (!value_norm_) return 1;
    const float* v = input.v.row(kv, static_cast<std::int64_t>(token));
    double sum = 0;
    for (int c = 0; c < input.info.head_dim; ++c)
      sum += static_cast<double>(v[c]) * static_cast<double>(v[c]);
    return std::sqrt(sum);
  }

  std::int64_t capacity_, window_, sinks_;
  double epsilon_;
  bool value_norm_;
};

}  // namespace

Method evict_expected_attention() {
  return {
      .info = {.name = "expected_attention",
               .slot = Slot::kEvict,
               .summary =
                   "Keeps the tokens that queries to come are expected to attend to, from the mean and the "
                   "covariance of the last queries.",
               .reference = "arXiv 2510.00636",
               .params = {{.name = "capacity",
                           .default_value = std::int64_t{4096},
                           .help = "Prompt tokens kept per kv head, the first ones among them",
                           .unit = "tokens",
                           .min = 1},
                          {.name = "window",
                           .default_value = std::int64_t{512},
                           .help = "Last queries whose mean and covariance are taken",
                           .unit = "tokens",
                           .min = 1},
                          {.name = "sinks",
                           .default_value = std::int64_t{4},
                           .help = "First tokens that are always kept",
                           .unit = "tokens",
                           .min = 0},
                          {.name = "epsilon",
                           .default_value = 0.0,
                           .help =
                               "Added to the expected weight before it is multiplied with the value's norm",
                           .unit = "probability",
                           .min = 0,
                           .max = 1},
                          {.name = "value_norm",
                           .default_value = true,
                           .help = "Multiply with the norm of the token's value"}},
               .budget_param = "capacity"},
      .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
        return std::make_unique<ExpectedAttention>(params);
      }};
}

}  // namespace lacuna
