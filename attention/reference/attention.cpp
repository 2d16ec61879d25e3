#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/reference/reference.h"

namespace lacuna::reference {

Mask causal_mask(std::int64_t tokens, int window) {
  const auto n = static_cast<std::size_t>(tokens);
  Mask mask(n, std::vector<bool>(n));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) mask[i][j] = window == 0 || i - j < static_cast<std::size_t>(window);
  }
  return mask;
}

Mask mask_of(const TileLists& lists, int head, int window) {
  const Mask causal = causal_mask(lists.tokens, window);
  if (lists.dense) return causal;
  const auto n = static_cast<std::size_t>(lists.tokens);
  Mask mask(n, std::vector<bool>(n));
  for (std::size_t i = 0; i < n; ++i) {
    for (const KeyRange& range : lists.ranges_of(head, static_cast<std::int64_t>(i) / lists.row_block)) {
      for (std::int32_t j = range.start; j < range.start + range.width; ++j) {
        if (static_cast<std::size_t>(j) < n && causal[i][static_cast<std::size_t>(j)])
          mask[i][static_cast<std::size_t>(j)] = true;
      }
    }
    for (const std::int32_t j : lists.columns_of(head)) {
      if (causal[i][static_cast<std::size_t>(j)]) mask[i][static_cast<std::size_t>(j)] = true;
    }
  }
  return mask;
}

float score(const float* q, const float* k, const LayerInfo& info) {
  float dot = 0;
  for (int c = 0; c < info.head_dim; ++c) dot += q[c] * k[c];
  const float s = info.scale * dot;
  return info.softcap > 0 ? info.softcap * std::tanh(s / info.softcap) : s;
}

namespace {

/// out = sum of softmax(scores) * values. Nothing to see: zeros.
void weigh(const std::vector<float>& scores, const std::vector<const float*>& values, int head_dim,
           float* out) {
  std::fill(out, out + head_dim, 0.0f);
  if (scores.empty()) return;
  const float top = *std::max_element(scores.begin(), scores.end());
  float sum = 0;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const float p = std::exp(scores[j] - top);
    sum += p;
    for (int c = 0; c < head_dim; ++c) out[c] += p * values[j][c];
  }
  for (int c = 0; c < head_dim; ++c) out[c] /= sum;
}

}  // namespace

std::vector<float> attention(const PrefillInput& input, int q_head, const Mask& mask) {
  const int kv = input.info.kv_head_of(q_head);
  const auto dim = static_cast<std::size_t>(input.info.head_dim);
  std::vector<float> out(mask.size() * dim);
  for (std::size_t i = 0; i < mask.size(); ++i) {
    std::vector<float> scores;
    std::vector<const float*> values;
    for (std::size_t j = 0; j <= i; ++j) {
      if (!mask[i][j]) continue;
      const auto row = static_cast<std::int64_t>(i), key = static_cast<std::int64_t>(j);
      scores.push_back(score(input.q.row(q_head, row), input.k.row(kv, key), input.info));
      values.push_back(input.v.row(kv, key));
    }
    weigh(scores, values, input.info.head_dim, out.data() + i * dim);
  }
  return out;
}

std::vector<float> decode_attention(const float* q, const PagedHead& head,
                                    const std::vector<std::int64_t>& tokens, const float* pool,
                                    std::int64_t page_elements, const LayerInfo& info) {
  std::vector<float> scores, out(static_cast<std::size_t>(info.head_dim));
  std::vector<const float*> values;
  for (const std::int64_t t : tokens) {
    const float* page = pool + head.page_ids[static_cast<std::size_t>(t / kPageTokens)] * page_elements;
    scores.push_back(score(q, page + t % kPageTokens * info.head_dim, info));
    values.push_back(page + (kPageTokens + t % kPageTokens) * info.head_dim);
  }
  weigh(scores, values, info.head_dim, out.data());
  return out;
}

std::vector<std::vector<float>> window_weights(const PrefillInput& input, int q_head, std::int64_t window) {
  const std::int64_t tokens = input.q.tokens, rows = std::min(window, tokens);
  std::vector<std::vector<float>> weights;
  for (std::int64_t i = tokens - rows; i < tokens; ++i) {
    std::vector<float> row(static_cast<std::size_t>(tokens));
    const std::int64_t first =
        input.info.window > 0 ? std::max<std::int64_t>(0, i - input.info.window + 1) : 0;
    float top = -INFINITY;
    for (std::int64_t j = first; j <= i; ++j) {
      row[static_cast<std::size_t>(j)] =
          score(input.q.row(q_head, i), input.k.row(input.info.kv_head_of(q_head), j), input.info);
      top = std::max(top, row[static_cast<std::size_t>(j)]);
    }
    double sum = 0;
    for (std::int64_t j = first; j <= i; ++j)
      sum += std::exp(static_cast<double>(row[static_cast<std::size_t>(j)] - top));
    for (std::int64_t j = first; j <= i; ++j) {
      float& p = row[static_cast<std::size_t>(j)];
      p = static_cast<float>(std::exp(static_cast<double>(p - top)) / sum);
    }
    weights.push_back(std::move(row));
  }
  return weights;
}

std::vector<std::int32_t> top(const std::vector<double>& scores, std::int64_t k) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(std::clamp<std::int64_t>(k, 0, std::ssize(order))));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace lacuna::reference
