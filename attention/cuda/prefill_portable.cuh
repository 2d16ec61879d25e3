// Prefill attention for sm_80 and later: 64 query rows per block, one warp per 16-row slice, mma.sync. All
// four warps share the key tiles; a warp passes over tiles that are not on its slice's list.
#pragma once

#include "attention/cuda/mma.cuh"
#include "attention/cuda/prefill_launch.h"
#include "attention/cuda/softmax.cuh"
#include "core/cuda.h"

namespace lacuna {

template <int kHeadDim_>
struct PortableTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = 64;
  static constexpr int kSlices = kRows / kSliceRows;
  static constexpr int kThreads = 32 * kSlices;
  static constexpr int kPitch =
      kHeadDim + 8;  ///< an odd number of 16-byte units: ldmatrix meets no bank conflict
  static constexpr int kStages = kHeadDim > 128 ? 1 : 2;
  static constexpr bool kKeepQ = kHeadDim <= 128;  ///< q stays in registers

  struct Shared {
    alignas(16) __nv_bfloat16 q[kRows * kPitch];
    alignas(16) __nv_bfloat16 k[kStages][kTileKeys * kPitch];
    alignas(16) __nv_bfloat16 v[kStages][kTileKeys * kPitch];
    TileEntry<kSlices> entry[3];  ///< being computed, being loaded, being written
    std::int32_t key[3][kTileKeys];
  };
};

template <class T>
__device__ void portable_load(const PrefillArgs& args, const TileEntry<T::kSlices>& entry,
                              const std::int32_t* keys, const __nv_bfloat16* k, const __nv_bfloat16* v,
                              __nv_bfloat16* to_k, __nv_bfloat16* to_v) {
  constexpr int kPieces = T::kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * kPieces; i += T::kThreads) {
    const int row = i / kPieces;
    const int channel = i % kPieces * 8;
    const int key = entry.kind == kTileColumns ? keys[row] : entry.start + row;
    const bool valid = key < args.tokens;
    const std::int64_t token = valid ? key : 0;
    copy_async_16(to_k + row * T::kPitch + channel, k + token * args.k_token_stride + channel, valid);
    copy_async_16(to_v + row * T::kPitch + channel, v + token * args.v_token_stride + channel, valid);
  }
}

/// q k^T of one warp's 16 rows with 64 keys.
template <class T>
__device__ void portable_scores(float (&s)[kTileKeys / 2], const std::uint32_t (&q_kept)[T::kHeadDim / 16][4],
                                const __nv_bfloat16* q, const __nv_bfloat16* k) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (float& x : s) x = 0.0f;
#pragma unroll
  for (int step = 0; step < T::kHeadDim / 16; ++step) {
    std::uint32_t a[4];
    if constexpr (T::kKeepQ) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = q_kept[step][i];
    } else {
      load_matrix(a, q + (lane & 15) * T::kPitch + step * 16 + (lane >> 4) * 8);
    }
#pragma unroll
    for (int j = 0; j < kTileKeys / 16; ++j) {
      std::uint32_t b[4];  // keys 16 j + 0..7 and 8..15, channels 0..7 and 8..15
      load_matrix(
          b, k + (j * 16 + (lane >> 4) * 8 + (lane & 7)) * T::kPitch + step * 16 + ((lane >> 3) & 1) * 8);
      mma(s + j * 8, a, b[0], b[1]);
      mma(s + j * 8 + 4, a, b[2], b[3]);
    }
  }
}

template <class T>
__device__ void portable_output(float (&o)[T::kHeadDim / 2], const float (&s)[kTileKeys / 2],
                                const __nv_bfloat16* v) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int step = 0; step < kTileKeys / 16; ++step) {
    std::uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) p[i] = pack_bf16(s[step * 8 + 2 * i], s[step * 8 + 2 * i + 1]);
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 16; ++j) {
      std::uint32_t b[4];  // channels 16 j + 0..7 and 8..15, keys 0..7 and 8..15
      load_matrix_transposed(
          b, v + (step * 16 + ((lane >> 3) & 1) * 8 + (lane & 7)) * T::kPitch + j * 16 + (lane >> 4) * 8);
      mma(o + j * 8, p, b[0], b[1]);
      mma(o + j * 8 + 4, p, b[2], b[3]);
    }
  }
}

