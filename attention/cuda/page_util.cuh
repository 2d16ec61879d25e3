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

/// Adds what one list visits: `listed` pages, the head's last one among them if `last`, for `readers` query
/// heads.
__device__ inline void count_list(DecodeCounters& counters, const DevicePagedHead& head, int listed,
                                  bool last, int readers) {
  const int whole = listed * kPageTokens;
  const int read = whole - (last ? page_count(head) * kPageTokens - static_cast<int>(head.tokens) : 0);
  atomicAdd(&counters.visited_cells, static_cast<unsigned long long>(readers) * read);
  atomicAdd(&counters.computed_cells, static_cast<unsigned long long>(readers) * whole);
  atomicAdd(&counters.read_tokens, static_cast<unsigned long long>(read));
}
/// Query heads of this rank among the `group` that global kv head `kv` serves.
__device__ inline int readers_of(int kv, int group, int first_reader, int end_reader) {
  return max(0, min((kv + 1) * group, end_reader) - max(kv * group, first_reader));
}

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
