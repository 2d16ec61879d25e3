// Products with few rows: y [rows, outputs] = x [rows, inputs] w^T + bias, at the speed of reading w.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/cuda.h"

namespace lacuna {

/// Up to so many rows a product is bound by reading the weights.
inline constexpr std::int64_t kSkinnyRows = 32;

struct SkinnyArgs {
  const __nv_bfloat16* x = nullptr;     ///< [rows, inputs], inputs a multiple of 8
  const __nv_bfloat16* w = nullptr;     ///< [outputs, inputs]
  const __nv_bfloat16* bias = nullptr;  ///< [outputs] or null
  void* y = nullptr;                    ///< [rows, outputs], bf16 or float32
  int rows = 0;                         ///< at most kSkinnyRows
  int inputs = 0;
  std::int64_t outputs = 0;
  bool accumulate = false;
  bool float_output = false;
};
/// A row's bits depend on neither the other rows nor their number.
void launch_skinny(const SkinnyArgs& args, cudaStream_t stream);

}  // namespace lacuna
