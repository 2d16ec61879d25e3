// Attention weights of the last queries, summed by column and diagonal without ever writing the matrix of
// weights.
//
// Pass 1 finds every row's maximum and sum; pass 2 computes the scores again and adds up normalised weights.
// Scores are computed transposed, keys as the rows of mma and queries as its columns: a warp keeps its 32
// queries in registers, so that each tile of keys is all it reads; its threads own keys, whose sums over
// queries are then mostly sums of registers. All sums have a fixed order.
//
// 131072 tokens, 28 heads of 128, W = 256: 240 GFLOP and 0.94 G exponentials per pass, 0.4 ms for mma.sync.
#pragma once

#include "attention/cuda/mma.cuh"
#include "attention/cuda/softmax.cuh"
#include "attention/cuda/swizzle.cuh"
#include "attention/cuda/window_scores_launch.h"
#include "core/cuda.h"

namespace lacuna {

template <int kHeadDim_>
struct WindowTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kThreads = 32 * kWindowWarps;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr bool kHoldQueries = kHeadDim <= 128;  ///< else they are read from shared memory each time
  static constexpr int kStages = kHoldQueries ? 3 : 2;
  static constexpr int kRows = kWindowWarps * kWarpRows;
  /// A strip has 8 rows of keys, 88 diagonals of blocks of 8, and 8 zeros on both sides.
  static constexpr int kStripZeros = 8, kStripWidth = 88, kStripPitch = kStripWidth + 2 * kStripZeros;
  static constexpr int kDiagonals = kWarpRows + kWindowSpan;

  struct Shared {
    alignas(16) __nv_bfloat16 k[kStages][kTileKeys * kHeadDim];
    alignas(16) __nv_bfloat16 q[kHoldQueries ? 8 : kRows * kHeadDim];
    alignas(16) float strip[kWindowWarps][8 * kStripPitch];
    float column_sum[2][kWindowWarps][kTileKeys];
    float column_max[2][kWindowWarps][kTileKeys];
    float diagonal[kWindowWarps][kDiagonals];
  };
  // Queries on their way to registers lie where keys come next.
  static_assert(!kHoldQueries || kRows <= kStages * kTileKeys);
};

/// Where a block and its warp work.
struct WindowPlace {
  int lane, warp, kv_head, head, first_key, row_block, block_row, warp_row;
  bool works;  ///< false: no such head, or no such rows

  __device__ explicit WindowPlace(const WindowArgs& args)
      : lane(static_cast<int>(threadIdx.x) & 31), warp(static_cast<int>(threadIdx.x) >> 5) {
    const WindowShape& shape = args.shape;
    const int slots = args.kv_heads * shape.slots_per_kv;  // heads of a group meet in the L2 cache
    const int slot = static_cast<int>(blockIdx.x) % slots;
    kv_head = slot / shape.slots_per_kv;
    first_key = static_cast<int>(blockIdx.x) / slots * kWindowSpan;
    row_block = static_cast<int>(blockIdx.y);
    block_row = args.first_row + row_block * kWarpRows * shape.warps_per_head;
    warp_row = block_row + warp % shape.warps_per_head * kWarpRows;
    head = head_of(args, warp / shape.warps_per_head);
    works = head >= 0 && warp_row < args.tokens;
  }
  /// The head of a block's part, -1 when there is none.
  __device__ int head_of(const WindowArgs& args, int part) const {
    const int slot = static_cast<int>(blockIdx.x) % (args.kv_heads * args.shape.slots_per_kv);
    const int inside = slot % args.shape.slots_per_kv * (kWindowWarps / args.shape.warps_per_head) + part;
    const int of_layer = (kv_head + args.kv_base) * args.group + inside;
    const int local = of_layer - args.head_base;
    return inside < args.group && local >= 0 && local < args.q_heads ? local : -1;
  }
};

