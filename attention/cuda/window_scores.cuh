// Attention weights of the last queries, summed by column and diagonal without ever writing the matrix of
// weights.
//
// Pass 1 finds every row's maximum and sum; pass 2 computes the scores again and adds up normalised weights.
// A block works on 128 rows and kSpan keys; each warp owns 32 rows, so that all sums have a fixed order.
#pragma once

#include "attention/cuda/mma.cuh"
#include "attention/cuda/softmax.cuh"
#include "attention/cuda/window_scores_launch.h"
#include "core/cuda.h"

namespace lacuna {

template <int kHeadDim_>
struct WindowTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarps = kWindowRows / 32;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kPitch = kHeadDim + 8;
  static constexpr int kStripPitch = kTileKeys + 8;  ///< float2 writes of 4 rows meet no bank conflict
  static constexpr int kDiagonals = 32 + kWindowSpan - 1;
  struct Shared {
    alignas(16) __nv_bfloat16 q[kWindowRows * kPitch];
    alignas(16) __nv_bfloat16 k[2][kTileKeys * kPitch];
    alignas(16) float strip[kWarps][16 * kStripPitch];
    float column_sum[kWarps][kWindowSpan];
    float column_max[kWarps][kWindowSpan];
    float diagonal[kWarps][kDiagonals];
  };
};

template <class T>
__device__ void window_load_keys(const WindowArgs& args, const __nv_bfloat16* k, int first_key,
                                 __nv_bfloat16* to) {
  constexpr int kPieces = T::kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * kPieces; i += T::kThreads) {
    const int row = i / kPieces, channel = i % kPieces * 8;
    const bool valid = first_key + row < args.tokens;
    copy_async_16(to + row * T::kPitch + channel,
                  k + (valid ? first_key + row : 0) * args.k_token_stride + channel, valid);
  }
  copy_async_commit();
}

/// Scores of 32 rows x 64 keys, in base-2 exponents, -inf where masked.
template <class T>
__device__ void window_tile(const WindowArgs& args, float (&s)[2][32], const __nv_bfloat16* q,
                            const __nv_bfloat16* k, int first_row, int first_key) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (float& x : s[m]) x = 0.0f;
#pragma unroll
  for (int step = 0; step < T::kHeadDim / 16; ++step) {
    std::uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_matrix(a[m], q + (m * 16 + (lane & 15)) * T::kPitch + step * 16 + (lane >> 4) * 8);
#pragma unroll
    for (int j = 0; j < kTileKeys / 16; ++j) {
      std::uint32_t b[4];
      load_matrix(
          b, k + (j * 16 + (lane >> 4) * 8 + (lane & 7)) * T::kPitch + step * 16 + ((lane >> 3) & 1) * 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma(s[m] + j * 8, a[m], b[0], b[1]);
        mma(s[m] + j * 8 + 4, a[m], b[2], b[3]);
      }
    }
  }
  const float factor = args.softcap > 0.0f ? kLog2e : args.scale * kLog2e;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    if (args.softcap > 0.0f) apply_softcap(s[m], args.scale, args.softcap);
