// Importance in double: sums over heads, and the k best. The threshold is found two bits of the double at a
// time by counting, as in top_k.cu.
#include <cmath>
#include <cstdint>

#include "attention/cuda/select_cuda.h"
#include "attention/cuda/take_in_order.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
using Key = unsigned long long;

/// row(i) = the sum of `from`'s rows [begin, end), in order, over `divisor`.
__device__ double row_sum(const double* from, int begin, int end, std::int64_t tokens, int token,
                          double divisor) {
  double sum = from[begin * tokens + token];
  for (int row = begin + 1; row < end; ++row) sum += from[row * tokens + token];
  return sum / divisor;
}

__global__ void group_means_kernel(const double* from, int group, int head_base, int kv_base, int q_heads,
                                   int tokens, double* to) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x),
            kv = static_cast<int>(blockIdx.y);
  if (token >= tokens) return;
  const int begin = max(0, (kv + kv_base) * group - head_base),
            end = min(q_heads, (kv + kv_base + 1) * group - head_base);
  to[static_cast<std::int64_t>(kv) * tokens + token] = row_sum(from, begin, end, tokens, token, end - begin);
}

__global__ void sum_rows_kernel(const float* from, int rows, int tokens, double* to) {
  const int token = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (token >= tokens) return;
  double sum = 0.0;
  for (int row = 0; row < rows; ++row)
    sum += static_cast<double>(from[static_cast<std::int64_t>(row) * tokens + token]);
  to[token] = sum;
}

/// The sums of three counts over the block; every thread gets them.
__device__ void sum_counts(int (&counts)[3], int (*parts)[kWarps], int* totals) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    for (int distance = 16; distance > 0; distance /= 2)
      counts[c] += __shfl_down_sync(~0u, counts[c], distance);
    if (lane == 0) parts[c][warp] = counts[c];
  }
  __syncthreads();
  if (threadIdx.x < 3) {
    int total = 0;
    for (int w = 0; w < kWarps; ++w) total += parts[threadIdx.x][w];
    totals[threadIdx.x] = total;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < 3; ++c) counts[c] = totals[c];
}

/// One block per row.
__global__ void __launch_bounds__(kThreads)
    double_top_k_kernel(const __grid_constant__ DoubleTopKParams params) {
  __shared__ int parts[3][kWarps];
  __shared__ int totals[3];
  const int thread = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.x), n = params.n;
  const auto* bits = reinterpret_cast<const Key*>(params.scores) + static_cast<std::int64_t>(row) * n;
  const auto key_of = [&](int i) -> Key {
    if (i < params.first || i >= n - params.last) return ~Key{0};
    const Key x = bits[i];
    return (x >> 63) != 0 ? ~x : x | Key{1} << 63;
  };
  Key t = 0;
  for (int shift = 62; shift >= 0; shift -= 2) {
    int counts[3] = {0, 0, 0};
    for (int i = thread; i < n; i += kThreads) {
      const Key key = key_of(i);
#pragma unroll
      for (int c = 0; c < 3; ++c) counts[c] += key >= (t | static_cast<Key>(c + 1) << shift) ? 1 : 0;
    }
    sum_counts(counts, parts, totals);
    Key digit = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c)
      if (counts[c] >= params.k) digit = static_cast<Key>(c) + 1;
    t |= digit << shift;
  }
  int above[3] = {0, 0, 0};
  for (int i = thread; i < n; i += kThreads) above[0] += key_of(i) > t ? 1 : 0;
  sum_counts(above, parts, totals);
  const int wanted = params.k - above[0];

  const auto standing = [&](int i) {
    const Key key = key_of(i);
    if (key > t) return Standing::kAbove;
    return key == t ? Standing::kEqual : Standing::kBelow;
  };
  take_in_order<kThreads>(n, wanted, standing, params.indices + row * params.index_stride);
}

unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); }

}  // namespace

void group_means_cuda(const double* from, const LayerInfo& info, std::int64_t tokens, double* to,
                      cudaStream_t stream) {
  const dim3 grid(blocks_for(tokens), static_cast<unsigned>(info.kv_heads));
  group_means_kernel<<<grid, 256, 0, stream>>>(from, info.q_heads_total / info.kv_heads_total,
                                               info.q_head_begin, info.kv_head_begin, info.q_heads,
                                               static_cast<int>(tokens), to);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void sum_rows_cuda(const float* from, int rows, std::int64_t tokens, double* to, cudaStream_t stream) {
  sum_rows_kernel<<<blocks_for(tokens), 256, 0, stream>>>(from, rows, static_cast<int>(tokens), to);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void double_top_k_cuda(const DoubleTopKParams& params, cudaStream_t stream) {
  double_top_k_kernel<<<static_cast<unsigned>(params.rows), kThreads, 0, stream>>>(params);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
