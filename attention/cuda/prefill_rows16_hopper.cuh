// prefill_rows16.cuh on Hopper: clusters of two blocks on neighbouring rows of one head. Both walk the union
// of their 32 slices, each loads half of every piece by TMA and multicasts it to both, which halves what the
// second-level cache must deliver. One warp loads, another expands the lists.
#pragma once

#include "attention/cuda/hopper.cuh"
#include "attention/cuda/prefill_rows16.cuh"
#include "core/cuda.h"

namespace lacuna {

template <class T>
struct Rows16HopperCopies {
  static constexpr int kFullArrivals = 32;
  static constexpr int kEmptyArrivals = T::kWarps * T::kCluster;
  static constexpr int kUnits = 2 * T::kChunks;  ///< boxes of one piece
  static_assert(T::kStagePieces * kUnits <= 32 && kUnits % T::kCluster == 0);
  const HopperMaps& maps;
  int head, kv_head, rank;

  __device__ void load(unsigned char* to, std::uint64_t* full, int count, int kind,
                       const int (&first)[T::kStagePieces]) const {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    if (lane == 0) {
      hopper::barrier_arrive_expect(full, count * T::kPieceBytes);
    } else {
      ring::arrive(full);
    }
    __syncwarp();
    const int piece = lane / kUnits, unit = lane % kUnits;
    if (piece < count && unit % T::kCluster == rank) {
      int token = first[0];
#pragma unroll
      for (int i = 1; i < T::kStagePieces; ++i)
        if (piece == i) token = first[i];
      const bool value = unit >= T::kChunks;
      const bool range = kind == kTileRange;
      const CUtensorMap* map =
          range ? (value ? &maps.v : &maps.k) : (value ? &maps.column_v : &maps.column_k);
      hopper::copy_box_to((1 << T::kCluster) - 1, to + piece * T::kPieceBytes + unit * T::kChunkBytes, map,
                          full, unit % T::kChunks * 64, token, range ? kv_head : head);
    }
    __syncwarp();
  }
  __device__ static void release(std::uint64_t* empty, int lane) {
    if (lane < T::kCluster) hopper::arrive_at(empty, lane);
  }
};

/// Registers of a thread that loads or expands, and of one that multiplies: three warpgroups share 504.
template <int kHeadDim>
inline constexpr int kRows16HelperRegisters = kHeadDim == 128  ? 40
                                              : kHeadDim > 128 ? 56
                                                               : 88;
template <int kHeadDim>
inline constexpr int kRows16WarpRegisters = (504 - kRows16HelperRegisters<kHeadDim>) / 2;

/// Two warpgroups multiply; of the third one warp loads and one expands.
template <class T>
__global__ void __launch_bounds__(384, 1) __cluster_dims__(T::kCluster, 1, 1)
    prefill_rows16_hopper_kernel(const __grid_constant__ PrefillArgs args,
                                 const __grid_constant__ HopperMaps maps, int stages) {
  extern __shared__ unsigned char raw[];
  using Copies = Rows16HopperCopies<T>;
  const Rows16Ring<T> ring = rows16_ring<T>(raw, stages);
  const Rows16Item<T> item(args);
  if (threadIdx.x == 0) {
    hopper::prefetch_map(&maps.k);
    hopper::prefetch_map(&maps.v);
    for (int i = 0; i < stages; ++i) {
      ring::init(&ring.shared->full[i], Copies::kFullArrivals);
      ring::init(&ring.shared->empty[i], Copies::kEmptyArrivals);
    }
    for (int i = 0; i < 2; ++i) {
      ring::init(&ring.shared->bits_full[i], kBitsArrivals);
      ring::init(&ring.shared->bits_empty[i], kBitsArrivals);
    }
    hopper::fence_barrier_init();
  }
  hopper::cluster_sync();
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  if (warp >= T::kWarps) {
    hopper::give_registers<kRows16HelperRegisters<T::kHeadDim>>();
    if (warp == T::kWarps) {
      const Copies copies{maps, item.head, kv_head_of(args, item.head),
                          static_cast<int>(blockIdx.x) % T::kCluster};
      Rows16Loader<T, Copies>(args, item, ring, copies).template run<false>();
    } else if (warp == T::kWarps + 1) {
      rows16_expand<T>(args, item, *ring.shared);
    }
  } else {
    hopper::take_registers<kRows16WarpRegisters<T::kHeadDim>>();
    Rows16Warp<T, Copies>(args, item, ring).run();
  }
  // A block's memory must stay until the other one has sent its last copy and arrival.
  hopper::cluster_sync();
}

template <class T>
void launch_prefill_rows16_hopper_variant(const PrefillArgs& args, const HopperMaps& maps,
                                          int max_shared_bytes, cudaStream_t stream) {
  const auto kernel = prefill_rows16_hopper_kernel<T>;
  const int stages = T::stages(max_shared_bytes);
  LACUNA_CUDA_TRY(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::shared_bytes(stages)));
  constexpr int kRows = T::kRows * T::kCluster;
  const int blocks = (args.tokens + kRows - 1) / kRows * args.q_heads * T::kCluster;
  kernel<<<blocks, 384, T::shared_bytes(stages), stream>>>(args, maps, stages);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

template <int kHeadDim>
void launch_prefill_rows16_hopper(const PrefillArgs& args, const HopperMaps& maps, int max_shared_bytes,
                                  cudaStream_t stream) {
  if (args.softcap > 0.0f) {
    using T = Rows16Traits<kHeadDim, 8, 2, true>;
    launch_prefill_rows16_hopper_variant<T>(args, maps, max_shared_bytes, stream);
  } else {
    using T = Rows16Traits<kHeadDim, 8, 2, false>;
    launch_prefill_rows16_hopper_variant<T>(args, maps, max_shared_bytes, stream);
  }
}

}  // namespace lacuna
