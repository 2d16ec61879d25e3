// Products with few rows, as in decoding, at the speed of reading w, with what comes before and after them
// in a transformer layer: RMS norm of the input, gated activation, residual sum, soft cap, rotation and the
// write into the cache.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/cuda.h"
#include "model/cuda/kernels.h"

namespace lacuna {

/// Up to so many rows a product is bound by reading the weights.
inline constexpr std::int64_t kSkinnyRows = 32;

/// x w^T, or x' w^T with x' = x / sqrt(mean(x^2) + eps) * norm per row: the row's factor is applied to the
/// finished sum, so x * norm is what is rounded to bfloat16. A row's bits depend on neither the other rows
/// nor their number.
struct SkinnyProduct {
  const __nv_bfloat16* x = nullptr;     ///< [rows, inputs], inputs a multiple of 8
  const __nv_bfloat16* w = nullptr;     ///< [outputs, inputs]; nothing in the stream may write it
  const __nv_bfloat16* bias = nullptr;  ///< [outputs] or null
  const float* norm = nullptr;          ///< [inputs] or null
  float eps = 0;
  /// With a norm: memory for x * norm and the rows' factors, which more rows than a block can hold get from a
  /// kernel of their own.
  __nv_bfloat16* normed = nullptr;  ///< [rows, inputs]
  float* factors = nullptr;         ///< [rows]
  int rows = 0;                     ///< at most kSkinnyRows
  int inputs = 0;
  std::int64_t outputs = 0;
  bool clusters = true;  ///< false: no clusters of blocks, as on devices that have none; the same bits
};

/// y = product + bias, or y += that (added in float32 before the one rounding).
struct SkinnyOutput {
  void* y = nullptr;  ///< [rows, outputs], bf16 or float32
  bool accumulate = false;
  bool float_output = false;
  float cap = 0;  ///< above 0: cap * tanh(y / cap) is stored; not with accumulate
};
void launch_skinny(const SkinnyProduct& product, const SkinnyOutput& to, cudaStream_t stream);

/// out [rows, outputs / 2] = activation(product[:, :outputs / 2]) * product[:, outputs / 2:], SiLU or GELU by
/// tanh. outputs is a multiple of 16.
struct SkinnyGated {
  __nv_bfloat16* out = nullptr;
  bool gelu = false;
};
void launch_skinny_gated(const SkinnyProduct& product, const SkinnyGated& to, cudaStream_t stream);

/// The product's outputs are the heads of q, k and v of one new token per row, of which q and k are rotated.
struct CacheTarget {
  const float* cos = nullptr;  ///< [positions, head_dim / 2]
  const float* sin = nullptr;
  const std::int32_t* positions = nullptr;  ///< [rows]
  NewestSlots to;
  int q_heads = 0, kv_heads = 0;
  int head_dim = 0;  ///< a multiple of 16
};
void launch_skinny_cache(const SkinnyProduct& product, const CacheTarget& to, cudaStream_t stream);

}  // namespace lacuna
