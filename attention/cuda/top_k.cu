// Top-k and top-p by radix descent: the threshold is found two bits at a time by counting, so that there are no atomics
// and sums have a fixed order.
#include <cmath>
#include <cstdint>

#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

/// Order-preserving map of floats to unsigned integers; a larger float is a larger integer.
__device__ std::uint32_t sortable(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The scores of one row, with the forced entries raised to the top.
struct Row {
  const float* scores;
  int n, first, last;
  __device__ std::uint32_t key(int i) const {
    return i < first || i >= n - last ? 0xFFFFFFFFu : sortable(scores[i]);
  }
};

struct Shared {
  int counts[3][kWarps];
  double masses[3][kWarps];
  int int_total[3];
  double double_total[3];
};

/// Sums over the block in a fixed order; every thread gets the result.
template <int kCount, class Value>
__device__ void block_sum(Value (&value)[kCount], Value (*parts)[kWarps], Value* totals) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    for (int distance = 16; distance > 0; distance /= 2) value[c] += __shfl_down_sync(~0u, value[c], distance);
    if (lane == 0) parts[c][warp] = value[c];
  }
  __syncthreads();
  if (warp < kCount) {
    Value total = lane < kWarps ? parts[warp][lane] : Value{0};
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_down_sync(~0u, total, distance);
    if (lane == 0) totals[warp] = total;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kCount; ++c) value[c] = totals[c];
}

/// Entries of the row are kept in registers when a thread has at most this many.
constexpr int kHeld = 32;

template <bool kHold>
__global__ void __launch_bounds__(kThreads, 1) top_k_kernel(const __grid_constant__ TopKParams params) {
  __shared__ Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int row_index = static_cast<int>(blockIdx.x);
  Row row;
  row.scores = params.scores + row_index * params.score_stride;
  row.n = params.row_n != nullptr ? params.row_n[row_index] : params.n;
  row.first = min(params.first, row.n);
  row.last = min(params.last, row.n);
  const int k = min(max(params.k, 0), row.n);

  std::uint32_t held[kHold ? kHeld : 1];
  if constexpr (kHold) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const int i = j * kThreads + thread;
      held[j] = i < row.n ? row.key(i) : 0;
    }
  }
  const auto for_keys = [&](auto&& body) {
    if constexpr (kHold) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j)
        if (j * kThreads + thread < row.n) body(held[j], j * kThreads + thread);
    } else {
      for (int i = thread; i < row.n; i += kThreads) body(row.key(i), i);
    }
  };

  // The smallest prefix of the sorted row that satisfies both wishes ends inside the group of entries whose key is
  // `threshold`; `above` entries are larger.
  double wanted_mass = -1.0;
  if (params.mass >= 0.0f) {
    double total[1] = {0.0};
    for_keys([&](std::uint32_t, int i) { total[0] += row.scores[i]; });
    block_sum(total, shared.masses, shared.double_total);
    wanted_mass = params.mass * total[0];
  }
  // A prefix of entries with key >= t is enough when it has k entries and more than the wanted mass.
  const auto enough = [&](int count, double mass) { return count >= k && (wanted_mass < 0 || mass > wanted_mass); };
  std::uint32_t threshold = 0;
  bool everything = k >= row.n;
  if (!everything) {
    for (int shift = 30; shift >= 0; shift -= 2) {
      int counts[3] = {0, 0, 0};
      double masses[3] = {0.0, 0.0, 0.0};
      for_keys([&](std::uint32_t key, int i) {
#pragma unroll
        for (int c = 0; c < 3; ++c)
          if (key >= (threshold | (static_cast<std::uint32_t>(c + 1) << shift))) {
            ++counts[c];
            if (wanted_mass >= 0) masses[c] += row.scores[i];
          }
      });
      block_sum(counts, shared.counts, shared.int_total);
      if (wanted_mass >= 0) block_sum(masses, shared.masses, shared.double_total);
      int digit = 0;
#pragma unroll
      for (int c = 0; c < 3; ++c)
        if (enough(counts[c], masses[c])) digit = c + 1;
      threshold |= static_cast<std::uint32_t>(digit) << shift;
    }
  }
  // How many of the entries equal to the threshold are needed.
  int wanted = row.n;
  if (!everything) {
    int counts[2] = {0, 0};
    double masses[1] = {0.0};
    for_keys([&](std::uint32_t key, int i) {
      counts[0] += key > threshold ? 1 : 0;
      counts[1] += key == threshold ? 1 : 0;
      if (wanted_mass >= 0 && key > threshold) masses[0] += row.scores[i];
    });
    block_sum(counts, shared.counts, shared.int_total);
    wanted = max(k, counts[0]);
    if (wanted_mass >= 0) {
      block_sum(masses, shared.masses, shared.double_total);
      // All entries of the group have one value, the threshold's (forced ones need no counting: they are in by k).
      const std::uint32_t bits = (threshold & 0x80000000u) != 0 ? threshold & 0x7FFFFFFFu : ~threshold;
      const double value = __uint_as_float(bits);
      if (!(masses[0] > wanted_mass) && value > 0) {
        const double more = floor((wanted_mass - masses[0]) / value) + 1.0;
        wanted = max(wanted, counts[0] + static_cast<int>(fmin(more, static_cast<double>(counts[1]))));
      } else if (!(masses[0] > wanted_mass)) {
        wanted = max(wanted, counts[0] + counts[1]);
      }
    }
    wanted = min(wanted, counts[0] + counts[1]);
    wanted -= counts[0];  // of the group
  }

  // Compaction in index order: all above the threshold, and the first `wanted` of the group.
  std::int32_t* to = params.indices + row_index * params.index_stride;
  int written = 0, group_seen = 0;
  __shared__ int warp_take[kWarps], warp_group[kWarps];
  const int lane = thread & 31, warp = thread >> 5;
  for (int base = 0; base < row.n; base += kThreads) {
    const int i = base + thread;
    std::uint32_t key = 0;
    bool above = false, equal = false;
    if (i < row.n) {
      key = row.key(i);
      above = everything || key > threshold;
      equal = !everything && key == threshold;
    }
    const unsigned equal_votes = __ballot_sync(~0u, equal);
    if (lane == 0) warp_group[warp] = __popc(equal_votes);
    __syncthreads();
    int group_before = group_seen, group_total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) group_before += warp_group[w];
      group_total += warp_group[w];
    }
    group_before += __popc(equal_votes & ((1u << lane) - 1));
    const bool take = above || (equal && group_before < wanted);
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
    group_seen += group_total;
    __syncthreads();
  }
  if (thread == 0) {
    if (params.append_n) to[written] = row.n;
    params.counts[row_index] = written + (params.append_n ? 1 : 0);
  }
}

}  // namespace

void top_k_cuda(const TopKParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  if (params.n <= kHeld * kThreads) {
    top_k_kernel<true><<<static_cast<unsigned>(params.rows), kThreads, 0, stream>>>(params);
  } else {
    top_k_kernel<false><<<static_cast<unsigned>(params.rows), kThreads, 0, stream>>>(params);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
