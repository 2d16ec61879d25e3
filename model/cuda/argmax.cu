// Argmax over float32 rows in two steps: blocks over pieces of a row, then a warp over the pieces.
#include <algorithm>

#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/kernels.h"

namespace lacuna {

namespace {

constexpr int kThreads = 256;
constexpr int kPieceColumns = 2048;
constexpr int kMostPieces = 128;

/// Larger keys are better: the value in an order-preserving form, then the complement of the index. NaN is
/// above everything.
__device__ inline unsigned long long key_of(float value, std::int64_t index) {
  if (value != value) return ~0ull;
  const unsigned bits = __float_as_uint(value + 0.0f);  // -0 equals +0
  const unsigned ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(ordered) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(index));
}

__device__ inline unsigned long long larger(unsigned long long a, unsigned long long b) {
  return a > b ? a : b;
}

__device__ inline unsigned long long largest_of_warp(unsigned long long key) {
  for (int distance = 16; distance > 0; distance /= 2) key = larger(key, __shfl_xor_sync(~0u, key, distance));
  return key;
}

__global__ void argmax_pieces_kernel(ArgmaxArgs args) {
  let_next_start();
  wait_for_previous();
  __shared__ unsigned long long best[kThreads / 32];
  const auto pieces = static_cast<std::int64_t>(gridDim.x);
  const std::int64_t piece = (args.columns + pieces - 1) / pieces;
  const std::int64_t begin = blockIdx.x * piece;
  const std::int64_t end = begin + piece < args.columns ? begin + piece : args.columns;
  const float* row = args.x + static_cast<std::int64_t>(blockIdx.y) * args.columns;
  unsigned long long key = 0;
  for (std::int64_t c = begin + threadIdx.x; c < end; c += kThreads) key = larger(key, key_of(row[c], c));
  key = largest_of_warp(key);
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) key = larger(key, best[w]);
  args.partial[blockIdx.y * pieces + blockIdx.x] = key;
}

__global__ void argmax_rows_kernel(ArgmaxArgs args, int pieces) {
  let_next_start();
  wait_for_previous();
  const unsigned long long* partial = args.partial + static_cast<std::int64_t>(blockIdx.x) * pieces;
  unsigned long long key = 0;
  for (int i = static_cast<int>(threadIdx.x); i < pieces; i += 32) key = larger(key, partial[i]);
  key = largest_of_warp(key);
  if (threadIdx.x != 0) return;
  ArgmaxResult& result = args.results[blockIdx.x];
  if (key == ~0ull) {
    result.value = __uint_as_float(0x7FC00000u);
    result.index = -1;
    return;
  }
  const auto ordered = static_cast<unsigned>(key >> 32);
  result.value = __uint_as_float((ordered & 0x80000000u) != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
  result.index = static_cast<std::int32_t>(0xFFFFFFFFu - static_cast<unsigned>(key));
}

}  // namespace

int argmax_partials(std::int64_t columns) {
  return static_cast<int>(
      std::clamp<std::int64_t>((columns + kPieceColumns - 1) / kPieceColumns, 1, kMostPieces));
}

void launch_argmax(const ArgmaxArgs& args, cudaStream_t stream) {
  if (args.n == 0) return;
  const int pieces = argmax_partials(args.columns);
  const dim3 grid(static_cast<unsigned>(pieces), static_cast<unsigned>(args.n));
  launch_dependent(argmax_pieces_kernel, grid, kThreads, 0, stream, args);
  launch_dependent(argmax_rows_kernel, static_cast<unsigned>(args.n), 32, 0, stream, args, pieces);
}

}  // namespace lacuna