template <class T>
__device__ void window_load_keys(const WindowArgs& args, const __nv_bfloat16* k, int first_key,
                                 __nv_bfloat16* to) {
  constexpr int kPieces = T::kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * kPieces; i += T::kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool valid = first_key + row < args.tokens;
    copy_async_16(to + swizzled<T::kHeadDim>(row, piece),
                  k + (valid ? first_key + row : 0) * args.k_token_stride + piece * 8, valid);
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
using WindowTile = float[4][4][4];

template <class T>
__device__ void window_products(WindowTile& s, const __nv_bfloat16* k, int step,
                                const std::uint32_t (&b)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    std::uint32_t a[4];
    load_matrix(a, k + swizzled<T::kHeadDim>(m * 16 + (lane & 15), step * 2 + (lane >> 4)));
#pragma unroll
    for (int n = 0; n < 4; ++n) mma(s[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
  }
}

/// Soft cap and mask: -inf where a query does not see a key.
__device__ inline void window_mask(const WindowArgs& args, const WindowPlace& at, int key, WindowTile& s) {
  if (args.softcap > 0.0f) {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n) apply_softcap(s[m][n], args.scale, args.softcap);
  }
  const int last_row = at.warp_row + kWarpRows - 1;
  const bool edge = key + kTileKeys - 1 > at.warp_row || last_row >= args.tokens ||
                    (args.window > 0 && key <= last_row - args.window);
  if (!edge) return;
  const int below = args.window > 0 ? args.window - 1 : INT_MAX / 2;
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = key + m * 16 + e / 2 * 8 + at.lane / 4;
        const int i = at.warp_row + n * 8 + (at.lane & 3) * 2 + e % 2;
        if (j > i || i >= args.tokens || j < i - below) s[m][n][e] = -INFINITY;
      }
}

/// Pass 1: maximum (of raw scores) and sum of this thread's 8 queries over its keys so far.
struct WindowRows {
  float top[8], sum[8];

  __device__ WindowRows() {
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i] = -INFINITY, sum[i] = 0.0f;
  }
  __device__ void add(const WindowTile& s, float factor) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = n * 2 + e;
        float high = top[i];
#pragma unroll
        for (int m = 0; m < 4; ++m) high = fmaxf(high, fmaxf(s[m][n][e], s[m][n][e + 2]));
        const float shift = high == -INFINITY ? 0.0f : high * factor;
        // sum is 0, or NaN from a NaN score, while nothing has been seen
        float total = top[i] == -INFINITY ? sum[i] : sum[i] * exp2_fast(fmaf(top[i], factor, -shift));
#pragma unroll
        for (int m = 0; m < 4; ++m)
          total +=
              exp2_fast(fmaf(s[m][n][e], factor, -shift)) + exp2_fast(fmaf(s[m][n][e + 2], factor, -shift));
        top[i] = high;
        sum[i] = total;
      }
  }
  /// Joins the lanes that have the same queries and writes the span's part.
  __device__ void write(const WindowArgs& args, const WindowPlace& at, float factor) {
    if (!at.works) return;
    const int rows_padded = args.shape.row_blocks * kWarpRows * args.shape.warps_per_head;
    float2* to =
        args.row_part +
        (static_cast<std::int64_t>(at.head) * args.spans + at.first_key / kWindowSpan) * rows_padded +
        at.warp_row - args.first_row;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float own = top[i];
      float high = own;
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        high = fmaxf(high, __shfl_xor_sync(~0u, high, distance));
      // A NaN score lives on in the sum though the maximum drops it.
      float total = own == -INFINITY ? sum[i] : sum[i] * exp2_fast((own - high) * factor);
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) total += __shfl_xor_sync(~0u, total, distance);
      if (at.lane < 4) to[i / 2 * 8 + at.lane * 2 + i % 2] = make_float2(high * factor, total);
    }
  }
};

/// Sum or maximum over the four lanes that have the same 8 keys; each keeps two of them, index first + j.
template <class Join>
__device__ void window_join_quad(const float (&value)[8], float (&kept)[2], const Join& join) {
  const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
  float half[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    half[j] = join(odd ? value[j + 4] : value[j], __shfl_xor_sync(~0u, odd ? value[j] : value[j + 4], 1));
#pragma unroll
  for (int j = 0; j < 2; ++j)
    kept[j] = join(high ? half[j + 2] : half[j], __shfl_xor_sync(~0u, high ? half[j] : half[j + 2], 2));
}

/// Pass 2: sums (and maxima) of the tile's weights over this warp's queries, by key.
template <class T>
__device__ void window_columns(const WindowArgs& args, const WindowPlace& at, const WindowTile& s, int slot,
                               typename T::Shared& shared) {
  float value[8], kept[2];
  const int first = (at.lane & 1) * 4 + (at.lane & 2);
  const auto store = [&](float* to) {
#pragma unroll
    for (int j = 0; j < 2; ++j) to[(first + j) * 8 + at.lane / 4] = kept[j];
  };
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto at_key = [&](int n) { return s[i / 2][n][i % 2 * 2] + s[i / 2][n][i % 2 * 2 + 1]; };
    value[i] = (at_key(0) + at_key(1)) + (at_key(2) + at_key(3));
  }
  window_join_quad(value, kept, [](float a, float b) { return a + b; });
  store(shared.column_sum[slot][at.warp]);
  if (args.column_max == nullptr) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const auto at_key = [&](int n) { return fmaxf(s[i / 2][n][i % 2 * 2], s[i / 2][n][i % 2 * 2 + 1]); };
    value[i] = fmaxf(fmaxf(at_key(0), at_key(1)), fmaxf(at_key(2), at_key(3)));
  }
  window_join_quad(value, kept, [](float a, float b) { return fmaxf(a, b); });
  store(shared.column_max[slot][at.warp]);
}

