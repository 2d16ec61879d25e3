#include "attention/methods/page_bounds.h"

#include <algorithm>
#include <cmath>

#include "attention/cpu/kernels.h"
#include "attention/methods/common.h"
#include "core/error.h"

namespace lacuna {

std::size_t PageBounds::bytes() const {
  std::size_t floats = 0;
  for (const auto& head : bounds_) floats += head.size();
  return floats * sizeof(float);
}

void PageBounds::update(const DecodeInput& input) {
  const auto dim = static_cast<std::size_t>(dim_);
  for_each(input.threads, std::ssize(input.heads), [&](std::int64_t head) {
    const auto h = static_cast<std::size_t>(head);
    const PagedHead& cache = input.heads[h];
    std::vector<float>& bounds = bounds_[h];
    LACUNA_CHECK(cache.tokens >= tokens_[h], "the cache shrank from {} to {} tokens", tokens_[h],
                 cache.tokens);
    bounds.resize(static_cast<std::size_t>((cache.tokens + kPageTokens - 1) / kPageTokens) * 2 * dim);
    for (std::int64_t t = tokens_[h]; t < cache.tokens; ++t) {
      const std::int64_t page = t / kPageTokens, slot = t % kPageTokens;
      const float* key =
          input.pool + cache.page_ids[static_cast<std::size_t>(page)] * input.page_elements + slot * dim_;
      float* low = bounds.data() + static_cast<std::size_t>(page) * 2 * dim;
      float* high = low + dim;
      if (slot == 0) {
        std::copy(key, key + dim_, low);
        std::copy(key, key + dim_, high);
      } else {
        for (std::size_t c = 0; c < dim; ++c) {
          // A NaN key must reach the bound and stay there: it is taken on purpose, and no comparison replaces it.
          const bool undefined = key[c] != key[c];
          low[c] = key[c] < low[c] || undefined ? key[c] : low[c];
          high[c] = key[c] > high[c] || undefined ? key[c] : high[c];
        }
      }
    }
    tokens_[h] = cache.tokens;
  });
}

std::vector<float> gather_queries(const DecodeInput& input) {
  const auto count =
      static_cast<std::size_t>(input.info.q_heads) * static_cast<std::size_t>(input.info.head_dim);
  if (input.communicator->size() == 1) return {input.q, input.q + count};
  std::vector<float> all(count * static_cast<std::size_t>(input.communicator->size()));
  input.communicator->all_gather(input.q, all.data(), count * sizeof(float));
  return all;
}

namespace {

/// max(q * low, q * high) = max(q, 0) * high + min(q, 0) * low, so a sum over query heads needs only sums of
/// the two parts.
struct QueryParts {
  std::vector<float> plus, minus;
};

QueryParts add_up(const float* q, int heads, int dim) {
  const auto size = static_cast<std::size_t>(dim);
  QueryParts parts{std::vector<float>(size), std::vector<float>(size)};
  for (int h = 0; h < heads; ++h) {
    for (std::size_t c = 0; c < size; ++c) {
      const float x = q[static_cast<std::size_t>(h) * size + c];
      (x >= 0 ? parts.plus : parts.minus)[c] += x;  // NaN goes to minus
    }
  }
  return parts;
}

}  // namespace

std::vector<std::vector<float>> page_scores(const DecodeInput& input, const PageBounds& bounds, bool share,
                                            AttentionCounts& counts) {
  const LayerInfo& info = input.info;
  const int group = info.q_heads_total / info.kv_heads_total;
  // A kv head whose query heads live on several ranks needs them all; otherwise the local ones are the whole
  // group.
  const bool split = share && info.kv_heads * group != info.q_heads;
  const std::vector<float> gathered = split ? gather_queries(input) : std::vector<float>();
  const int rows = share ? info.kv_heads : info.q_heads;
  std::vector<std::vector<float>> scores(static_cast<std::size_t>(rows));
  for_each(input.threads, rows, [&](std::int64_t r) {
    const int row = static_cast<int>(r);
    const int kv = share ? row : info.kv_head_of(row);
    const float* q = input.q + static_cast<std::int64_t>(share ? row * group : row) * info.head_dim;
    if (split)
      q = gathered.data() + static_cast<std::int64_t>(info.kv_head_begin + row) * group * info.head_dim;
    const QueryParts parts = add_up(q, share ? group : 1, info.head_dim);
    const std::span<const float> metadata = bounds.of(kv);
    std::vector<float>& to = scores[static_cast<std::size_t>(row)];
    to.resize(metadata.size() / static_cast<std::size_t>(2 * info.head_dim));
    cpu_kernels().page_bounds(metadata.data(), std::ssize(to), info.head_dim, parts.plus.data(),
                              parts.minus.data(), to.data());
    for (const float s : to) {
      if (!std::isfinite(s)) throw_not_finite(info, share ? row * group : row);
    }
  });
  for (int row = 0; row < rows; ++row) {
    const auto floats = static_cast<double>(bounds.of(share ? row : info.kv_head_of(row)).size());
    counts.index_flops += 2.0 * floats;
    counts.index_bytes_read += floats * sizeof(float);
  }
  return scores;
}

}  // namespace lacuna
