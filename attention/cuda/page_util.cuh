// What the page kernels share.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention/cuda/page_choice.h"

namespace lacuna {

__device__ inline int page_count(const DevicePagedHead& head) {
  return static_cast<int>((head.tokens + kPageTokens - 1) / kPageTokens);
}

/// Local query heads [begin, end) that a kv head serves.
struct QueryHeads {
  int begin, end;
  __device__ QueryHeads(const LayerInfo& info, int kv) {
    const int group = info.q_heads_total / info.kv_heads_total;
    const int first = (info.kv_head_begin + kv) * group - info.q_head_begin;
    begin = max(0, first);
    end = min(info.q_heads, first + group);
  }
};

/// Eight bfloat16 as floats.
__device__ inline void unpack(const uint4& words, float (&x)[8]) {
  const std::uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(w[i] << 16);
    x[2 * i + 1] = __uint_as_float(w[i] & 0xFFFF0000u);
  }
}

}  // namespace lacuna