/// Pass 2: adds the tile's weights to this warp's diagonals. Blocks of 8 x 8 on one diagonal of blocks meet
/// in registers; what is left are 8 rows of keys, read along their diagonals.
template <class T>
__device__ void window_diagonals(const WindowPlace& at, const WindowTile& s, int tile,
                                 typename T::Shared& shared) {
  float* strip = shared.strip[at.warp];
  float* row = strip + at.lane / 4 * T::kStripPitch + T::kStripZeros + (at.lane & 3) * 2;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < 11; ++c) {  // query block - key block = c - 7
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int key = n - (c - 7);
      if (key < 0 || key > 7) continue;
      sum.x += s[key / 2][n][key % 2 * 2];
      sum.y += s[key / 2][n][key % 2 * 2 + 1];
    }
    *reinterpret_cast<float2*>(row + c * 8) = sum;
  }
  __syncwarp();
  // Entry d: query - key = d - 63 within the tile.
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const int d = part * 32 + at.lane;
    float total = 0.0f;
#pragma unroll
    for (int r = 0; r < 8; ++r) total += strip[r * T::kStripPitch + T::kStripZeros + d - 7 + r];
    shared.diagonal[at.warp][d + kWindowSpan - kTileKeys - tile * kTileKeys] += total;
  }
}

/// Writes the columns of a tile: the sums over the warps of each head.
template <class T>
__device__ void window_write_columns(const WindowArgs& args, const WindowPlace& at, int tile, bool empty,
                                     const typename T::Shared& shared) {
  const int per_head = args.shape.warps_per_head;
  for (int i = static_cast<int>(threadIdx.x); i < kWindowWarps / per_head * kTileKeys; i += T::kThreads) {
    const int part = i / kTileKeys, column = i % kTileKeys;
    const int key = at.first_key + tile * kTileKeys + column, head = at.head_of(args, part);
    if (head < 0 || key >= args.tokens) continue;
    float total = 0.0f, high = 0.0f;
    for (int w = part * per_head; w < (part + 1) * per_head && !empty; ++w) {
      total += shared.column_sum[tile & 1][w][column];
      if (args.column_max != nullptr) high = fmaxf(high, shared.column_max[tile & 1][w][column]);
    }
    const std::int64_t to =
        (static_cast<std::int64_t>(at.row_block) * args.q_heads + head) * args.tokens + key;
    if (args.column_sum != nullptr) args.column_sum[to] = total;
    if (args.column_max != nullptr) args.column_max[to] = high;
  }
}

