// Products with few rows, as in decoding: the weights are read once and everything else hides behind that. A
// block takes 16 or 32 outputs, its warps share the inputs, and the tensor cores multiply: the weights stand
// in for the 16-row operand of mma.sync and the rows of x for its 8 columns. Which of a product's inputs meet
// in one instruction does not matter as long as both operands agree, so a lane takes eight neighbouring
// inputs with one 16-byte load and feeds two instructions with them. Weights pass through a ring in shared
// memory that every lane fills and reads for itself, only to have enough loads under way.
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

template <int kOutputTiles>
inline constexpr int kStages = kOutputTiles == 1 ? 8 : 4;
template <int kOutputTiles, int kRowTiles>
inline constexpr int kSharedBytes = 2 * kOutputTiles* kStages<kOutputTiles>* kThreads * 16;

/// kOutputTiles of 16 outputs, kRowTiles of 8 rows. The order in which an output is summed depends on the
/// number of inputs alone.
template <int kOutputTiles, int kRowTiles, class Y>
__global__ void __launch_bounds__(kThreads) skinny_kernel(SkinnyArgs args) {
  constexpr int kOutputs = 16 * kOutputTiles, kRows = 8 * kRowTiles, kDepth = kStages<kOutputTiles>;
  static_assert(kWarps * kRows * kOutputs * 4 <= kSharedBytes<kOutputTiles, kRowTiles>);
  extern __shared__ __align__(128) unsigned char raw[];
  auto* ring = reinterpret_cast<uint4*>(raw);  // [kDepth][2 * kOutputTiles][kThreads]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = lane / 4, quarter = lane % 4;
  const std::int64_t first_output = static_cast<std::int64_t>(blockIdx.x) * kOutputs;

  // Outputs and rows that do not exist repeat others; their results are not stored.
  const __nv_bfloat16* w[2 * kOutputTiles];
  const __nv_bfloat16* x[kRowTiles];
#pragma unroll
  for (int m = 0; m < 2 * kOutputTiles; ++m) {
    const std::int64_t output = first_output + m * 8 + group;
    w[m] = args.w + (output < args.outputs ? output : first_output) * args.inputs;
  }
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
    const int row = r * 8 + group;
    x[r] = args.x + static_cast<std::int64_t>(row < args.rows ? row : 0) * args.inputs;
  }
  const int first = warp * kStep + quarter * kVector;  // of this lane's inputs
  constexpr int kStride = kWarps * kStep;
  const auto fetch = [&](int step) {
    const int at = first + step * kStride;
    const bool inside = at < args.inputs;
#pragma unroll
    for (int m = 0; m < 2 * kOutputTiles; ++m)
      copy_async_16(ring + (step % kDepth * 2 * kOutputTiles + m) * kThreads + thread,
                    w[m] + (inside ? at : 0), inside);
  };

  float sums[kOutputTiles][kRowTiles][4] = {};
  const int steps = (args.inputs - warp * kStep + kStride - 1) / kStride;  // the same in a warp; may be 0
  for (int step = 0; step < kDepth - 1; ++step) {
    if (step < steps) fetch(step);
    copy_async_commit();
  }
  const auto load_x = [&](int step, uint4(&to)[kRowTiles]) {
    const int at = first + step * kStride;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      to[r] = at < args.inputs ? __ldg(reinterpret_cast<const uint4*>(x[r] + at)) : uint4{0, 0, 0, 0};
  };
  uint4 b[kRowTiles], next[kRowTiles];
  load_x(0, next);
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) b[r] = next[r];
    load_x(step + 1, next);
    copy_async_wait<kDepth - 2>();
#pragma unroll
    for (int m = 0; m < kOutputTiles; ++m) {
      const uint4* slot = ring + ((step % kDepth * kOutputTiles + m) * 2) * kThreads + thread;
      const uint4 upper = slot[0], lower = slot[kThreads];
      const std::uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
      const std::uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        mma(sums[m][r], low, b[r].x, b[r].y);
        mma(sums[m][r], high, b[r].z, b[r].w);
      }
    }
    // The slot of the step before: this lane has used what it held.
    if (step + kDepth - 1 < steps) fetch(step + kDepth - 1);
    copy_async_commit();
  }
  copy_async_wait<0>();
  __syncthreads();  // the ring's memory now takes the warps' sums

  auto* partial = reinterpret_cast<float*>(raw);  // [kWarps][kRows][kOutputs]
#pragma unroll
  for (int m = 0; m < kOutputTiles; ++m) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = r * 8 + quarter * 2 + e % 2, output = m * 16 + e / 2 * 8 + group;
        partial[(warp * kRows + row) * kOutputs + output] = sums[m][r][e];
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < args.rows * kOutputs; i += kThreads) {
    const std::int64_t output = first_output + i % kOutputs;
    if (output >= args.outputs) continue;
    float sum = partial[i];
#pragma unroll
    for (int v = 1; v < kWarps; ++v) sum += partial[v * kRows * kOutputs + i];
    if (args.bias != nullptr) sum += __bfloat162float(args.bias[output]);
    Y* y = static_cast<Y*>(args.y) + i / kOutputs * args.outputs + output;
    if (args.accumulate) sum += load_value(y);
    store_value(y, sum);
  }
}

template <int kOutputTiles, int kRowTiles, class Y>
void launch(const SkinnyArgs& args, cudaStream_t stream) {
  constexpr int kOutputs = 16 * kOutputTiles, kBytes = kSharedBytes<kOutputTiles, kRowTiles>;
  const auto kernel = skinny_kernel<kOutputTiles, kRowTiles, Y>;
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto blocks = static_cast<unsigned>((args.outputs + kOutputs - 1) / kOutputs);
  kernel<<<blocks, kThreads, kBytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

template <int kOutputTiles, int kRowTiles>
void launch_type(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.float_output) return launch<kOutputTiles, kRowTiles, float>(args, stream);
  launch<kOutputTiles, kRowTiles, __nv_bfloat16>(args, stream);
}

}  // namespace

void launch_skinny(const SkinnyArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.outputs == 0) return;
  if (args.rows <= 8) return launch_type<1, 1>(args, stream);
  if (args.rows <= 16) return launch_type<1, 2>(args, stream);
  // More rows need x more often: twice the outputs per block halve that.
  launch_type<2, 4>(args, stream);
}

}  // namespace lacuna
