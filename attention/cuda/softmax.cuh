// The arithmetic that the prefill kernels share: online softmax and masks in mma accumulator layout.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention/cuda/tile_walker.cuh"

namespace lacuna {

__device__ inline int kv_head_of(const PrefillArgs& args, int head) {
  return (args.head_base + head) / args.group - args.kv_base;
}

/// exp2(x * log2e) = e^x; scores are kept in units that make exp2 right.
inline constexpr float kLog2e = 1.4426950408889634f;

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// 1 - 2 / (1 + e^2x): off by 1e-7, where tanh.approx is off by 2^-11, which a cap of 50 would turn into 0.02
/// of a score.
__device__ inline float tanh_fast(float x) {
  return 1.0f - __fdividef(2.0f, 1.0f + exp2_fast(2.0f * kLog2e * x));
}
__device__ inline std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
/// Maximum and sum over the four lanes that share a row of an mma accumulator.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

/// Online softmax of two rows per thread, in mma accumulator layout: s[4 j + 0, 1] belong to the first row,
/// s[4 j + 2, 3] to the row 8 below.
///
/// Weights are relative to a reference that follows the maximum only when that has grown by more than
/// kSlackLog2 powers of two. The result is the same quotient, weights stay below 2^8, and rescaling the
/// output becomes rare (the idea is FlashAttention-4's).
struct SoftmaxState {
  static constexpr float kSlackLog2 = 8.0f;
  float max[2] = {-INFINITY, -INFINITY};  ///< the reference, a raw score
  float sum[2] = {0.0f, 0.0f};            ///< this thread's share

  /// Turns scores into weights relative to the reference; rescale[r] is what earlier output must be
  /// multiplied by.
  template <int kCount>
  __device__ void update(float (&s)[kCount], float scale_log2, float (&rescale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = max[r];
#pragma unroll
      for (int j = 0; j < kCount; j += 4) top = fmaxf(top, fmaxf(s[j + 2 * r], s[j + 2 * r + 1]));
      top = quad_max(top);
      if ((top - max[r]) * scale_log2 <= kSlackLog2) top = max[r];  // false while max is -inf
      // A row that has seen no key yet has maximum -inf; shifting by 0 keeps exp2(-inf) = 0 instead of NaN.
      const float shift = top == -INFINITY ? 0.0f : top * scale_log2;
      // Exactly 1 while the reference stands, so that callers may leave out the multiplication.
      rescale[r] = max[r] == top ? 1.0f : exp2_fast(max[r] * scale_log2 - shift);
      max[r] = top;
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < kCount; j += 4) {
        s[j + 2 * r] = exp2_fast(fmaf(s[j + 2 * r], scale_log2, -shift));
        s[j + 2 * r + 1] = exp2_fast(fmaf(s[j + 2 * r + 1], scale_log2, -shift));
        total += s[j + 2 * r] + s[j + 2 * r + 1];
      }
      sum[r] = fmaf(sum[r], rescale[r], total);
    }
  }

  /// Weights are computed before what follows: ptxas moves a wait for products that are under way in front of
  /// all the arithmetic that should run beside them, unless something that it cannot see through stands
  /// between. No sum is ever negative.
  __device__ void settle() const {
#ifndef LACUNA_EMULATED_GPU
    if (sum[0] + sum[1] == -1.0f) asm volatile("brkpt;");
#endif
  }
};

/// Multiplies output accumulators by the rescale factors, unless no row of the warp has a new maximum.
template <int kCount>
__device__ inline void rescale_rows(float (&o)[kCount], const float (&factor)[2]) {
  if (!__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] *= factor[(i >> 1) & 1];
}

template <int kCount>
__device__ inline void apply_softcap(float (&s)[kCount], float scale, float softcap) {
  const float inner = scale / softcap;
#pragma unroll
  for (int i = 0; i < kCount; ++i) s[i] = softcap * tanh_fast(s[i] * inner);
}

/// Removes keys outside [first, last] of each row, counted from the first key of the tile.
template <int kCount>
__device__ inline void mask_span(float (&s)[kCount], const int (&first)[2], const int (&last)[2]) {
  const int lane_column = (static_cast<int>(threadIdx.x) & 3) * 2;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int column = (i / 4) * 8 + lane_column + (i & 1);
    const int r = (i >> 1) & 1;
    if (column < first[r] || column > last[r]) s[i] = -INFINITY;
  }
}
/// Removes keys whose bit is not set.
template <int kCount>
__device__ inline void mask_bits(float (&s)[kCount], std::uint64_t mask) {
  const std::uint64_t shifted = mask >> ((threadIdx.x & 3) * 2);
  const std::uint32_t words[2] = {static_cast<std::uint32_t>(shifted),
                                  static_cast<std::uint32_t>(shifted >> 32)};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int bit = (i / 4) * 8 + (i & 1);
    if (((words[bit >> 5] >> (bit & 31)) & 1u) == 0) s[i] = -INFINITY;
  }
}

}  // namespace lacuna
