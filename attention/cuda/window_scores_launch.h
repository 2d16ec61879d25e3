// The passes behind window_scores_cuda, instantiated in one file per head size.
#pragma once

#include <cuda_bf16.h>
#include <vector_types.h>

#include <cstdint>

#include "attention/cuda/select_cuda.h"

namespace lacuna {

inline constexpr int kWindowRows = 128;  ///< rows of one block
inline constexpr int kWindowSpan = 256;  ///< keys of one block
inline constexpr int kWindowDiagonals = kWindowRows + kWindowSpan - 1;

struct WindowArgs {
  const __nv_bfloat16* q;
  const __nv_bfloat16* k;
  std::int64_t q_head_stride, q_token_stride, k_head_stride, k_token_stride;
  int tokens, q_heads, group, head_base, kv_base;
  int first_row;    ///< first of the last queries
  int rows_padded;  ///< a multiple of kWindowRows
  int spans;
  float scale, softcap;
  int window;            ///< the layer's sliding window; 0: none
  float2* row_part;      ///< [q_heads, spans, rows_padded]: maximum (base-2 exponent) and sum
  float2* row_state;     ///< [q_heads, rows_padded]: maximum and 1 / sum over all keys
  float* column_sum;     ///< [row_blocks, q_heads, tokens] or null
  float* column_max;     ///< likewise
  float* diagonal_part;  ///< [row_blocks, q_heads, spans, kWindowDiagonals] or null
};

template <int kHeadDim>
void launch_window_pass(const WindowArgs& args, int row_blocks, bool second, cudaStream_t stream);

}  // namespace lacuna
