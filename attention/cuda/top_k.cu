// Top-k and top-p by radix descent: the threshold is found two bits at a time by counting, so that there are
// no atomics and sums have a fixed order.
#include <cmath>
#include <cstdint>

#include "attention/cuda/select_cuda.h"
#include "attention/cuda/take_in_order.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kMaxWarps = 32;

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
  int counts[3][kMaxWarps];
  double masses[3][kMaxWarps];
  int int_total[3];
  double double_total[3];
};

/// Sums over the block in a fixed order; every thread gets the result.
template <int kThreads, int kCount, class Value>
__device__ __forceinline__ void block_sum(Value (&value)[kCount], Value (*parts)[kMaxWarps], Value* totals) {
  constexpr int kWarps = kThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    for (int distance = 16; distance > 0; distance /= 2)
      value[c] += __shfl_down_sync(~0u, value[c], distance);
    if (lane == 0) parts[c][warp] = value[c];
  }
  __syncthreads();
  for (int c = warp; c < kCount; c += kWarps) {
    Value total = lane < kWarps ? parts[c][lane] : Value{0};
    for (int distance = kMaxWarps / 2; distance > 0; distance /= 2)
      total += __shfl_down_sync(~0u, total, distance);
    if (lane == 0) totals[c] = total;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kCount; ++c) value[c] = totals[c];
}

/// The block's view of one row while it looks for a threshold. A thread keeps kHeld entries in registers; 0:
/// the row is too long for that and is read again in every pass.
template <int kHeld, int kThreads>
struct Search {
  Row row;
  Shared& shared;
  std::uint32_t held[kHeld > 0 ? kHeld : 1];

  __device__ Search(const Row& r, Shared& s) : row(r), shared(s) {}
  __device__ void load() {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = j * kThreads + static_cast<int>(threadIdx.x);
        held[j] = i < row.n ? row.key(i) : 0;
      }
    }
  }
  template <class Body>
  __device__ void for_keys(Body&& body) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) {
        const int i = j * kThreads + static_cast<int>(threadIdx.x);
        if (i < row.n) body(held[j], i);
      }
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) body(row.key(i), i);
    }
  }

  /// The largest key t such that the entries with keys of t and more are at least k and, when wanted_mass >=
  /// 0, weigh more than that. `wanted` of the entries equal to t are needed. Zero and all when no t is
  /// enough.
  __device__ __forceinline__ void threshold(int k, double wanted_mass, std::uint32_t& t, int& above,
                                            int& wanted) const {
    t = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
      int counts[3] = {0, 0, 0};
      double masses[3] = {0.0, 0.0, 0.0};
      for_keys([&](std::uint32_t key, int i) {
#pragma unroll
        for (int c = 0; c < 3; ++c)
          if (key >= (t | (static_cast<std::uint32_t>(c + 1) << shift))) {
            ++counts[c];
            if (wanted_mass >= 0) masses[c] += row.scores[i];
          }
      });
      block_sum<kThreads>(counts, shared.counts, shared.int_total);
      if (wanted_mass >= 0) block_sum<kThreads>(masses, shared.masses, shared.double_total);
      std::uint32_t digit = 0;
#pragma unroll
      for (int c = 0; c < 3; ++c)
        if (counts[c] >= k && (wanted_mass < 0 || masses[c] > wanted_mass))
          digit = static_cast<std::uint32_t>(c) + 1;
      t |= digit << shift;
    }
    int counts[2] = {0, 0};
    double masses[1] = {0.0};
    for_keys([&](std::uint32_t key, int i) {
      counts[0] += key > t ? 1 : 0;
      counts[1] += key == t ? 1 : 0;
      if (wanted_mass >= 0 && key > t) masses[0] += row.scores[i];
    });
    block_sum<kThreads>(counts, shared.counts, shared.int_total);
    above = counts[0];
    wanted = max(0, k - above);
    if (wanted_mass >= 0) {
      block_sum<kThreads>(masses, shared.masses, shared.double_total);
      if (!(masses[0] > wanted_mass)) {
        // All entries of the group weigh the same: what the key stands for.
        const double value = __uint_as_float((t & 0x80000000u) != 0 ? t & 0x7FFFFFFFu : ~t);
        const double more = value > 0 ? floor((wanted_mass - masses[0]) / value) + 1.0 : counts[1];
        wanted = max(wanted, static_cast<int>(fmin(more, static_cast<double>(counts[1]))));
      }
    }
    wanted = min(wanted, counts[1]);
  }
};

template <int kHeld, int kThreads>
__global__ void __launch_bounds__(kThreads) top_k_kernel(const __grid_constant__ TopKParams params) {
  __shared__ Shared shared;
  const int row_index = static_cast<int>(blockIdx.x);
  std::int64_t row_out = row_index;
  if (params.rows_per_group > 0) {
    const int inside = row_index % params.rows_per_group;
    if (inside >= params.rows_used) return;
    row_out = row_index / params.rows_per_group * params.group_rows_out + inside;
  }
  const int n = params.row_n != nullptr ? params.row_n[row_index] : params.n;
  Row row{params.scores + row_index * params.score_stride, n, 0, 0};
  int k = min(max(params.k, 0), n);
  Search<kHeld, kThreads> search(row, shared);

  if (params.mass >= 0.0f) {  // how many entries the mass needs, before any is forced
    search.load();
    double total[1] = {params.mass_total};
    if (params.mass_total <= 0.0f) {
      total[0] = 0.0;
      search.for_keys([&](std::uint32_t, int i) { total[0] += row.scores[i]; });
      block_sum<kThreads>(total, shared.masses, shared.double_total);
    }
    std::uint32_t t;
    int above, wanted;
    search.threshold(0, params.mass * total[0], t, above, wanted);
    k = max(k, above + wanted);
  }
  search.row.first = row.first = min(params.first, n);
  search.row.last = row.last = min(params.last, n);
  k = min(n, max(k, params.first + params.last));
  const bool everything = k >= n;
  std::uint32_t threshold = 0;
  int above_count = 0, wanted = n;
  if (!everything) {
    search.load();
    search.threshold(k, -1.0, threshold, above_count, wanted);
  }

  const auto standing = [&](int i) {
    const std::uint32_t key = row.key(i);
    if (everything || key > threshold) return Standing::kAbove;
    return key == threshold ? Standing::kEqual : Standing::kBelow;
  };
  const int written =
      take_in_order<kThreads>(n, wanted, standing, params.indices + row_out * params.index_stride);
  if (threadIdx.x == 0) params.counts[row_out] = written;
}

}  // namespace

void top_k_cuda(const TopKParams& params, cudaStream_t stream) {
  if (params.rows == 0) return;
  const auto rows = static_cast<unsigned>(params.rows);
  if (params.n <= 32 * 64) {  // short rows come by the thousand: small blocks
    top_k_kernel<32, 64><<<rows, 64, 0, stream>>>(params);
  } else if (params.n <= 8 * 1024 && rows <= 256) {  // few rows: a step of decoding waits for them
    top_k_kernel<8, 1024><<<rows, 1024, 0, stream>>>(params);
  } else if (params.n <= 32 * 256) {
    top_k_kernel<32, 256><<<rows, 256, 0, stream>>>(params);
  } else {
    top_k_kernel<0, 1024><<<rows, 1024, 0, stream>>>(params);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
