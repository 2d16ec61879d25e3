#include "attention/methods/eviction.h"

#include <algorithm>
#include <limits>

#include "attention/methods/common.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

std::vector<std::vector<double>> score_all_heads(const PrefillInput& input, AttentionCounts& counts,
                                                 const HeadScores& score) {
  std::vector<std::vector<double>> local(static_cast<std::size_t>(input.info.q_heads));
  std::vector<double> flops(local.size());
  for_each(input.threads, std::ssize(local), [&](std::int64_t head) {
    const auto h = static_cast<std::size_t>(head);
    local[h] = score(static_cast<int>(head), flops[h]);
  });
  for (const double f : flops) counts.index_flops += f;
  return gather_heads(input, std::move(local));
}

std::vector<std::vector<double>> group_heads(const LayerInfo& info,
                                             const std::vector<std::vector<double>>& scores, GroupBy by) {
  const auto kv_heads = static_cast<std::size_t>(info.kv_heads_total);
  const auto group = static_cast<std::size_t>(info.q_heads_total) / kv_heads;
  std::vector<std::vector<double>> grouped(kv_heads);
  for (std::size_t kv = 0; kv < kv_heads; ++kv) {
    std::vector<double> to = scores[kv * group];
    for (std::size_t g = 1; g < group; ++g) {
      const std::vector<double>& from = scores[kv * group + g];
      for (std::size_t t = 0; t < to.size(); ++t)
        to[t] = by == GroupBy::kMax ? std::max(to[t], from[t]) : to[t] + from[t];
    }
    if (by == GroupBy::kMean) {
      for (double& x : to) x /= static_cast<double>(group);
    }
    grouped[kv] = std::move(to);
  }
  return grouped;
}

void force_ends(std::vector<double>& importance, std::int64_t first, std::int64_t last) {
  const std::int64_t n = std::ssize(importance);
  const double always = std::numeric_limits<double>::infinity();
  std::fill(importance.begin(), importance.begin() + std::min(first, n), always);
  std::fill(importance.begin() + std::max<std::int64_t>(0, n - last), importance.end(), always);
}

KeptTokens keep_attended(const PrefillInput& input, AttentionCounts& counts, const AttendedRequest& request) {
  if (request.capacity >= input.q.tokens) return {};
  const IndexTimer timer(counts);
  const auto scores = score_all_heads(input, counts, [&](int head, double& flops) {
    WindowScores window = window_scores(input, head, {.window = request.window});
    flops = window.flops;
    return std::move(window.column_sum);
  });
  KeptTokens kept;
  for (const auto& sums : group_heads(input.info, scores, GroupBy::kMean)) {
    std::vector<double> importance = average_pool(sums, request.kernel);
    force_ends(importance, request.first, request.last);
    kept.push_back(top_indices(importance, std::max(request.capacity, request.first + request.last)));
  }
  return local_heads(input.info, std::move(kept));
}

KeptTokens local_heads(const LayerInfo& info, KeptTokens all) {
  const auto begin = all.begin() + info.kv_head_begin;
  return {std::make_move_iterator(begin), std::make_move_iterator(begin + info.kv_heads)};
}

}  // namespace lacuna
