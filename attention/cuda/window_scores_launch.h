// The passes behind window_scores_cuda, instantiated in one file per head size.
#pragma once

#include <cuda_bf16.h>
#include <vector_types.h>

#include <cstdint>

#include "attention/cuda/select_cuda.h"

namespace lacuna {

inline constexpr int kWindowWarps = 4;    ///< of a block
inline constexpr int kWarpRows = 32;      ///< queries of a warp
inline constexpr int kWindowSpan = 1024;  ///< keys of a block

/// A block's warps take query rows of one head, or, when there are few, of several heads that share a kv
/// head.
struct WindowShape {
  int warps_per_head = 4;  ///< 1, 2 or 4
  int row_blocks = 1;      ///< of a head
  int slots_per_kv = 1;    ///< blocks that the heads of one kv head fill

  int heads_per_block() const { return kWindowWarps / warps_per_head; }
  int block_rows() const { return kWarpRows * warps_per_head; }
  int rows_padded() const { return row_blocks * block_rows(); }
  /// Diagonals of a block: row - key from -(kWindowSpan - 1) to block_rows - 1.
  int diagonals() const { return block_rows() + kWindowSpan - 1; }
};

struct WindowArgs {
  const __nv_bfloat16* q;
  const __nv_bfloat16* k;
  std::int64_t q_head_stride, q_token_stride, k_head_stride, k_token_stride;
  int tokens, q_heads, kv_heads, group, head_base, kv_base;
  WindowShape shape;
  int first_row;  ///< first of the last queries
  int spans;
  float scale, softcap;
  int window;            ///< the layer's sliding window; 0: none
  float2* row_part;      ///< [q_heads, spans, rows_padded]: maximum (base-2 exponent) and sum
  float* row_shift;      ///< [q_heads, rows_padded]: maximum + log2 of the sum over all keys
  float* column_sum;     ///< [row_blocks, q_heads, tokens] or null
  float* column_max;     ///< likewise
  float* diagonal_part;  ///< [row_blocks, q_heads, spans, diagonals] or null
};

/// The first pass, and the second without or with diagonals.
enum class WindowPass { kRows, kColumns, kDiagonals };

template <int kHeadDim>
void launch_window_pass(const WindowArgs& args, WindowPass pass, cudaStream_t stream);

}  // namespace lacuna
