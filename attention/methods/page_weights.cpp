#include "attention/methods/page_weights.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/cpu/kernels.h"
#include "attention/methods/common.h"
#include "attention/methods/page_bounds.h"

namespace lacuna {

namespace {

/// Adds one query head's weights to `mass`, page by page.
void add_head(const DecodeInput& input, int kv, int q_head, const float* q, const PageList& candidates,
              std::vector<double>& mass) {
  const LayerInfo& info = input.info;
  const CpuKernels& kernels = cpu_kernels();
  const PagedHead& head = input.heads[static_cast<std::size_t>(kv)];
  std::vector<float> scores(candidates.size() * kPageTokens),
      pack(static_cast<std::size_t>(kernels.pack_size(info.head_dim)));
  std::vector<std::int64_t> filled(candidates.size());
  float top = -INFINITY;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const std::int64_t page = candidates[i];
    const float* keys = input.pool + head.page_ids[static_cast<std::size_t>(page)] * input.page_elements;
    filled[i] = std::min<std::int64_t>(kPageTokens, head.tokens - page * kPageTokens);
    float* s = scores.data() + i * kPageTokens;
    kernels.gemm_nt(1, filled[i], info.head_dim, info.scale, q, info.head_dim, keys, info.head_dim, s,
                    kPageTokens, pack.data());
    for (std::int64_t j = 0; j < filled[i]; ++j) {
      if (info.softcap > 0) s[j] = info.softcap * std::tanh(s[j] / info.softcap);
      if (!std::isfinite(s[j])) throw_not_finite(info, q_head);
      top = std::max(top, s[j]);
    }
  }
  std::vector<double> part(candidates.size());
  double total = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    part[i] = kernels.exp_sum(scores.data() + i * kPageTokens, filled[i], top);
    total += part[i];
  }
  for (std::size_t i = 0; i < part.size(); ++i) mass[i] += part[i] / total;
}

}  // namespace

std::vector<std::vector<double>> page_weights(const DecodeInput& input,
                                              const std::vector<PageList>& candidates,
                                              AttentionCounts& counts) {
  const LayerInfo& info = input.info;
  const int group = info.q_heads_total / info.kv_heads_total;
  const bool split = info.kv_heads * group != info.q_heads;
  const std::vector<float> gathered = split ? gather_queries(input) : std::vector<float>();
  std::vector<std::vector<double>> weights(candidates.size());
  for_each(input.threads, std::ssize(candidates), [&](std::int64_t row) {
    const auto h = static_cast<std::size_t>(row);
    const int kv = static_cast<int>(row);
    const int first = (info.kv_head_begin + kv) * group;  // global number
    const float* q = split ? gathered.data() + static_cast<std::int64_t>(first) * info.head_dim
                           : input.q + static_cast<std::int64_t>(first - info.q_head_begin) * info.head_dim;
    weights[h].assign(candidates[h].size(), 0.0);
    for (int g = 0; g < group; ++g) {
      add_head(input, kv, first + g - info.q_head_begin, q + static_cast<std::int64_t>(g) * info.head_dim,
               candidates[h], weights[h]);
    }
    for (double& w : weights[h]) w /= group;
  });
  for (const PageList& pages : candidates) {
    const auto tokens = static_cast<double>(pages.size()) * kPageTokens;
    counts.index_flops += tokens * group * (2.0 * info.head_dim + 5.0);
    counts.index_bytes_read += tokens * info.head_dim * sizeof(float);
  }
  return weights;
}

std::vector<PageList> all_pages(const DecodeInput& input) {
  std::vector<PageList> pages(input.heads.size());
  for (std::size_t h = 0; h < pages.size(); ++h) {
    pages[h].resize(static_cast<std::size_t>((input.heads[h].tokens + kPageTokens - 1) / kPageTokens));
    std::iota(pages[h].begin(), pages[h].end(), 0);
  }
  return pages;
}

PageList pages_with_mass(const PageList& candidates, const std::vector<double>& weights, double mass,
                         std::int32_t current) {
  PageList kept;
  double sum = 0;
  for (const std::int32_t i : sorted_indices(weights)) {
    if (sum >= mass) break;
    sum += weights[static_cast<std::size_t>(i)];
    kept.push_back(candidates[static_cast<std::size_t>(i)]);
  }
  if (std::ranges::find(kept, current) == kept.end()) kept.push_back(current);
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace lacuna
