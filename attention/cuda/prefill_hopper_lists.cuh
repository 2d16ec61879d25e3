// Prefill attention over tile lists on Hopper. Two consumer warpgroups, each with a producer warp, a ring of
// stages and work items of 64 query rows of its own: lists of different rows rarely ask for the same tile at
// the same time, and waiting for each other costs more than loading a tile twice.
//
// One step multiplies kTiles listed tiles of 64 keys side by side, as if they were one of 128: the softmax
// then runs as long as the products do. A ring holds, in this order, K of step 0, K of step 1, V of step 0,
// K of step 2, V of step 1, ...; after the last step an entry without tiles stands where K would.
#pragma once

#include "attention/cuda/prefill_hopper_common.cuh"

namespace lacuna {

template <int kHeadDim_>
struct HopperListTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = 64;
  static constexpr int kSlices = kRows / kSliceRows;
  static constexpr int kTiles = kHeadDim > 128 ? 1 : 2;
  static constexpr int kKeys = kTiles * kTileKeys;
  static constexpr int kChunks = (kHeadDim + 63) / 64;
  static constexpr int kStages = kHeadDim > 128 ? 2 : kHeadDim > 64 ? 3 : 6;
  static constexpr int kChunkElements = kKeys * 64;
  static constexpr int kStageElements = kChunkElements * kChunks;
  static constexpr int kStageBytes = kStageElements * 2;
  static constexpr int kQuerySteps = kHeadDim > 128 ? 0 : 4;
  static constexpr int kQBytes = kRows * kChunks * 64 * 2;

  /// What a consumer warp must know of a step. A lane of the producer writes it and a lane of the consumer
  /// reads it, and both tell the barriers themselves: the other lanes wait for nobody.
  struct SliceStep {
    std::uint64_t mask[kTiles];
    int start[kTiles];  ///< first key, or first index into the head's columns
    std::uint32_t flags;
  };
  static constexpr std::uint32_t kEnd = 1;  ///< of the list, instead of tiles
  /// For the first tile, of the second one the next bit: some keys are not listed; some row does not see all
  /// of the listed keys, for the causal mask or the window; the tile is one of kept columns.
  static constexpr std::uint32_t kMasked = 2, kEdge = 8, kColumns = 32;
  /// What one consumer warpgroup and its producer warp share.
  struct Half {
    alignas(1024) __nv_bfloat16 q[kChunks][kRows * 64];
    alignas(1024) __nv_bfloat16 stage[kStages][kStageElements];
    SliceStep step[kStages][kSlices];  ///< beside K
    std::uint64_t q_full, q_empty, full[kStages], empty[kStages];
    int work;
  };
  struct Shared {
    Half half[2];
  };
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class T>
__device__ void hopper_produce_lists(const PrefillArgs& args, const HopperMaps& maps,
                                     typename T::Half& half) {
  using namespace hopper;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int items = (args.tokens + T::kRows - 1) / T::kRows * args.q_heads;
  RingPlace<T::kStages> place;
  int q_parity = 0;
  TileWalker<T::kSlices> walker;

  while (true) {
    int work = 0;
    if (lane == 0) work = atomicAdd(args.work_counter, 1);
    work = __shfl_sync(~0u, work, 0);
    barrier_wait(&half.q_empty, q_parity ^ 1);
    q_parity ^= 1;
    if (lane == 0) half.work = work;
    if (work >= items) {
      if (lane == 0) barrier_arrive(&half.q_full);
      return;
    }
    const WorkItem item(work, args, T::kRows);
    if (lane == 0) {
      barrier_arrive_expect(&half.q_full, T::kQBytes);
      for (int chunk = 0; chunk < T::kChunks; ++chunk)
        copy_box(half.q[chunk], &maps.q, &half.q_full, chunk * 64, item.first_row, item.head);
    }
    const int kv_head = kv_head_of(args, item.head);
    walker.open(args.lists, item.head, item.first_row, args.tokens, args.window);

    // Fills the next stage with K or V of the tiles that start at `start`, of the kinds `kind`. Lanes that
    // wrote the step tell that they have.
    const auto load = [&](bool keys, const int(&kind)[T::kTiles], const int(&start)[T::kTiles]) {
      std::uint64_t* full = &half.full[place.stage];
      if (lane == 0) {
        barrier_arrive_expect(full, T::kStageBytes);
#pragma unroll
        for (int tile = 0; tile < T::kTiles; ++tile) {
          const bool range = kind[tile] == kTileRange;
          const CUtensorMap* map =
              range ? (keys ? &maps.k : &maps.v) : (keys ? &maps.column_k : &maps.column_v);
          for (int chunk = 0; chunk < T::kChunks; ++chunk)
            copy_box(half.stage[place.stage] + chunk * T::kChunkElements + tile * kTileKeys * 64, map, full,
                     chunk * 64, start[tile], range ? kv_head : item.head);
        }
      } else if (lane < T::kSlices) {
        barrier_arrive(full);
      }
      __syncwarp();
      place.advance();
    };

    int last_kind[T::kTiles], last_start[T::kTiles];
    for (bool first = true;; first = false) {
      int kind[T::kTiles], start[T::kTiles];
      typename T::SliceStep step;
      step.flags = 0;
#pragma unroll
      for (int i = 0; i < T::kTiles; ++i) {
        Tile tile = walker.next();
        if (i > 0 && tile.kind == kTileEnd) {
          // The list has an odd number of tiles: the last one comes twice, and nobody sees the second.
          tile.kind = kind[0], tile.start = start[0];
        }
        kind[i] = tile.kind, start[i] = tile.start;
        step.mask[i] = tile.mask, step.start[i] = tile.start;
        const int row = item.first_row + lane * kSliceRows;
        const bool edge =
            tile.last > row || (args.window > 0 && tile.first <= row + kSliceRows - 1 - args.window);
        if (~tile.mask != 0) step.flags |= T::kMasked << i;
        if (tile.mask != 0 && edge) step.flags |= T::kEdge << i;
        if (tile.kind == kTileColumns) step.flags |= T::kColumns << i;
      }
      const bool end = kind[0] == kTileEnd;
      if (end) step.flags = T::kEnd;
      barrier_wait(&half.empty[place.stage], place.parity ^ 1);
      if (lane < T::kSlices) half.step[place.stage][lane] = step;
      if (end) {
        if (lane < T::kSlices) barrier_arrive(&half.full[place.stage]);
        place.advance();
      } else {
        load(true, kind, start);
      }
      if (!first) {
        barrier_wait(&half.empty[place.stage], place.parity ^ 1);
        load(false, last_kind, last_start);
      }
      if (end) break;
      for (int tile = 0; tile < T::kTiles; ++tile)
        last_kind[tile] = kind[tile], last_start[tile] = start[tile];
    }
  }
}

/// Everything one consumer warpgroup keeps while it works on 64 rows.
template <class T>
class HopperListConsumer {
 public:
  __device__ HopperListConsumer(const PrefillArgs& args, typename T::Half& half)
      : args_(args), half_(half), scale_log2_(scale_log2_of(args)) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
    slice_ = (static_cast<int>(threadIdx.x) >> 5) & 3;
  }

