// Importance in double: sums over heads and rows.
#include <cstdint>

#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

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

}  // namespace lacuna
