// Tiles of the last queries' scores: where a warp works, its operands, products and masks. See
// window_scores.cuh.
#pragma once

#include <climits>

#include "attention/cuda/mma.cuh"
#include "attention/cuda/softmax.cuh"
#include "attention/cuda/swizzle.cuh"
#include "attention/cuda/window_scores_launch.h"

namespace lacuna {

/// Scores are computed and used half a tile at a time.
inline constexpr int kHalfKeys = kTileKeys / 2;
/// Tiles whose columns are being added up or written.
inline constexpr int kColumnSlots = 3;

template <int kHeadDim_>
struct WindowTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kThreads = 32 * kWindowWarps;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr bool kHoldQueries = kHeadDim <= 128;  ///< else they are read from shared memory each time
  static constexpr int kStages = kHoldQueries ? 3 : 2;
  static constexpr int kRows = kWindowWarps * kWarpRows;
  /// A strip has 8 rows of keys, 56 diagonals of blocks of 8, and 8 zeros on both sides.
  static constexpr int kStripZeros = 8, kStripWidth = 56, kStripPitch = kStripWidth + 2 * kStripZeros;
  static constexpr int kDiagonals = kWarpRows + kWindowSpan;

  struct Shared {
    alignas(16) __nv_bfloat16 k[kStages][kTileKeys * kHeadDim];
    alignas(16) __nv_bfloat16 q[kHoldQueries ? 8 : kRows * kHeadDim];
    alignas(16) float strip[kWindowWarps][8 * kStripPitch];
    float column_sum[kColumnSlots][kWindowWarps][kTileKeys];
    float column_max[kColumnSlots][kWindowWarps][kTileKeys];
    float diagonal[kWindowWarps][kDiagonals];
  };
  // Queries on their way to registers lie where keys come next, but for the first.
  static_assert(!kHoldQueries || kRows <= (kStages - 1) * kTileKeys);
};

/// Where a block and its warp work.
struct WindowPlace {
  int lane, warp, kv_head, head, first_key, row_block, block_row, warp_row;
  int first_head, end_head;  ///< heads of the block's first part and behind its last one, local ones or not
  int q_heads;
  bool works;  ///< false: no such head, or no such rows

  __device__ explicit WindowPlace(const WindowArgs& args)
      : lane(static_cast<int>(threadIdx.x) & 31),
        warp(static_cast<int>(threadIdx.x) >> 5),
        q_heads(args.q_heads) {
    const WindowShape& shape = args.shape;
    const int slots = args.kv_heads * shape.slots_per_kv;  // heads of a group meet in the L2 cache
    const int slot = static_cast<int>(blockIdx.x) % slots,
              heads_per_block = kWindowWarps / shape.warps_per_head;
    kv_head = slot / shape.slots_per_kv;
    const int of_group = (kv_head + args.kv_base) * args.group - args.head_base;
    first_head = of_group + slot % shape.slots_per_kv * heads_per_block;
    end_head = min(first_head + heads_per_block, of_group + args.group);
    first_key = static_cast<int>(blockIdx.x) / slots * kWindowSpan;
    row_block = static_cast<int>(blockIdx.y);
    block_row = args.first_row + row_block * kWarpRows * shape.warps_per_head;
    warp_row = block_row + warp % shape.warps_per_head * kWarpRows;
    head = head_of(warp / shape.warps_per_head);
    works = head >= 0 && warp_row < args.tokens;
  }
  /// The head of a block's part, -1 when there is none.
  __device__ int head_of(int part) const {
    const int local = first_head + part;
    return local < end_head && local >= 0 && local < q_heads ? local : -1;
  }
};

/// Keys [first_key, + 64), zeros past the prompt. A thread copies one piece of every few rows.
template <class T>
__device__ void window_load_keys(const WindowArgs& args, const __nv_bfloat16* k, int first_key,
                                 __nv_bfloat16* to) {
  constexpr int kPieces = T::kHeadDim / 8, kRows = T::kThreads / kPieces & ~3;  // at a time
  static_assert(kTileKeys % kRows == 0);
  const int first = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
  if (first >= kRows) return;
  const __nv_bfloat16* from = k + (first_key + first) * args.k_token_stride + piece * 8;
  const bool whole = first_key + kTileKeys <= args.tokens;
#pragma unroll
  for (int row = 0; row < kTileKeys; row += kRows, from += kRows * args.k_token_stride) {
    const bool valid = whole || first_key + first + row < args.tokens;
    copy_async_16(to + swizzled<T::kHeadDim>(first + row, piece), valid ? from : k, valid);
  }
}

/// This warp's queries; zeros where there are none.
template <class T>
__device__ void window_load_queries(const WindowArgs& args, const WindowPlace& at, __nv_bfloat16* to) {
  constexpr int kPieces = T::kHeadDim / 8;
  const __nv_bfloat16* q = args.q + max(at.head, 0) * args.q_head_stride;
  for (int i = at.lane; i < kWarpRows * kPieces; i += 32) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool valid = at.works && at.warp_row + row < args.tokens;
    copy_async_16(to + swizzled<T::kHeadDim>(row, piece),
                  q + (valid ? at.warp_row + row : 0) * args.q_token_stride + piece * 8, valid);
  }
}

/// Channels [16 step, + 16) of 32 queries as the column operands of four mma.
template <class T>
__device__ void window_query_operands(const __nv_bfloat16* q, int step, std::uint32_t (&b)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int pair = 0; pair < 2; ++pair)
    load_matrix(b[pair], q + swizzled<T::kHeadDim>(pair * 16 + (lane >> 4) * 8 + (lane & 7),
                                                   step * 2 + ((lane >> 3) & 1)));
}

/// s[m][n][e]: key m * 16 + e / 2 * 8 + lane / 4, query n * 8 + lane % 4 * 2 + e % 2.
using WindowHalf = float[2][4][4];

__device__ inline void window_fill(WindowHalf& s, float value) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s[m][n][e] = value;
}

template <class T>
__device__ void window_products(WindowHalf& s, const __nv_bfloat16* k, int step,
                                const std::uint32_t (&b)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    std::uint32_t a[4];
    load_matrix(a, k + swizzled<T::kHeadDim>(m * 16 + (lane & 15), step * 2 + (lane >> 4)));
#pragma unroll
    for (int n = 0; n < 4; ++n) mma(s[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
  }
}

/// Whether some of the scores of this warp and the tile from `key` on need a soft cap or a mask.
__device__ inline bool window_is_special(const WindowArgs& args, const WindowPlace& at, int key) {
  const int last_row = at.warp_row + kWarpRows - 1;
  return args.softcap > 0.0f || key + kTileKeys - 1 > at.warp_row || last_row >= args.tokens ||
         (args.window > 0 && key <= last_row - args.window);
}
/// Soft cap and mask: -inf where a query does not see a key.
__device__ inline void window_mask(const WindowArgs& args, const WindowPlace& at, int key, WindowHalf& s) {
  if (args.softcap > 0.0f) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n) apply_softcap(s[m][n], args.scale, args.softcap);
  }
  const int below = args.window > 0 ? args.window - 1 : INT_MAX / 2;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = key + m * 16 + e / 2 * 8 + at.lane / 4;
        const int i = at.warp_row + n * 8 + (at.lane & 3) * 2 + e % 2;
        if (j > i || i >= args.tokens || j < i - below) s[m][n][e] = -INFINITY;
      }
}

}  // namespace lacuna