  __device__ void run() {
    const int items = (args_.tokens + T::kRows - 1) / T::kRows * args_.q_heads;
    int q_parity = 0;
    while (true) {
      hopper::barrier_wait(&half_.q_full, q_parity);
      q_parity ^= 1;
      const int work = half_.work;
      if (work >= items) return;
      const WorkItem item(work, args_, T::kRows);
      head_ = item.head;
      row_ = item.first_row + slice_ * kSliceRows;
      softmax_ = SoftmaxState{};
#pragma unroll
      for (int i = 0; i < T::kHeadDim / 2; ++i) o_[i] = 0.0f;
      query_.load(half_.q, &half_.q_empty);
      attend();
      write_rows<T>(args_, head_, row_, softmax_, o_);
    }
  }

 private:
  __device__ std::uint64_t k_operand(int stage) const {
    return hopper::operand(half_.stage[stage], 16, 1024);
  }
  __device__ std::uint64_t v_operand(int stage) const {
    return hopper::operand(half_.stage[stage], T::kKeys * 128, 1024);
  }
  /// Waits for the keys at place_; false: the list has ended.
  __device__ bool more() {
    hopper::barrier_wait(&half_.full[place_.stage], place_.parity);
    flags_ = lane_ == 0 ? half_.step[place_.stage][slice_].flags : 0;
    return !__any_sync(~0u, (flags_ & T::kEnd) != 0);
  }
  __device__ void release() {
    release_stage(&half_.empty[place_.stage]);
    place_.advance();
  }

