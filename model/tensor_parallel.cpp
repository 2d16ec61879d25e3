#include "model/tensor_parallel.h"

#include <fmt/ranges.h>

#include "core/error.h"

namespace lacuna {

bool degree_works(int q_heads, int kv_heads, int mlp, int tp) {
  return tp >= 1 && q_heads % tp == 0 && mlp % tp == 0 && (kv_heads % tp == 0 || tp % kv_heads == 0);
}

std::vector<int> working_degrees(int q_heads, int kv_heads, int mlp) {
  std::vector<int> degrees;
  for (int tp = 1; tp <= q_heads; ++tp) {
    if (degree_works(q_heads, kv_heads, mlp, tp)) degrees.push_back(tp);
  }
  return degrees;
}

void check_degree(const ModelConfig& config, int tp, const std::string& what) {
  if (degree_works(config.q_heads, config.kv_heads, config.mlp, tp)) return;
  throw_usage(
      "{}: {} ranks cannot share {} query heads, {} kv heads and {} MLP columns; rank counts that work: {}",
      what, tp, config.q_heads, config.kv_heads, config.mlp,
      fmt::join(working_degrees(config.q_heads, config.kv_heads, config.mlp), ", "));
}

Shard make_shard(const ModelConfig& config, int tp, int rank) {
  LACUNA_CHECK(degree_works(config.q_heads, config.kv_heads, config.mlp, tp), "degree {}", tp);
  Shard shard{.tp = tp, .rank = rank};
  shard.q_heads = config.q_heads / tp;
  shard.q_head_begin = rank * shard.q_heads;
  shard.kv_heads = config.kv_heads >= tp ? config.kv_heads / tp : 1;
  shard.kv_head_begin = config.kv_heads >= tp ? rank * shard.kv_heads : rank / (tp / config.kv_heads);
  shard.mlp = config.mlp / tp;
  shard.mlp_begin = rank * shard.mlp;
  shard.vocab_begin = std::int64_t{config.vocab} * rank / tp;
  shard.vocab = std::int64_t{config.vocab} * (rank + 1) / tp - shard.vocab_begin;
  return shard;
}

std::int64_t largest_vocab_share(int vocab, int tp) { return (std::int64_t{vocab} + tp - 1) / tp; }

}  // namespace lacuna