#pragma unroll
    for (float& x : s[m]) x *= factor;
    const int top = first_row + m * 16;
    const bool edge = first_key + kTileKeys - 1 > top || top + 15 >= args.tokens ||
                      (args.window > 0 && first_key <= top + 15 - args.window);
    if (!edge) continue;
    const int row = top + lane / 4;
    const int below = args.window > 0 ? args.window - 1 : INT_MAX / 2;
    // Rows past the prompt see nothing.
    const int last[2] = {row < args.tokens ? row - first_key : -1,
                         row + 8 < args.tokens ? row + 8 - first_key : -1};
    const int first[2] = {row - below - first_key, row + 8 - below - first_key};
    mask_span(s[m], first, last);
  }
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(T::kThreads, T::kHeadDim > 128 ? 1 : 2)
    window_scores_kernel(const __grid_constant__ WindowArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int head = static_cast<int>(blockIdx.x) % args.q_heads;  // heads of a group meet in the L2 cache
  const int span = static_cast<int>(blockIdx.x) / args.q_heads;
  const int row_block = static_cast<int>(blockIdx.y);
  const int block_row = args.first_row + row_block * kWindowRows;
  const int warp_row = block_row + warp * 32;
  const int first_key = span * kWindowSpan;
  const int kv_head = (args.head_base + head) / args.group - args.kv_base;
  const __nv_bfloat16* k = args.k + kv_head * args.k_head_stride;
  const int end_key = min(min(first_key + kWindowSpan, args.tokens), block_row + kWindowRows);
  const int tiles = end_key > first_key ? (end_key - first_key + kTileKeys - 1) / kTileKeys : 0;

  constexpr int kPieces = T::kHeadDim / 8;
  if (tiles > 0) {
    for (int i = static_cast<int>(threadIdx.x); i < kWindowRows * kPieces; i += T::kThreads) {
      const int row = i / kPieces, channel = i % kPieces * 8;
      const bool valid = block_row + row < args.tokens;
      copy_async_16(
          shared.q + row * T::kPitch + channel,
          args.q + head * args.q_head_stride + (valid ? block_row + row : 0) * args.q_token_stride + channel,
          valid);
    }
    window_load_keys<T>(args, k, first_key, shared.k[0]);
  }

  float top[2][2], sum[2][2];  // pass 1: what this thread's rows have seen; pass 2: shift and 1 / sum
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[m][r] = -INFINITY;
      sum[m][r] = 0.0f;
      if constexpr (kSecond) {
        const int row = row_block * kWindowRows + warp * 32 + m * 16 + r * 8 + lane / 4;
        const float2 state = args.row_state[static_cast<std::int64_t>(head) * args.rows_padded + row];
        top[m][r] = state.x;
        sum[m][r] = state.y;
      }
    }
  if constexpr (kSecond) {
    for (int i = lane; i < T::kDiagonals; i += 32) shared.diagonal[warp][i] = 0.0f;
    for (int i = lane; i < kWindowSpan; i += 32) {
      shared.column_sum[warp][i] = 0.0f;
      shared.column_max[warp][i] = 0.0f;
    }
    __syncwarp();
  }

  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<0>();
    __syncthreads();
    const int key = first_key + tile * kTileKeys;
    if (tile + 1 < tiles) window_load_keys<T>(args, k, key + kTileKeys, shared.k[(tile + 1) & 1]);
    if (key > warp_row + 31) continue;  // beyond the diagonal of all rows of this warp
    float s[2][32];
    window_tile<T>(args, s, shared.q + warp * 32 * T::kPitch, shared.k[tile & 1], warp_row, key);

    if constexpr (!kSecond) {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float high = top[m][r];
#pragma unroll
          for (int j = 0; j < 32; j += 4) high = fmaxf(high, fmaxf(s[m][j + 2 * r], s[m][j + 2 * r + 1]));
          const float shift = high == -INFINITY ? 0.0f : high;
          // sum is 0, or NaN from a NaN score, while nothing has been seen
          float total = top[m][r] == -INFINITY ? sum[m][r] : sum[m][r] * exp2_fast(top[m][r] - shift);
#pragma unroll
          for (int j = 0; j < 32; j += 4)
            total += exp2_fast(s[m][j + 2 * r] - shift) + exp2_fast(s[m][j + 2 * r + 1] - shift);
          top[m][r] = high;
          sum[m][r] = total;
        }
    } else {
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int j = 0; j < 32; ++j)
          s[m][j] = exp2_fast(s[m][j] - top[m][(j >> 1) & 1]) * sum[m][(j >> 1) & 1];
          // Columns: this thread's 4 rows, then the 8 lanes that hold the same columns.
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = j * 4 + e;
          float total = (s[0][i] + s[0][i + 2]) + (s[1][i] + s[1][i + 2]);
          float high = fmaxf(fmaxf(s[0][i], s[0][i + 2]), fmaxf(s[1][i], s[1][i + 2]));
