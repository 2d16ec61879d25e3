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

  struct Step {
    TileEntry<kSlices> tile[kTiles];
  };
  /// What one consumer warpgroup and its producer warp share.
  struct Half {
    alignas(1024) __nv_bfloat16 q[kChunks][kRows * 64];
    alignas(1024) __nv_bfloat16 stage[kStages][kStageElements];
    Step step[kStages];  ///< beside K
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

    // Fills the next stage with the tiles that start at `start`, of the kinds `kind`.
    const auto load = [&](bool keys, const int(&kind)[T::kTiles], const int(&start)[T::kTiles]) {
      if (lane == 0) {
        std::uint64_t* full = &half.full[place.stage];
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
      }
      __syncwarp();
      place.advance();
    };

    int last_kind[T::kTiles], last_start[T::kTiles];
    for (bool first = true;; first = false) {
      barrier_wait(&half.empty[place.stage], place.parity ^ 1);
      auto& step = half.step[place.stage];
      int kind[T::kTiles], start[T::kTiles];
#pragma unroll
      for (int tile = 0; tile < T::kTiles; ++tile) {
        kind[tile] = walker.next(&step.tile[tile]);
        start[tile] = step.tile[tile].start;
      }
      const bool end = kind[0] == kTileEnd;
      if (end) {
        if (lane == 0) barrier_arrive(&half.full[place.stage]);
        place.advance();
      } else {
        if (kind[T::kTiles - 1] == kTileEnd) {
          // The list has an odd number of tiles: the last one comes twice, and nobody sees the second.
          kind[T::kTiles - 1] = kind[0], start[T::kTiles - 1] = start[0];
          auto& entry = step.tile[T::kTiles - 1];
          if (lane < T::kSlices) entry.mask[lane] = 0;
          if (lane == 0) entry.first = entry.last = 0;
          __syncwarp();
        }
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
  __device__ bool more() const {
    hopper::barrier_wait(&half_.full[place_.stage], place_.parity);
    return half_.step[place_.stage].tile[0].kind != kTileEnd;
  }
  __device__ void release() {
    release_stage(&half_.empty[place_.stage]);
    place_.advance();
  }

  /// List masks, causal mask and window of one tile of a step.
  __device__ void mask(float (&s)[kTileKeys / 2], const TileEntry<T::kSlices>& entry) const {
    const std::uint64_t bits = entry.mask[slice_];
    if (bits != ~std::uint64_t{0}) mask_bits(s, bits);
    const bool edge =
        entry.last > row_ || (args_.window > 0 && entry.first <= row_ + kSliceRows - 1 - args_.window);
    if (!edge) return;
    const int row = row_ + lane_ / 4;
    const int below = args_.window > 0 ? args_.window - 1 : INT_MAX / 2;
    if (entry.kind == kTileRange) {
      const int last[2] = {row - entry.start, row + 8 - entry.start};
      const int first[2] = {last[0] - below, last[1] - below};
      mask_span(s, first, last);
    } else if (entry.kind == kTileColumns) {
      const std::int64_t begin = args_.lists.column_begin[head_];
      const int count = static_cast<int>(args_.lists.column_begin[head_ + 1] - begin);
      const std::int32_t* columns = args_.lists.columns + begin;
#pragma unroll
      for (int i = 0; i < kTileKeys / 2; ++i) {
        const int column = entry.start + (i / 4) * 8 + (lane_ & 3) * 2 + (i & 1);
        const int key = column < count ? columns[column] : INT_MAX;
        const int query = row + ((i >> 1) & 1) * 8;
        if (key > query || key < query - below) s[i] = -INFINITY;
      }
    }
  }
  /// From raw scores of the step at place_ to weights; gives the keys back in between.
  __device__ void weigh(float (&s)[T::kKeys / 2], float (&rescale)[2]) {
    if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
    const auto& step = half_.step[place_.stage];
#pragma unroll
    for (int tile = 0; tile < T::kTiles; ++tile)
      mask(*reinterpret_cast<float(*)[kTileKeys / 2]>(s + tile * (kTileKeys / 2)), step.tile[tile]);
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
    wgmma_wait<0>();
    pin(s);
    weigh(s, rescale);
    HopperMma<T>::pack(p, s);
    while (more()) {
      auto values = place_;
      values.advance();
      HopperMma<T>::scores(s, query_, k_operand(place_.stage));
      barrier_wait(&half_.full[values.stage], values.parity);
      HopperMma<T>::output(o_, p, v_operand(values.stage));
      wgmma_wait<1>();
      pin(s);
      weigh(s, rescale);
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
      barrier_init(&half.q_empty, kWarps);
      for (int i = 0; i < T::kStages; ++i) {
        barrier_init(&half.full[i], 1);
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