/// Writes the diagonals of the block: the sums over the warps of each head.
template <class T>
__device__ void window_write_diagonals(const WindowArgs& args, const WindowPlace& at,
                                       const typename T::Shared& shared) {
  const int per_head = args.shape.warps_per_head;
  // Entry e: row - key = e - (kWindowSpan - 1) relative to the block's first row and key.
  const int entries = per_head * kWarpRows + kWindowSpan - 1;
  for (int part = 0; part < kWindowWarps / per_head; ++part) {
    const int head = at.head_of(args, part);
    if (head < 0) continue;
    float* to =
        args.diagonal_part + ((static_cast<std::int64_t>(at.row_block) * args.q_heads + head) * args.spans +
                              at.first_key / kWindowSpan) *
                                 entries;
    for (int e = static_cast<int>(threadIdx.x); e < entries; e += T::kThreads) {
      float total = 0.0f;
      for (int w = 0; w < per_head; ++w) {
        const int d = e - w * kWarpRows;
        if (d >= 0 && d < T::kDiagonals) total += shared.diagonal[part * per_head + w][d];
      }
      to[e] = total;
    }
  }
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(T::kThreads, T::kHoldQueries ? 2 : 1)
    window_scores_kernel(const __grid_constant__ WindowArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const WindowPlace at(args);
  const __nv_bfloat16* k = args.k + at.kv_head * args.k_head_stride;
  const int block_end = at.block_row + kWarpRows * args.shape.warps_per_head;
  const int end_key = min(min(at.first_key + kWindowSpan, args.tokens), block_end);
  const int tiles = end_key > at.first_key ? (end_key - at.first_key + kTileKeys - 1) / kTileKeys : 0;
  const float factor = args.softcap > 0.0f ? kLog2e : args.scale * kLog2e;

  __nv_bfloat16* q = (T::kHoldQueries ? shared.k[0] : shared.q) + at.warp * kWarpRows * T::kHeadDim;
  std::uint32_t held[T::kHoldQueries ? T::kSteps : 1][2][4];
  if (tiles > 0) {
    window_load_queries<T>(args, at, q);
    copy_async_commit();
    if constexpr (T::kHoldQueries) {
      copy_async_wait<0>();
      __syncwarp();
#pragma unroll
      for (int step = 0; step < T::kSteps; ++step) window_query_operands<T>(q, step, held[step]);
      __syncthreads();
    }
#pragma unroll
    for (int stage = 0; stage + 1 < T::kStages; ++stage) {
      if (stage < tiles) window_load_keys<T>(args, k, at.first_key + stage * kTileKeys, shared.k[stage]);
      copy_async_commit();
    }
  }

  WindowRows rows;
  float shift[8];
  if constexpr (kSecond) {
    const int rows_padded = args.shape.row_blocks * kWarpRows * args.shape.warps_per_head;
    const float* from = args.row_shift + static_cast<std::int64_t>(max(at.head, 0)) * rows_padded +
                        at.warp_row - args.first_row + (at.lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) shift[i] = from[i / 2 * 8 + i % 2];
    for (int i = at.lane; i < T::kDiagonals; i += 32) shared.diagonal[at.warp][i] = 0.0f;
    for (int i = at.lane; i < 8 * T::kStripPitch; i += 32) shared.strip[at.warp][i] = 0.0f;
  }

  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<T::kStages - 2>();
    __syncthreads();
    const int ahead = tile + T::kStages - 1, key = at.first_key + tile * kTileKeys;
    if (ahead < tiles)
      window_load_keys<T>(args, k, at.first_key + ahead * kTileKeys, shared.k[ahead % T::kStages]);
    copy_async_commit();
    if constexpr (kSecond) {
      if (tile > 0) window_write_columns<T>(args, at, tile - 1, false, shared);
    }
    if (!at.works || key > at.warp_row + kWarpRows - 1) {  // beyond the diagonal of all rows of this warp
      if constexpr (kSecond) {
        for (int i = at.lane; i < kTileKeys; i += 32)
          shared.column_sum[tile & 1][at.warp][i] = shared.column_max[tile & 1][at.warp][i] = 0.0f;
      }
      continue;
    }
    WindowTile s = {};
    const __nv_bfloat16* keys = shared.k[tile % T::kStages];
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      if constexpr (T::kHoldQueries) {
        window_products<T>(s, keys, step, held[step]);
      } else {
        window_query_operands<T>(q, step, held[0]);
        window_products<T>(s, keys, step, held[0]);
      }
    }
    window_mask(args, at, key, s);
    if constexpr (!kSecond) {
      rows.add(s, factor);
    } else {
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s[m][n][e] = exp2_fast(fmaf(s[m][n][e], factor, -shift[n * 2 + e % 2]));
      window_columns<T>(args, at, s, tile & 1, shared);
      if (args.diagonal_part != nullptr) window_diagonals<T>(at, s, tile, shared);
    }
  }

  if constexpr (!kSecond) {
    rows.write(args, at, factor);
  } else {
    __syncthreads();
    for (int tile = max(tiles - 1, 0); tile < kWindowSpan / kTileKeys; ++tile)
      window_write_columns<T>(args, at, tile, tile >= tiles, shared);
    if (args.diagonal_part != nullptr) window_write_diagonals<T>(args, at, shared);
  }
}

template <int kHeadDim>
void launch_window_pass(const WindowArgs& args, bool second, cudaStream_t stream) {
  using T = WindowTraits<kHeadDim>;
  const auto kernel = second ? window_scores_kernel<T, true> : window_scores_kernel<T, false>;
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Shared));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const WindowShape& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(args.spans * args.kv_heads * shape.slots_per_kv),
                  static_cast<unsigned>(shape.row_blocks));
  kernel<<<grid, T::kThreads, kBytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
