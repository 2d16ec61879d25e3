// Arguments of the two prefill kernels.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "attention/cuda/attention_cuda.h"

namespace lacuna {

/// Keys of one tile, and so bits of one mask.
inline constexpr int kTileKeys = 64;
/// Rows that share one mask: what one warp of mma or wgmma holds.
inline constexpr int kSliceRows = 16;
/// Keys of one piece: what the kernels for row blocks of 16 and 32 load and multiply at a time.
inline constexpr int kPieceKeys = 16;

/// What the kernels need of the lists; every pointer in device memory.
struct ListArgs {
  const KeyRange* ranges;
  const std::int64_t* range_begin;
  const std::int32_t* columns;
  const std::int64_t* column_begin;
  const std::uint64_t*
      column_masks;  ///< [heads, row_blocks, mask_words]; bit j of word t: column 64 t + j is visited
  int mask_words;
  std::int64_t row_blocks;
  int row_block;
};

struct PrefillArgs {
  const __nv_bfloat16* q;  ///< [q_heads, tokens, head_dim] under the strides below
  const __nv_bfloat16* k;  ///< [kv_heads, tokens, head_dim]
  const __nv_bfloat16* v;
  __nv_bfloat16* out;
  std::int64_t q_head_stride, q_token_stride;
  std::int64_t k_head_stride, k_token_stride;
  std::int64_t v_head_stride, v_token_stride;
  std::int64_t out_head_stride, out_token_stride;
  int tokens;
  int q_heads;
  int kv_heads;
  int group;      ///< query heads per kv head
  int head_base;  ///< kv head of q head h: (head_base + h) / group - kv_base
  int kv_base;
  int pass_heads;  ///< query heads worked on at the same time: a kv head's group where groups are whole
  float scale;
  float softcap;
  int window;  ///< 0: none
  bool dense;
  ListArgs lists;  ///< unused when dense
  /// Kept columns of every q head side by side, [q_heads, column_pitch, head_dim]; not filled for
  /// the portable kernel of larger row blocks.
  __nv_bfloat16* column_k;
  __nv_bfloat16* column_v;
  int column_pitch;
  int* work_counter;  ///< zero at launch
};

}  // namespace lacuna
