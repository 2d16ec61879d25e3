// One layer's prefill, eviction or decode step on anybody's captured Q, K and V: what `lacuna attend` runs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attention/strategy.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

namespace lacuna {

/// Q [q_heads, queries, head_dim]; K and V [kv_heads, tokens, head_dim]; float32 or float16, kv_heads
/// dividing q_heads. As many queries as tokens: a prompt. One query and more tokens: the decode step of the
/// last of them.
struct AttendInput {
  TensorView q, k, v;
  std::optional<float> scale = {};  ///< Absent: 1/sqrt(head_dim).
  float softcap = 0;
  int window = 0;  ///< Sliding window of the layer; 0: none.
  int layer = 0, layers = 1;
  std::uint64_t seed = 0;
};

struct AttendResult {
  bool decode = false;
  Tensor out;  ///< float32, shaped as Q.
  AttentionCounts counts;
  double attention_seconds = 0;
  std::vector<double> head_sparsity;  ///< [q_heads], 1 - visited / causal cells.

  TileLists lists;                              ///< Prefill: what was executed.
  std::vector<std::vector<std::int32_t>> kept;  ///< Eviction: positions per kv head; empty: everything.
  std::vector<PageList> pages;                  ///< Decode: per kv head, or per query head.
  std::int64_t kv_bytes_resident = 0;           ///< K and V after eviction, as float32.
  std::int64_t kv_bytes_full = 0;
  std::size_t state_bytes = 0;  ///< Decode metadata.
};

/// Throws kUsage naming the array and its shape when shapes do not fit each other, when values are not
/// finite, or when the strategy has a slot that this kind of step does not run.
AttendResult attend(const AttendInput& input, const StrategySpec& strategy, ThreadPool& threads);

/// What was kept, as uint8 [.., .., ..] of 0 and 1:
/// prefill: [q_heads, row_blocks, tokens], keys that the block's rows visit, before the causal mask;
/// eviction: [kv_heads, tokens]; decode: [lists, tokens], the tokens whose page was read.
Tensor kept_array(const AttendResult& result, std::int64_t tokens);

}  // namespace lacuna