#pragma unroll
          for (int distance = 4; distance < 32; distance *= 2) {
            total += __shfl_xor_sync(~0u, total, distance);
            if (args.column_max != nullptr) high = fmaxf(high, __shfl_xor_sync(~0u, high, distance));
          }
          if (lane / 4 == j) {
            const int column = tile * kTileKeys + j * 8 + (lane & 3) * 2 + e;
            shared.column_sum[warp][column] = total;
            shared.column_max[warp][column] = high;
          }
        }
      if (args.diagonal_part != nullptr) {
        float* strip = shared.strip[warp];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          __syncwarp();
#pragma unroll
          for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < 8; ++j)
              *reinterpret_cast<float2*>(strip + (lane / 4 + r * 8) * T::kStripPitch + j * 8 +
                                         (lane & 3) * 2) =
                  make_float2(s[m][j * 4 + 2 * r], s[m][j * 4 + 2 * r + 1]);
          __syncwarp();
          // Entry d of the warp's diagonals: row - key = d - (kWindowSpan - 1) relative to (warp_row,
          // first_key).
          for (int d = lane; d < 16 + kTileKeys - 1; d += 32) {
            float total = 0.0f;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
              const int column = i + kTileKeys - 1 - d;
              if (column >= 0 && column < kTileKeys) total += strip[i * T::kStripPitch + column];
            }
            shared.diagonal[warp][d + m * 16 + kWindowSpan - kTileKeys - tile * kTileKeys] += total;
          }
        }
      }
    }
  }

  if constexpr (!kSecond) {
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float high = quad_max(top[m][r]);
        const float total =
            quad_sum(top[m][r] == -INFINITY ? sum[m][r] : sum[m][r] * exp2_fast(top[m][r] - high));
        const int row = row_block * kWindowRows + warp * 32 + m * 16 + r * 8 + lane / 4;
        // A NaN score lives on in the sum though the maximum drops it.
        if ((lane & 3) == 0)
          args.row_part[(static_cast<std::int64_t>(head) * args.spans + span) * args.rows_padded + row] =
              make_float2(high, total);
      }
  } else {
    __syncthreads();
    const std::int64_t row_of = static_cast<std::int64_t>(row_block) * args.q_heads + head;
    for (int i = static_cast<int>(threadIdx.x); i < kWindowSpan && first_key + i < args.tokens;
         i += T::kThreads) {
      float total = 0.0f, high = 0.0f;
#pragma unroll
      for (int w = 0; w < T::kWarps; ++w) {
        total += shared.column_sum[w][i];
        high = fmaxf(high, shared.column_max[w][i]);
      }
      const std::int64_t at = row_of * args.tokens + first_key + i;
      if (args.column_sum != nullptr) args.column_sum[at] = total;
      if (args.column_max != nullptr) args.column_max[at] = high;
    }
    if (args.diagonal_part != nullptr) {
      // Entry e: row - key = e - (kWindowSpan - 1) relative to (block_row, first_key).
      float* to = args.diagonal_part + (row_of * args.spans + span) * kWindowDiagonals;
      for (int e = static_cast<int>(threadIdx.x); e < kWindowDiagonals; e += T::kThreads) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < T::kWarps; ++w) {
          const int d = e - w * 32;
          if (d >= 0 && d < T::kDiagonals) total += shared.diagonal[w][d];
        }
        to[e] = total;
      }
    }
  }
}

template <int kHeadDim>
void launch_window_pass(const WindowArgs& args, int row_blocks, bool second, cudaStream_t stream) {
  using T = WindowTraits<kHeadDim>;
  const auto kernel = second ? window_scores_kernel<T, true> : window_scores_kernel<T, false>;
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Shared));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(args.spans * args.q_heads), static_cast<unsigned>(row_blocks));
  kernel<<<grid, T::kThreads, kBytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
