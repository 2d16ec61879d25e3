// prefill_rows16.cuh with cp.async: sm_80 and later, each block by itself.
#pragma once

#include "attention/cuda/prefill_rows16.cuh"
#include "core/cuda.h"

namespace lacuna {

/// The whole warp copies; every lane tells that its part of the entry is written, and when its copies are
/// there.
template <class T>
struct Rows16Copies {
  static constexpr int kFullArrivals = 64;
  static constexpr int kEmptyArrivals = 32 * T::kWarps;
  const PrefillArgs& args;
  const __nv_bfloat16 *k, *v, *column_k, *column_v;

  __device__ Rows16Copies(const PrefillArgs& prefill, int head) : args(prefill) {
    const int kv_head = kv_head_of(args, head);
    k = args.k + kv_head * args.k_head_stride;
    v = args.v + kv_head * args.v_head_stride;
    const std::int64_t columns = static_cast<std::int64_t>(head) * args.column_pitch * T::kHeadDim;
    column_k = args.column_k + columns;
    column_v = args.column_v + columns;
  }

  __device__ void load(unsigned char* to, std::uint64_t* full, int count, int kind,
                       const int (&first)[T::kStagePieces]) const {
    constexpr int kUnits = T::kHeadDim / 8;
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const bool range = kind == kTileRange;
    const std::int64_t k_stride = range ? args.k_token_stride : T::kHeadDim;
    const std::int64_t v_stride = range ? args.v_token_stride : T::kHeadDim;
    const int rows = range ? args.tokens : INT_MAX;  // copied columns are padded to whole pieces
#pragma unroll
    for (int p = 0; p < T::kStagePieces; ++p) {
      if (p >= count) break;
      unsigned char* piece = to + p * T::kPieceBytes;
      for (int i = lane; i < kPieceKeys * kUnits; i += 32) {
        const int key = i / kUnits, unit = i % kUnits;
        const bool valid = first[p] + key < rows;
        const std::int64_t token = valid ? first[p] + key : 0;
        const int at = unit / 8 * T::kChunkBytes + key * 128 + ((unit % 8) ^ (key & 7)) * 16;
        copy_async_16(piece + at, (range ? k : column_k) + token * k_stride + unit * 8, valid);
        copy_async_16(piece + T::kChunks * T::kChunkBytes + at,
                      (range ? v : column_v) + token * v_stride + unit * 8, valid);
      }
    }
    ring::arrive_after_copies(full);
    ring::arrive(full);
  }
  __device__ static void release(std::uint64_t* empty, int) { ring::arrive(empty); }
};

template <class T>
__global__ void __launch_bounds__(32 * T::kWarps + 32, 1)
    prefill_rows16_kernel(const __grid_constant__ PrefillArgs args, int stages) {
  extern __shared__ __align__(128) unsigned char raw[];
  using Copies = Rows16Copies<T>;
  const Rows16Ring<T> ring = rows16_ring<T>(raw, stages);
  const Rows16Item<T> item(args);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      ring::init(&ring.shared->full[i], Copies::kFullArrivals);
      ring::init(&ring.shared->empty[i], Copies::kEmptyArrivals);
    }
  }
  __syncthreads();
  if (threadIdx.x < 32 * T::kWarps) {
    Rows16Warp<T, Copies>(args, item, ring).run();
  } else {
    const Copies copies(args, item.head);
    Rows16Loader<T, Copies>(args, item, ring, copies).template run<true>();
  }
}

template <class T>
bool launch_prefill_rows16_variant(const PrefillArgs& args, int max_shared_bytes, cudaStream_t stream) {
  const auto kernel = prefill_rows16_kernel<T>;
  const int stages = T::stages(max_shared_bytes);
  if (stages == 0) return false;
  LACUNA_CUDA_TRY(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::shared_bytes(stages)));
  const int blocks = (args.tokens + T::kRows - 1) / T::kRows * args.q_heads;
  kernel<<<blocks, 32 * T::kWarps + 32, T::shared_bytes(stages), stream>>>(args, stages);
  LACUNA_CUDA_TRY(cudaGetLastError());
  return true;
}

template <int kHeadDim>
bool launch_prefill_rows16(const PrefillArgs& args, int max_shared_bytes, cudaStream_t stream) {
  // Seven warps and the loader are two a scheduler, which leaves 255 registers to each thread.
  if (args.softcap > 0.0f) {
    return launch_prefill_rows16_variant<Rows16Traits<kHeadDim, 7, 1, true>>(args, max_shared_bytes, stream);
  }
  return launch_prefill_rows16_variant<Rows16Traits<kHeadDim, 7, 1, false>>(args, max_shared_bytes, stream);
}

}  // namespace lacuna
