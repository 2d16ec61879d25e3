// What the evictors share: importance of cached tokens from the last queries, and choosing under a capacity.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "attention/types.h"

namespace lacuna {

using KeptTokens = std::vector<std::vector<std::int32_t>>;

/// Importance per query head, local heads in, all heads of the layer out (see gather_heads).
using HeadScores = std::function<std::vector<double>(int q_head, double& flops)>;
std::vector<std::vector<double>> score_all_heads(const PrefillInput& input, AttentionCounts& counts,
                                                 const HeadScores& score);

enum class GroupBy { kMean, kMax };
/// [kv_heads_total][tokens] from [q_heads_total][tokens]: mean or maximum over the query heads of each kv
/// head, heads in ascending order.
std::vector<std::vector<double>> group_heads(const LayerInfo& info,
                                             const std::vector<std::vector<double>>& scores, GroupBy by);

/// Gives the first `first` and the last `last` tokens infinite importance.
void force_ends(std::vector<double>& importance, std::int64_t first, std::int64_t last);

/// SnapKV's rule: attention of the last `window` queries, mean over the query heads of a kv head, averaged
/// over `kernel` neighbours; the first `first` and the last `last` tokens and the best others stay,
/// `capacity` in all (at least those). Empty when nothing has to go.
struct AttendedRequest {
  std::int64_t capacity = 0, window = 0;
  int kernel = 1;
  std::int64_t first = 0, last = 0;
};
KeptTokens keep_attended(const PrefillInput& input, AttentionCounts& counts, const AttendedRequest& request);

/// PyramidKV's capacity of one layer: falls linearly from 2 c - c / beta in the first layer to c / beta in
/// the last, c on average. When the first would exceed the prompt, both ends move so that the average stays.
std::int64_t pyramid_capacity(std::int64_t capacity, double beta, const LayerInfo& info, std::int64_t tokens);

/// Rows of this rank's kv heads out of rows for all.
KeptTokens local_heads(const LayerInfo& info, KeptTokens all);

}  // namespace lacuna
