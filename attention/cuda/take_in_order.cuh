// The last step of every top-k: indices of what was chosen, ascending.
#pragma once

#include <cstdint>

namespace lacuna {

/// Where an entry stands relative to the threshold of a choice.
enum class Standing { kBelow, kEqual, kAbove };

/// Writes the indices i < n whose standing(i) is kAbove, and the first `wanted` of those that are kEqual, to
/// `to` in ascending order. The whole block of kThreads calls it; every thread gets how many were written.
template <int kThreads, class Of>
__device__ int take_in_order(int n, int wanted, const Of& standing, std::int32_t* to) {
  constexpr int kWarps = kThreads / 32;
  __shared__ int warp_take[kWarps], warp_equal[kWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  int written = 0, equal_seen = 0;
  for (int base = 0; base < n; base += kThreads) {
    const int i = base + thread;
    const Standing at = i < n ? standing(i) : Standing::kBelow;
    const bool equal = at == Standing::kEqual;
    const unsigned equal_votes = __ballot_sync(~0u, equal);
    if (lane == 0) warp_equal[warp] = __popc(equal_votes);
    __syncthreads();
    int before = equal_seen, equal_total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += warp_equal[w];
      equal_total += warp_equal[w];
    }
    before += __popc(equal_votes & ((1u << lane) - 1));
    const bool take = at == Standing::kAbove || (equal && before < wanted);
    const unsigned votes = __ballot_sync(~0u, take);
    if (lane == 0) warp_take[warp] = __popc(votes);
    __syncthreads();
    int place = written, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) place += warp_take[w];
      total += warp_take[w];
    }
    if (take) to[place + __popc(votes & ((1u << lane) - 1))] = i;
    written += total;
    equal_seen += equal_total;
    __syncthreads();
  }
  return written;
}

}  // namespace lacuna
