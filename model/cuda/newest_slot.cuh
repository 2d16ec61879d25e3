// The address of a decode step's new row: see NewestSlots.
#pragma once

#include "attention/types.h"
#include "model/cuda/kernels.h"

namespace lacuna {

/// Where head `head` of row `row` goes, q's heads first, then k's, then v's; null when it is not kept.
__device__ inline __nv_bfloat16* newest_row(const NewestSlots& to, std::int64_t row, int head, int q_heads,
                                            int kv_heads, int head_dim) {
  if (head < q_heads) return to.q + (row * q_heads + head) * head_dim;
  const bool is_v = head >= q_heads + kv_heads;
  const DevicePagedHead cached = to.heads[row * kv_heads + head - q_heads - (is_v ? kv_heads : 0)];
  if (cached.tokens == 0) return nullptr;
  const std::int64_t slot = cached.tokens - 1;
  return to.pool + cached.page_ids[slot / kPageTokens] * to.page_elements +
         ((is_v ? kPageTokens : 0) + slot % kPageTokens) * head_dim;
}

}  // namespace lacuna
