// How to compute: one prefill kernel over tile lists and one decode kernel over page lists. Dispatched once
// by device.
#pragma once

#include <span>

#include "attention/types.h"
#include "core/thread_pool.h"

namespace lacuna {

/// out [q_heads, tokens, head_dim] = softmax(scale * q k^T under lists, causal mask and window) v, online
/// softmax, fp32. A row that visits nothing gets zeros. head_dim a multiple of 8, up to 256. Adds what was
/// executed to `counts` (cells, flops). The bits do not depend on the number of threads.
void attention_prefill(const PrefillInput& input, const TileLists& lists, const HeadsView& out,
                       ThreadPool& pool, AttentionCounts& counts);

/// One sequence's part of a batched decode step in one layer.
struct DecodeWork {
  const float* q = nullptr;          ///< [q_heads, head_dim]
  float* out = nullptr;              ///< [q_heads, head_dim]
  std::span<const PagedHead> heads;  ///< [kv_heads]
  /// Empty: read every page. Size kv_heads: one list per kv head. Size q_heads: one per query head.
  std::span<const PageList> lists = {};
  /// Tokens that dense attention over an uncut cache would see: the sequence's length. Only for accounting
  /// (causal_cells) after an eviction; the default counts what the cache holds.
  std::int64_t context_tokens = 0;
};

/// Decode attention for a batch of sequences. Each sequence's result does not depend on the others or on the
/// threads. With info.window > 0 only the last `window` tokens are read. Adds cells, flops and kv_bytes_read
/// to counts[i] of sequence i.
void attention_decode(std::span<const DecodeWork> batch, const float* pool, std::int64_t page_elements,
                      const LayerInfo& info, ThreadPool& threads, std::span<AttentionCounts> counts);

}  // namespace lacuna
