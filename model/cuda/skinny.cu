// Products with few rows, as in decoding: the weights are read once and everything else hides behind that. A
// block takes 16 or 32 outputs, its warps share the inputs, and the tensor cores multiply: the weights stand
// in for the 16-row operand of mma.sync and the rows of x for its 8 columns. Which of a product's inputs meet
// in one instruction does not matter as long as both operands agree, so a lane takes eight neighbouring
// inputs with one 16-byte load and feeds two instructions with them, without shared memory.
#include "attention/cuda/mma.cuh"
#include "core/cuda.h"
#include "model/cuda/skinny.h"
#include "model/cuda/vector.cuh"

namespace lacuna {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kStep = 32;  ///< Inputs of one load of a warp.

__device__ inline float load_value(const float* y) { return *y; }
__device__ inline float load_value(const __nv_bfloat16* y) { return __bfloat162float(*y); }
__device__ inline void store_value(float* y, float value) { *y = value; }
__device__ inline void store_value(__nv_bfloat16* y, float value) { *y = __float2bfloat16_rn(value); }

/// kOutputTiles of 16 outputs, kRowTiles of 8 rows, kUnroll loads under way at once. The order in which an
/// output is summed depends on the number of inputs alone.
template <int kOutputTiles, int kRowTiles, int kUnroll, class Y>
__global__ void __launch_bounds__(kThreads) skinny_kernel(SkinnyArgs args) {
  constexpr int kOutputs = 16 * kOutputTiles, kRows = 8 * kRowTiles;
  __shared__ float partial[kWarps][kRows * kOutputs];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int group = lane / 4, quarter = lane % 4;
  const std::int64_t first_output = static_cast<std::int64_t>(blockIdx.x) * kOutputs;

  // Outputs and rows that do not exist repeat others; their results are not stored.
  const __nv_bfloat16* w[kOutputTiles][2];
  const __nv_bfloat16* x[kRowTiles];
#pragma unroll
  for (int m = 0; m < kOutputTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t output = first_output + m * 16 + h * 8 + group;
      w[m][h] = args.w + (output < args.outputs ? output : first_output) * args.inputs + quarter * kVector;
    }
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const int row = r * 8 + group;
    x[r] = args.x + static_cast<std::int64_t>(row < args.rows ? row : 0) * args.inputs + quarter * kVector;
  }

  float sums[kOutputTiles][kRowTiles][4] = {};
  const auto multiply = [&](const uint4(&a)[kOutputTiles][2], const uint4(&b)[kRowTiles]) {
#pragma unroll
    for (int m = 0; m < kOutputTiles; ++m) {
      const std::uint32_t low[4] = {a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y};
      const std::uint32_t high[4] = {a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        mma(sums[m][r], low, b[r].x, b[r].y);
        mma(sums[m][r], high, b[r].z, b[r].w);
      }
    }
  };
  int at = warp * kStep;
  constexpr int kStride = kWarps * kStep;
  for (; at + (kUnroll - 1) * kStride + kStep <= args.inputs; at += kUnroll * kStride) {
    uint4 a[kUnroll][kOutputTiles][2], b[kUnroll][kRowTiles];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int m = 0; m < kOutputTiles; ++m) {
        a[u][m][0] = __ldcg(reinterpret_cast<const uint4*>(w[m][0] + at + u * kStride));
        a[u][m][1] = __ldcg(reinterpret_cast<const uint4*>(w[m][1] + at + u * kStride));
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
        b[u][r] = __ldg(reinterpret_cast<const uint4*>(x[r] + at + u * kStride));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) multiply(a[u], b[u]);
  }
  for (; at < args.inputs; at += kStride) {  // the last loads, which may reach beyond the end
    const bool inside = at + quarter * kVector < args.inputs;
    const uint4 zero = {0, 0, 0, 0};
    uint4 a[kOutputTiles][2], b[kRowTiles];
#pragma unroll
    for (int m = 0; m < kOutputTiles; ++m) {
      a[m][0] = inside ? __ldcg(reinterpret_cast<const uint4*>(w[m][0] + at)) : zero;
      a[m][1] = inside ? __ldcg(reinterpret_cast<const uint4*>(w[m][1] + at)) : zero;
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      b[r] = inside ? __ldg(reinterpret_cast<const uint4*>(x[r] + at)) : zero;
    multiply(a, b);
  }

#pragma unroll
  for (int m = 0; m < kOutputTiles; ++m) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = r * 8 + quarter * 2 + e % 2, output = m * 16 + e / 2 * 8 + group;
        partial[warp][row * kOutputs + output] = sums[m][r][e];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < args.rows * kOutputs; i += kThreads) {
    const std::int64_t output = first_output + i % kOutputs;
    if (output >= args.outputs) continue;
    float sum = partial[0][i];
#pragma unroll
    for (int v = 1; v < kWarps; ++v) sum += partial[v][i];
    if (args.bias != nullptr) sum += __bfloat162float(args.bias[output]);
    Y* y = static_cast<Y*>(args.y) + i / kOutputs * args.outputs + output;
    if (args.accumulate) sum += load_value(y);
    store_value(y, sum);
  }
}

template <int kOutputTiles, int kRowTiles, int kUnroll>
void launch(const SkinnyArgs& args, cudaStream_t stream) {
  constexpr int kOutputs = 16 * kOutputTiles;
  const auto blocks = static_cast<unsigned>((args.outputs + kOutputs - 1) / kOutputs);
  if (args.float_output) {
    skinny_kernel<kOutputTiles, kRowTiles, kUnroll, float><<<blocks, kThreads, 0, stream>>>(args);
  } else {
    skinny_kernel<kOutputTiles, kRowTiles, kUnroll, __nv_bfloat16><<<blocks, kThreads, 0, stream>>>(args);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace

void launch_skinny(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.outputs == 0) return;
  if (args.rows <= 8) return launch<1, 1, 4>(args, stream);
  if (args.rows <= 16) return launch<1, 2, 4>(args, stream);
  // More rows need x more often: twice the outputs per block halve that.
  launch<2, 4, 2>(args, stream);
}

}  // namespace lacuna
