// Attention weights of the last queries, summed by column and diagonal without ever writing the matrix of
// weights.
//
// Pass 1 finds every row's maximum and sum; pass 2 computes the scores again and adds up normalised weights.
// Scores are computed transposed, keys as the rows of mma and queries as its columns: a warp keeps its 32
// queries in registers, so that each tile of keys is all it reads; its threads own keys, whose sums over
// queries are then mostly sums of registers. All sums have a fixed order.
//
// Tensor cores, exponentials and shared memory are each busy for about as long. So that they work at the same
// time, scores are computed half a tile at a time, and between its steps lie parts of what becomes of the
// half before.
//
// 131072 tokens, 28 heads of 128, W = 256: 240 GFLOP and 0.94 G exponentials per pass, 0.4 ms for mma.sync.
#pragma once

#include "attention/cuda/window_sums.cuh"
#include "core/cuda_launch.cuh"

namespace lacuna {

template <class T, WindowPass kPass>
__global__ void __launch_bounds__(T::kThreads, T::kHoldQueries ? 2 : 1)
    window_scores_kernel(const __grid_constant__ WindowArgs args) {
  constexpr bool kSecond = kPass != WindowPass::kRows;
  using Weights = WindowWeights<T, kPass == WindowPass::kDiagonals>;
  wait_for_previous();
  let_next_start();
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const WindowPlace at(args);
  const __nv_bfloat16* k = args.k + at.kv_head * args.k_head_stride;
  const int block_end = at.block_row + kWarpRows * args.shape.warps_per_head;
  const int end_key = min(min(at.first_key + kWindowSpan, args.tokens), block_end);
  const int tiles = end_key > at.first_key ? (end_key - at.first_key + kTileKeys - 1) / kTileKeys : 0;
  const float factor = args.softcap > 0.0f ? kLog2e : args.scale * kLog2e;

  // The last stage is the first to be filled: queries on their way to registers lie in the others meanwhile.
  const auto stage_of = [&](int tile) { return shared.k[(tile + T::kStages - 1) % T::kStages]; };
  const auto load_keys = [&](int tile) {
    if (tile < tiles) window_load_keys<T>(args, k, at.first_key + tile * kTileKeys, stage_of(tile));
    copy_async_commit();
  };
  __nv_bfloat16* q = (T::kHoldQueries ? shared.k[0] : shared.q) + at.warp * kWarpRows * T::kHeadDim;
  std::uint32_t held[T::kHoldQueries ? T::kSteps : 1][2][4];
  if (tiles > 0) {
    window_load_queries<T>(args, at, q);
    copy_async_commit();
    load_keys(0);
    if constexpr (T::kHoldQueries) {
      copy_async_wait<1>();
      __syncwarp();
#pragma unroll
      for (int step = 0; step < T::kSteps; ++step) window_query_operands<T>(q, step, held[step]);
      __syncthreads();
    }
#pragma unroll
    for (int tile = 1; tile + 1 < T::kStages; ++tile) load_keys(tile);
  }

  WindowRows rows;
  Weights weights;
  if constexpr (kSecond) {
    weights.load(args, at);
    for (int i = at.lane; i < T::kDiagonals; i += 32) shared.diagonal[at.warp][i] = 0.0f;
    for (int i = at.lane; i < 8 * T::kStripPitch; i += 32) shared.strip[at.warp][i] = 0.0f;
  }
  const auto use = [&](int part, WindowHalf& s, int half) {
    if constexpr (kSecond) {
      weights.use(part, args, at, s, factor, half, shared);
    } else {
      rows.add(part, s, factor);
    }
  };
  constexpr int kParts = kSecond ? Weights::kParts : WindowRows::kParts;
  // The scores of one half in the making, while those of the one before it are used.
  const auto next_half = [&](WindowHalf& s, int half, WindowHalf& last, bool special) {
    const __nv_bfloat16* keys = stage_of(half / 2) + half % 2 * kHalfKeys * T::kHeadDim;
    window_fill(s, 0.0f);
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      if constexpr (T::kHoldQueries) {
        window_products<T>(s, keys, step, held[step]);
      } else {
        window_query_operands<T>(q, step, held[0]);
        window_products<T>(s, keys, step, held[0]);
      }
#pragma unroll
      for (int part = step * kParts / T::kSteps; part < (step + 1) * kParts / T::kSteps; ++part)
        use(part, last, max(half - 1, 0));
    }
    if (special) window_mask(args, at, at.first_key + half * kHalfKeys, s);
  };

  WindowHalf first, second;
  window_fill(second, -INFINITY);  // before the first half: weights of nothing
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<T::kStages - 2>();
    __syncthreads();
    load_keys(tile + T::kStages - 1);
    if constexpr (kSecond) {
      if (tile > 1) window_write_columns<T>(args, at, tile - 2, false, shared);
    }
    // A branch for the whole tile, because instructions are interleaved as far as the next branch. Where
    // registers are scarce, masks that change nothing cost less than spills.
    if (!T::kHoldQueries || window_is_special(args, at, at.first_key + tile * kTileKeys)) {
      next_half(first, 2 * tile, second, true);
      next_half(second, 2 * tile + 1, first, true);
    } else {
      next_half(first, 2 * tile, second, false);
      next_half(second, 2 * tile + 1, first, false);
    }
  }
  if (tiles > 0) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) use(part, second, 2 * tiles - 1);
  }

  if constexpr (!kSecond) {
    rows.write(args, at, factor);
  } else {
    __syncthreads();
    for (int tile = max(tiles - 2, 0); tile < kWindowSpan / kTileKeys; ++tile)
      window_write_columns<T>(args, at, tile, tile >= tiles, shared);
    if constexpr (kPass == WindowPass::kDiagonals) window_write_diagonals<T>(args, at, shared);
  }
}

template <int kHeadDim>
void launch_window_pass(const WindowArgs& args, WindowPass pass, cudaStream_t stream) {
  using T = WindowTraits<kHeadDim>;
  const auto kernel = pass == WindowPass::kRows      ? window_scores_kernel<T, WindowPass::kRows>
                      : pass == WindowPass::kColumns ? window_scores_kernel<T, WindowPass::kColumns>
                                                     : window_scores_kernel<T, WindowPass::kDiagonals>;
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Shared));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const WindowShape& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(args.spans * args.kv_heads * shape.slots_per_kv),
                  static_cast<unsigned>(shape.row_blocks));
  launch_dependent(kernel, grid, T::kThreads, kBytes, stream, args);
}

}  // namespace lacuna