template <class T>
__device__ void portable_mask(float (&s)[kTileKeys / 2], const PrefillArgs& args,
                              const TileEntry<T::kSlices>& entry, std::uint64_t mask,
                              const std::int32_t* keys, int slice_row) {
  if (mask != ~std::uint64_t{0}) mask_bits(s, mask);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const bool edge =
      entry.last > slice_row || (args.window > 0 && entry.first <= slice_row + kSliceRows - 1 - args.window);
  if (!edge) return;
  const int row = slice_row + lane / 4;
  const int below = args.window > 0 ? args.window - 1 : INT_MAX / 2;
  if (entry.kind == kTileRange) {
    const int last[2] = {row - entry.start, row + 8 - entry.start};
    const int first[2] = {last[0] - below, last[1] - below};
    mask_span(s, first, last);
    return;
  }
#pragma unroll
  for (int i = 0; i < kTileKeys / 2; ++i) {
    const int key = keys[(i / 4) * 8 + (lane & 3) * 2 + (i & 1)];
    const int query = row + ((i >> 1) & 1) * 8;
    if (key > query || key < query - below) s[i] = -INFINITY;
  }
}

/// Dense attention as a list: one range per slice.
template <class T>
struct DenseWalker {
  int key, stop, row, rows, window;
  __device__ void open(int first_row, int tokens, int window_) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    row = first_row + lane * kSliceRows;
    rows = tokens;
    window = window_;
    stop = min(first_row + T::kRows, tokens);
    key = window > 0 ? max(0, first_row - window + 1) / kTileKeys * kTileKeys : 0;
  }
  __device__ int next(TileEntry<T::kSlices>* entry) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const int kind = key < stop ? kTileRange : kTileEnd;
    // The edge tests of portable_mask do the rest.
    if (lane < T::kSlices) entry->mask[lane] = row < rows && key < row + kSliceRows ? ~std::uint64_t{0} : 0;
    if (lane == 0) {
      entry->start = entry->first = key;
      entry->last = key + kTileKeys - 1;
      entry->kind = kind;
    }
    __syncwarp();
    key += kTileKeys;
    return kind;
  }
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kHeadDim > 128 ? 1 : 2)
    prefill_portable_kernel(const __grid_constant__ PrefillArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  // Last rows first: they take longest.
  const int row_tiles = (args.tokens + T::kRows - 1) / T::kRows;
  const int per_pass = row_tiles * args.pass_heads;
  const int inside = static_cast<int>(blockIdx.x) % per_pass;
  const int head = static_cast<int>(blockIdx.x) / per_pass * args.pass_heads + inside % args.pass_heads;
  const int first_row = (row_tiles - 1 - inside / args.pass_heads) * T::kRows;
  const int slice_row = first_row + warp * kSliceRows;
  const int kv_head = kv_head_of(args, head);
  const __nv_bfloat16* k = args.k + kv_head * args.k_head_stride;
  const __nv_bfloat16* v = args.v + kv_head * args.v_head_stride;

  constexpr int kPieces = T::kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < T::kRows * kPieces; i += T::kThreads) {
    const int row = i / kPieces;
    const int channel = i % kPieces * 8;
    const bool valid = first_row + row < args.tokens;
    const std::int64_t token = valid ? first_row + row : 0;
    copy_async_16(shared.q + row * T::kPitch + channel,
                  args.q + head * args.q_head_stride + token * args.q_token_stride + channel, valid);
  }
  copy_async_commit();

  TileWalker<T::kSlices> walker;
  DenseWalker<T> dense;
  const auto walk = [&](int slot) {  // warp 0
    auto* entry = &shared.entry[slot];
    if (args.dense) {
      dense.next(entry);
    } else if (walker.next(entry) == kTileColumns) {
      for (int i = lane; i < kTileKeys; i += 32) {
        const int column = entry->start + i;
        shared.key[slot][i] = column < walker.column_count() ? walker.columns()[column] : INT_MAX;
      }
    }
  };
  if (warp == 0) {
    if (args.dense) {
      dense.open(first_row, args.tokens, args.window);
    } else {
      walker.open(args.lists, head, first_row, args.tokens, args.window);
    }
    walk(0);
  }
  copy_async_wait<0>();
  __syncthreads();

  std::uint32_t q[T::kHeadDim / 16][4];
  if constexpr (T::kKeepQ) {
#pragma unroll
    for (int step = 0; step < T::kHeadDim / 16; ++step)
      load_matrix(q[step],
                  shared.q + (warp * kSliceRows + (lane & 15)) * T::kPitch + step * 16 + (lane >> 4) * 8);
  }
  float o[T::kHeadDim / 2];
