// Runs of bits as ranges, and the step between counting the ranges of tile lists and writing them.
#pragma once

#include "attention/cuda/radix.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda_launch.cuh"

namespace lacuna {

inline constexpr int kScanThreads = 1024, kScanLists = 8;  ///< lists of one thread at a time

/// The bits of word `word` among the first `count`.
__device__ inline unsigned bits_among(const std::uint32_t* bits, int count, int word) {
  const int left = count - word * 32;
  if (left <= 0) return 0;
  return left < 32 ? bits[word] & ((1u << left) - 1) : bits[word];
}
/// Runs of set bits among the first `count`.
__device__ inline int count_runs(const std::uint32_t* bits, int count) {
  int runs = 0;
  unsigned before = 0;
  for (int word = 0; word * 32 < count; ++word) {
    const unsigned x = bits_among(bits, count, word);
    runs += __popc(x & ~(x << 1 | before >> 31));
    before = x;
  }
  return runs;
}
/// A whole warp calls emit(i, start, end) for the runs of set bits among the first `count`, i counting them
/// from the left, and returns how many there are. A lane takes every 32nd word.
template <class Emit>
__device__ int warp_runs(const std::uint32_t* bits, int count, const Emit& emit) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const auto lowest = [](unsigned word) { return __popc((word & (0u - word)) - 1); };
  int runs = 0;
  unsigned carry = 0;
  for (int first = 0; first * 32 < count; first += 32) {
    const unsigned word = bits_among(bits, count, first + lane);
    unsigned before = __shfl_up_sync(~0u, word, 1);
    if (lane == 0) before = carry;
    carry = __shfl_sync(~0u, word, 31);
    const unsigned starts = word & ~(word << 1 | before >> 31);
    const int number = __popc(starts), until = inclusive_scan(number);
    int run = runs + until - number;
    for (unsigned rest = starts; rest != 0; rest &= rest - 1, ++run) {
      const int bit = lowest(rest);
      unsigned ends = ~word & ~((1u << bit) - 1);
      int end_word = first + lane;
      while (ends == 0) ends = ~bits_among(bits, count, ++end_word);
      emit(run, (first + lane) * 32 + bit, end_word * 32 + lowest(ends));
    }
    runs += __shfl_sync(~0u, until, 31);
  }
  return runs;
}

/// On entry range_begin[1 + i] is the number of ranges of list i; on exit range_begin is the CSR index. A
/// list that does not fit into max_ranges is cut, and overflow is set.
static __global__ void __launch_bounds__(kScanThreads)
    list_scan_kernel(std::int64_t* range_begin, std::int64_t lists, std::int64_t max_ranges, int* overflow) {
  static_assert(kScanThreads == 32 * 32);
  __shared__ std::int64_t of_warps[kScanThreads / 32];
  wait_for_previous();
  let_next_start();
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  constexpr int kAtOnce = kScanThreads * kScanLists;
  std::int64_t* own = range_begin + 1 + thread * kScanLists;
  std::int64_t left = lists - thread * kScanLists, before = 0, next[kScanLists];
  const auto load = [&](std::int64_t first) {
#pragma unroll
    for (int j = 0; j < kScanLists; ++j) next[j] = first + j < left ? own[first + j] : 0;
  };
  if (thread == 0) range_begin[0] = 0;
  load(0);
  for (std::int64_t base = 0; base < lists; base += kAtOnce) {
    std::int64_t values[kScanLists], sum = 0;
#pragma unroll
    for (int j = 0; j < kScanLists; ++j) values[j] = sum += next[j];
    load(base + kAtOnce);  // on their way meanwhile
    const std::int64_t until = inclusive_scan(sum);
    if (lane == 31) of_warps[warp] = until;
    __syncthreads();
    const std::int64_t until_warps = inclusive_scan(of_warps[lane]);
    const std::int64_t earlier = __shfl_sync(~0u, until_warps, max(warp - 1, 0));
    const std::int64_t begin = before + (warp == 0 ? 0 : earlier) + until - sum;
#pragma unroll
    for (int j = 0; j < kScanLists; ++j)
      if (base + j < left) own[base + j] = min(begin + values[j], max_ranges);
    before += __shfl_sync(~0u, until_warps, 31);
    __syncthreads();
  }
  if (thread == 0 && before > max_ranges) *overflow = 1;
}

inline void launch_list_scan(const TileListsOut& out, std::int64_t lists, cudaStream_t stream) {
  launch_dependent(list_scan_kernel, 1, kScanThreads, 0, stream, out.range_begin, lists, out.max_ranges,
                   out.overflow);
}

}  // namespace lacuna