  /// List masks, causal mask and window of one tile of the step at place_. `flags`: of its first tile.
  __device__ void mask(float (&s)[kTileKeys / 2], int tile, std::uint32_t flags) const {
    const auto& step = half_.step[place_.stage][slice_];
    if ((flags & T::kMasked) != 0) {
      const std::uint64_t bits = lane_ == 0 ? step.mask[tile] : 0;
      const std::uint64_t high = __reduce_or_sync(~0u, static_cast<std::uint32_t>(bits >> 32));
      mask_bits(s, high << 32 | __reduce_or_sync(~0u, static_cast<std::uint32_t>(bits)));
    }
    if ((flags & T::kEdge) == 0) return;
    const int start = static_cast<int>(
        __reduce_or_sync(~0u, lane_ == 0 ? static_cast<std::uint32_t>(step.start[tile]) : 0u));
    const int row = row_ + lane_ / 4;
    const int below = args_.window > 0 ? args_.window - 1 : INT_MAX / 2;
    int last[2] = {row, row + 8};
    int first[2] = {row - below, row + 8 - below};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if ((flags & T::kColumns) == 0) {
        first[r] -= start, last[r] -= start;
      } else {  // sorted, so that what a row sees is a span of them
        first[r] = columns_up_to(start, first[r] - 1);
        last[r] = columns_up_to(start, last[r]) - 1;
      }
    }
    mask_span(s, first, last);
  }
  /// How many columns of the tile are at most `key`.
  __device__ int columns_up_to(int start, int key) const {
    const std::int64_t begin = args_.lists.column_begin[head_];
    const int count = static_cast<int>(args_.lists.column_begin[head_ + 1] - begin);
    const std::int32_t* columns = args_.lists.columns + begin;
    int low = start, high = min(start + kTileKeys, count);
#pragma unroll 1
    while (low < high) {
      const int middle = (low + high) / 2;
      if (columns[middle] <= key) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low - start;
  }
  /// From raw scores of the step at place_ to weights; gives the keys back in between.
  __device__ void weigh(float (&s)[T::kKeys / 2], std::uint32_t flags, float (&rescale)[2]) {
    if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile)
      mask(*reinterpret_cast<float(*)[kTileKeys / 2]>(s + tile * (kTileKeys / 2)), tile, flags >> tile);
    release();
    softmax_.update(s, scale_log2_, rescale);
  }

  __device__ void attend() {
    using namespace hopper;
    float s[T::kKeys / 2];
    std::uint32_t p[T::kKeys / 16][4];
    float rescale[2];
    if (!more()) {
      query_.done(&half_.q_empty);
      release();
      return;
    }
    HopperMma<T>::scores(s, query_, k_operand(place_.stage));
    std::uint32_t flags = __reduce_or_sync(~0u, flags_);
    wgmma_wait<0>();
    pin(s);
    weigh(s, flags, rescale);
    HopperMma<T>::pack(p, s);
    while (more()) {
      auto values = place_;
      values.advance();
      HopperMma<T>::scores(s, query_, k_operand(place_.stage));
      barrier_wait(&half_.full[values.stage], values.parity);
      HopperMma<T>::output(o_, p, v_operand(values.stage));
      flags = __reduce_or_sync(~0u, flags_);
      wgmma_wait<1>();
      pin(s);
      weigh(s, flags, rescale);
      softmax_.settle();
      wgmma_wait<0>();
      pin(o_);
      release();
      HopperMma<T>::pack(p, s);
      rescale_rows(o_, rescale);
    }
    query_.done(&half_.q_empty);
    release();  // the end
    barrier_wait(&half_.full[place_.stage], place_.parity);
    HopperMma<T>::output(o_, p, v_operand(place_.stage));
    wgmma_wait<0>();
    pin(o_);
    release();
  }

  const PrefillArgs& args_;
  typename T::Half& half_;
  int lane_, slice_, head_ = 0, row_ = 0;
  std::uint32_t flags_ = 0;  ///< of the step at place_, in lane 0
  float scale_log2_;
  RingPlace<T::kStages> place_;
  QueryOperand<T> query_;
  SoftmaxState softmax_;
  float o_[T::kHeadDim / 2];
};

template <class T>
__global__ void __launch_bounds__(kHopperThreads, 1)
    prefill_hopper_lists_kernel(const __grid_constant__ PrefillArgs args,
                                const __grid_constant__ HopperMaps maps) {
  extern __shared__ unsigned char raw[];
  auto& shared = aligned_shared<typename T::Shared>(raw);
  if (threadIdx.x == 0) {
    using namespace hopper;
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
    for (auto& half : shared.half) {
      constexpr int kWarps = 4;
      barrier_init(&half.q_full, 1);
      barrier_init(&half.q_empty, 32 * kWarps);
      for (int i = 0; i < T::kStages; ++i) {
        barrier_init(&half.full[i], T::kSlices);
        barrier_init(&half.empty[i], kWarps);
      }
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 2) {
    hopper::give_registers<72>();
    const int warp = static_cast<int>(threadIdx.x) / 32 - 8;
    if (warp < 2) hopper_produce_lists<T>(args, maps, shared.half[warp]);
  } else {
    hopper::take_registers<216>();
    HopperListConsumer<T>(args, shared.half[group]).run();
  }
}

}  // namespace lacuna
