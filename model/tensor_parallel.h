// Which part of a model one rank holds: query heads, kv heads and MLP columns by equal shares, the vocabulary
// by ranges.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace lacuna {

struct Shard {
  int tp = 1, rank = 0;
  int q_heads = 0, q_head_begin = 0;
  int kv_heads = 0,
      kv_head_begin = 0;  ///< With fewer kv heads than ranks, neighbouring ranks hold the same one.
  std::int64_t mlp = 0, mlp_begin = 0;
  std::int64_t vocab = 0, vocab_begin = 0;
};

/// What a degree needs: query heads and MLP columns that divide by it, kv heads that divide by it or divide
/// it.
bool degree_works(int q_heads, int kv_heads, int mlp, int tp);
/// All degrees that work.
std::vector<int> working_degrees(int q_heads, int kv_heads, int mlp);
/// Throws kUsage naming `what` (the model) and the degrees that would work.
void check_degree(const ModelConfig& config, int tp, const std::string& what);
Shard make_shard(const ModelConfig& config, int tp, int rank);
/// Largest vocabulary share of any rank.
std::int64_t largest_vocab_share(int vocab, int tp);

}  // namespace lacuna
