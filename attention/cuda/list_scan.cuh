// Turns counts into places: the step between counting and writing the ranges of tile lists.
#pragma once

#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

inline constexpr int kScanThreads = 1024, kScanLists = 8;  ///< lists of one thread at a time

/// Calls emit(start, end) for the runs of set bits among the first `count`, in tokens, from left to right.
template <class Emit>
__device__ void walk_bits(const std::uint32_t* bits, int count, int block, int tokens, Emit&& emit) {
  int start = -1;
  for (int base = 0; base < count; base += 32) {
    std::uint32_t word = bits[base / 32];
    if (count - base < 32) word &= (1u << (count - base)) - 1;
    if (start < 0 && word == 0) continue;
    if (start >= 0 && word == ~0u) continue;
    for (int b = 0; b < 32; ++b) {
      const bool set = (word >> b & 1u) != 0;
      if (set && start < 0) start = base + b;
      if (!set && start >= 0) {
        emit(start * block, min((base + b) * block, tokens));
        start = -1;
      }
    }
  }
  if (start >= 0) emit(start * block, min(count * block, tokens));
}

/// On entry range_begin[1 + i] is the number of ranges of list i; on exit range_begin is the CSR index. A
/// list that does not fit into max_ranges is cut, and overflow is set.
static __global__ void list_scan_kernel(std::int64_t* range_begin, std::int64_t lists,
                                        std::int64_t max_ranges, int* overflow) {
  __shared__ std::int64_t warp_total[kScanThreads / 32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  std::int64_t before = 0;
  if (thread == 0) range_begin[0] = 0;
  for (std::int64_t base = 0; base < lists; base += kScanThreads * kScanLists) {
    std::int64_t* own = range_begin + 1 + base + thread * kScanLists;
    const std::int64_t left = lists - base - thread * kScanLists;
    std::int64_t values[kScanLists], sum = 0;
#pragma unroll
    for (int j = 0; j < kScanLists; ++j) values[j] = j < left ? own[j] : 0;
#pragma unroll
    for (int j = 0; j < kScanLists; ++j) sum = values[j] += sum;
    std::int64_t until = sum;
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int64_t other = __shfl_up_sync(~0u, until, distance);
      if (lane >= distance) until += other;
    }
    if (lane == 31) warp_total[warp] = until;
    __syncthreads();
    std::int64_t until_warp = before, total = 0;
    for (int w = 0; w < kScanThreads / 32; ++w) {
      if (w < warp) until_warp += warp_total[w];
      total += warp_total[w];
    }
#pragma unroll
    for (int j = 0; j < kScanLists; ++j)
      if (j < left) own[j] = min(until_warp + until - sum + values[j], max_ranges);
    before += total;
    __syncthreads();
  }
  if (thread == 0 && before > max_ranges) *overflow = 1;
}

inline void launch_list_scan(const TileListsOut& out, std::int64_t lists, cudaStream_t stream) {
  list_scan_kernel<<<1, kScanThreads, 0, stream>>>(out.range_begin, lists, out.max_ranges, out.overflow);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