#pragma unroll
  for (float& x : o) x = 0.0f;
  SoftmaxState softmax;
  const float scale_log2 = (args.softcap > 0.0f ? 1.0f : args.scale) * kLog2e;

  const auto load = [&](int slot, int stage) {
    portable_load<T>(args, shared.entry[slot], shared.key[slot], k, v, shared.k[stage], shared.v[stage]);
    copy_async_commit();
  };
  if (shared.entry[0].kind != kTileEnd) load(0, 0);
  int slot = 0, stage = 0;
  while (shared.entry[slot].kind != kTileEnd) {
    const int next_slot = slot == 2 ? 0 : slot + 1;
    const int next_stage = T::kStages == 1 ? 0 : stage ^ 1;
    if (warp == 0) walk(next_slot);
    copy_async_wait<0>();
    __syncthreads();  // this tile has arrived, the next entry is known, the tile before is done with
    const bool more = shared.entry[next_slot].kind != kTileEnd;
    if (T::kStages > 1 && more) load(next_slot, next_stage);

    const auto& entry = shared.entry[slot];
    const std::uint64_t mask = entry.mask[warp];
    if (mask != 0) {
      float s[kTileKeys / 2], rescale[2];
      portable_scores<T>(s, q, shared.q + warp * kSliceRows * T::kPitch, shared.k[stage]);
      if (args.softcap > 0.0f) apply_softcap(s, args.scale, args.softcap);
      portable_mask<T>(s, args, entry, mask, shared.key[slot], slice_row);
      softmax.update(s, scale_log2, rescale);
      rescale_rows(o, rescale);
      portable_output<T>(o, s, shared.v[stage]);
    }
    if (T::kStages == 1) {
      __syncthreads();
      if (more) load(next_slot, 0);
    }
    slot = next_slot;
    stage = next_stage;
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = quad_sum(softmax.sum[r]);
    inverse[r] = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that visited nothing gets zeros
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = slice_row + lane / 4 + r * 8;
    if (row >= args.tokens) continue;
    auto* to = args.out + head * args.out_head_stride + row * args.out_token_stride + (lane & 3) * 2;
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 8; ++j)
      *reinterpret_cast<std::uint32_t*>(to + j * 8) =
          pack_bf16(o[j * 4 + 2 * r] * inverse[r], o[j * 4 + 2 * r + 1] * inverse[r]);
  }
}

template <int kHeadDim>
void launch_prefill_portable(const PrefillArgs& args, cudaStream_t stream) {
  using T = PortableTraits<kHeadDim>;
  const auto kernel = prefill_portable_kernel<T>;
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Shared));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int blocks = (args.tokens + T::kRows - 1) / T::kRows * args.q_heads;
  kernel<<<blocks, T::kThreads, kBytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
