// What the two passes over the last queries' scores add up: rows, then columns and diagonals. See
// window_scores.cuh.
#pragma once

#include "attention/cuda/window_tile.cuh"

namespace lacuna {

/// Pass 1: maximum (of raw scores) and sum of this thread's 8 queries over its keys so far.
struct WindowRows {
  static constexpr int kParts = 4;
  float top[8], sum[8];

  __device__ WindowRows() {
#pragma unroll
    for (int i = 0; i < 8; ++i) top[i] = -INFINITY, sum[i] = 0.0f;
  }
  /// Two queries of half a tile.
  __device__ void add(int n, const WindowHalf& s, float factor) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = n * 2 + e;
      const float high =
          fmaxf(fmaxf(fmaxf(s[0][n][e], s[0][n][e + 2]), fmaxf(s[1][n][e], s[1][n][e + 2])), top[i]);
      const float shift = high == -INFINITY ? 0.0f : high * factor;
      // sum is 0, or NaN from a NaN score, while nothing has been seen
      float total = top[i] == -INFINITY ? sum[i] : sum[i] * exp2_fast(fmaf(top[i], factor, -shift));
#pragma unroll
      for (int m = 0; m < 2; ++m)
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

/// Sum or maximum over the four lanes that have the same 4 keys; each keeps one of them, (lane & 1) * 2 +
/// (lane >> 1 & 1).
template <class Join>
__device__ float window_join_quad(const float (&value)[4], const Join& join) {
  const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
  float half[2];
#pragma unroll
  for (int j = 0; j < 2; ++j)
    half[j] = join(odd ? value[j + 2] : value[j], __shfl_xor_sync(~0u, odd ? value[j] : value[j + 2], 1));
  return join(high ? half[1] : half[0], __shfl_xor_sync(~0u, high ? half[0] : half[1], 2));
}

/// Pass 2: sums of the weights of a half over this warp's queries, by key, or their maxima.
template <class Join>
__device__ void window_columns(const WindowPlace& at, const WindowHalf& s, int half, const Join& join,
                               float (&to)[kWindowWarps][kTileKeys]) {
  float value[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto at_key = [&](int n) { return join(s[i / 2][n][i % 2 * 2], s[i / 2][n][i % 2 * 2 + 1]); };
    value[i] = join(join(at_key(0), at_key(1)), join(at_key(2), at_key(3)));
  }
  const int key = half % 2 * kHalfKeys + ((at.lane & 1) * 2 + (at.lane >> 1 & 1)) * 8 + at.lane / 4;
  to[at.warp][key] = window_join_quad(value, join);
}

/// Pass 2: the weights of a half on their way to this warp's diagonals. Blocks of 8 x 8 on one diagonal of
/// blocks meet in registers; what is left are 8 rows of keys, ...
template <class T>
__device__ void window_write_strip(const WindowPlace& at, const WindowHalf& s, typename T::Shared& shared) {
  float* row = shared.strip[at.warp] + at.lane / 4 * T::kStripPitch + T::kStripZeros + (at.lane & 3) * 2;
  __syncwarp();
#pragma unroll
  for (int c = 0; c < 7; ++c) {  // query block - key block = c - 3
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int key = n - (c - 3);
      if (key < 0 || key > 3) continue;
      sum.x += s[key / 2][n][key % 2 * 2];
      sum.y += s[key / 2][n][key % 2 * 2 + 1];
    }
    *reinterpret_cast<float2*>(row + c * 8) = sum;
  }
  __syncwarp();
}
/// ... read along their diagonals.
template <class T>
__device__ void window_read_strip(const WindowPlace& at, int half, typename T::Shared& shared) {
  const float* strip = shared.strip[at.warp];
  // Entry d: query - key = d - 31 within the half.
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int d = part * 32 + at.lane;
    float total = 0.0f;
#pragma unroll
    for (int r = 0; r < 8; ++r) total += strip[r * T::kStripPitch + T::kStripZeros + d - 7 + r];
    shared.diagonal[at.warp][d + kWindowSpan - kHalfKeys - half * kHalfKeys] += total;
  }
}

/// Pass 2: what becomes of the scores of a half, in parts.
template <class T, bool kDiagonals>
struct WindowWeights {
  static constexpr int kParts = 8;
  float shift[8];

  __device__ void load(const WindowArgs& args, const WindowPlace& at) {
    const int rows_padded = args.shape.row_blocks * kWarpRows * args.shape.warps_per_head;
    const float* from = args.row_shift + static_cast<std::int64_t>(max(at.head, 0)) * rows_padded +
                        at.warp_row - args.first_row + (at.lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) shift[i] = from[i / 2 * 8 + i % 2];
  }
  __device__ void use(int part, const WindowArgs& args, const WindowPlace& at, WindowHalf& s, float factor,
                      int half, typename T::Shared& shared) const {
    const int slot = half / 2 % kColumnSlots;
    if (part < 4) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[m][part][e] = exp2_fast(fmaf(s[m][part][e], factor, -shift[part * 2 + e % 2]));
    } else if (part == 4) {
      window_columns(
          at, s, half, [](float a, float b) { return a + b; }, shared.column_sum[slot]);
    } else if (part == 5) {
      if constexpr (kDiagonals) window_write_strip<T>(at, s, shared);
    } else if (part == 6) {
      if constexpr (kDiagonals) window_read_strip<T>(at, half, shared);
    } else if (args.column_max != nullptr) {
      window_columns(
          at, s, half, [](float a, float b) { return fmaxf(a, b); }, shared.column_max[slot]);
    }
  }
};

/// Writes the columns of a tile: the sums over the warps of each head.
template <class T>
__device__ void window_write_columns(const WindowArgs& args, const WindowPlace& at, int tile, bool empty,
                                     const typename T::Shared& shared) {
  const int per_head = args.shape.warps_per_head;
  for (int i = static_cast<int>(threadIdx.x); i < kWindowWarps / per_head * kTileKeys; i += T::kThreads) {
    const int part = i / kTileKeys, column = i % kTileKeys;
    const int key = at.first_key + tile * kTileKeys + column, head = at.head_of(part);
    if (head < 0 || key >= args.tokens) continue;
    float total = 0.0f, high = 0.0f;
    for (int w = part * per_head; w < (part + 1) * per_head && !empty; ++w) {
      total += shared.column_sum[tile % kColumnSlots][w][column];
      if (args.column_max != nullptr) high = fmaxf(high, shared.column_max[tile % kColumnSlots][w][column]);
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
    const int head = at.head_of(part);
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

}  // namespace lacuna
