#include "attention/methods/window_scores.h"

#include <algorithm>
#include <cmath>

#include "attention/cpu/kernels.h"
#include "attention/methods/common.h"
#include "core/error.h"

namespace lacuna {

namespace {

/// Rows whose scores are held at once: 64 rows of 128K tokens are 32 MiB.
constexpr std::int64_t kStripRows = 64;

}  // namespace

WindowScores window_scores(const PrefillInput& input, int q_head, const WindowRequest& request) {
  const LayerInfo& info = input.info;
  const CpuKernels& kernels = cpu_kernels();
  const std::int64_t tokens = input.q.tokens;
  const auto size = static_cast<std::size_t>(tokens);
  const int kv_head = info.kv_head_of(q_head);
  WindowScores result;
  result.rows = std::min(request.window, tokens);
  if (request.columns) result.column_sum.assign(size, 0.0);
  if (request.maxima) result.column_max.assign(size, 0.0f);
  // reversed[t] belongs to the offset tokens - 1 - t: a row's weights are then added in one ascending run.
  std::vector<double> reversed(request.diagonals ? size : 0);
  std::vector<float> scores(static_cast<std::size_t>(std::min(kStripRows, result.rows)) * size);
  std::vector<float> pack(static_cast<std::size_t>(kernels.pack_size(info.head_dim)));

  for (std::int64_t begin = tokens - result.rows; begin < tokens; begin += kStripRows) {
    const std::int64_t end = std::min(begin + kStripRows, tokens);
    const std::int64_t low = info.window > 0 ? std::max<std::int64_t>(0, begin - info.window + 1) : 0;
    kernels.gemm_nt(end - begin, end - low, info.head_dim, info.scale, input.q.row(q_head, begin),
                    input.q.token_stride, input.k.row(kv_head, low), input.k.token_stride,
                    scores.data() + low, tokens, pack.data());
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t first = info.window > 0 ? std::max<std::int64_t>(0, row - info.window + 1) : 0;
      float* s = scores.data() + (row - begin) * tokens + first;
      const std::int64_t n = row + 1 - first;
      if (info.softcap > 0) {
        for (std::int64_t j = 0; j < n; ++j) s[j] = info.softcap * std::tanh(s[j] / info.softcap);
      }
      const double sum = kernels.exp_sum(s, n, kernels.maximum(s, n));
      if (!std::isfinite(sum)) throw_not_finite(info, q_head);
      const auto factor = static_cast<float>(1.0 / sum);
      if (request.columns) kernels.add_scaled(result.column_sum.data() + first, s, n, factor);
      if (request.maxima) kernels.max_scaled(result.column_max.data() + first, s, n, factor);
      if (request.diagonals) kernels.add_scaled(reversed.data() + (tokens - 1 - row) + first, s, n, factor);
    }
  }
  result.flops = window_scores_flops(info, tokens, request.window);
  result.diagonal_sum.assign(reversed.rbegin(), reversed.rend());
  return result;
}

double window_scores_flops(const LayerInfo& info, std::int64_t tokens, std::int64_t window) {
  double flops = 0;
  for (std::int64_t begin = tokens - std::min(window, tokens); begin < tokens; begin += kStripRows) {
    const std::int64_t end = std::min(begin + kStripRows, tokens);
    const std::int64_t low = info.window > 0 ? std::max<std::int64_t>(0, begin - info.window + 1) : 0;
    flops += static_cast<double>((end - begin) * (end - low)) * (2.0 * info.head_dim + 5.0);
  }
  return flops;
}

std::vector<std::vector<double>> gather_heads(const PrefillInput& input,
                                              std::vector<std::vector<double>> local) {
  const LayerInfo& info = input.info;
  if (input.communicator->size() == 1) return local;
  const auto tokens = static_cast<std::size_t>(input.q.tokens);
  const auto heads = static_cast<std::size_t>(info.q_heads);
  const auto ranks = static_cast<std::size_t>(input.communicator->size());
  LACUNA_CHECK(heads * ranks == static_cast<std::size_t>(info.q_heads_total),
               "{} query heads on each of {} ranks of {}", heads, ranks, info.q_heads_total);
  std::vector<double> send(heads * tokens), receive(heads * tokens * ranks);
  for (std::size_t h = 0; h < heads; ++h)
    std::copy(local[h].begin(), local[h].end(), send.begin() + static_cast<std::ptrdiff_t>(h * tokens));
  input.communicator->all_gather(send.data(), receive.data(), send.size() * sizeof(double));
  std::vector<std::vector<double>> all(heads * ranks);
  for (std::size_t h = 0; h < all.size(); ++h) {
    const auto begin = receive.begin() + static_cast<std::ptrdiff_t>(h * tokens);
    all[h].assign(begin, begin + static_cast<std::ptrdiff_t>(tokens));
  }
  return all;
}

std::vector<double> average_pool(const std::vector<double>& x, int kernel) {
  const std::int64_t n = std::ssize(x);
  const std::int64_t half = kernel / 2;
  std::vector<double> pooled(x.size());
  for (std::int64_t j = 0; j < n; ++j) {
    double sum = 0;
    for (std::int64_t t = std::max<std::int64_t>(0, j - half); t <= std::min(n - 1, j + half); ++t) {
      sum += x[static_cast<std::size_t>(t)];
    }
    pooled[static_cast<std::size_t>(j)] = sum / kernel;
  }
  return pooled;
}

}  // namespace lacuna
