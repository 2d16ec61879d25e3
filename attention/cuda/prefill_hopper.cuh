// Prefill attention on Hopper: 128 query rows per work item, two consumer warpgroups of 64 rows and one
// producer warp.
//
// The producer walks the tile lists and keeps a ring of K and V tiles filled by TMA. Each consumer multiplies
// its rows with the tiles on its own list and passes over the others; the softmax of one tile runs while the
// tensor cores do the PV product of the tile before. In the dense variant the two consumers also take turns
// on the tensor cores.
#pragma once

#include "attention/cuda/hopper.cuh"
#include "attention/cuda/prefill_launch.h"
#include "attention/cuda/softmax.cuh"

namespace lacuna {

template <int kHeadDim_, bool kLists_>
struct HopperTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kLists = kLists_;
  static constexpr int kRows = 128;
  static constexpr int kSlices = kRows / kSliceRows;
  static constexpr int kKeys = hopper_tile_keys(kHeadDim, !kLists);
  static constexpr int kChunks = (kHeadDim + 63) / 64;  ///< 128-byte wide pieces of a row
  static constexpr int kStages = kHeadDim > 128 ? 2
                                 : kLists       ? (kHeadDim > 64 ? 5 : 8)
                                                : (kHeadDim > 64 ? 2 : 4);
  static constexpr int kChunkElements = kKeys * 64;
  static constexpr int kTileElements = kChunkElements * kChunks;
  static constexpr int kTileBytes = kTileElements * 2;
  static constexpr int kQBytes = kRows * kChunks * 64 * 2;
  static constexpr int kThreads = 384;

  struct Shared {
    alignas(1024) __nv_bfloat16 q[2][kChunks][64 * 64];
    alignas(1024) __nv_bfloat16 k[kStages][kTileElements];
    alignas(1024) __nv_bfloat16 v[kStages][kTileElements];
    TileEntry<kSlices> entry[kLists ? kStages : 1];
    std::int32_t column_key[kLists ? kStages : 1][kTileKeys];
    std::uint64_t q_full, q_empty;
    std::uint64_t k_full[kStages], v_full[kStages];
    std::uint64_t k_empty[kStages], v_empty[kStages];
    int work;
  };
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
};

/// Place in the ring of stages.
template <int kStages>
struct RingPlace {
  int stage = 0;
  int parity = 0;
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Work items are numbered kv head by kv head, so that all multiprocessors read the same K and V and meet in
/// the L2 cache; within a kv head from the last query rows to the first, because those take longest.
struct WorkItem {
  int head, first_row;
  __device__ WorkItem(int work, const PrefillArgs& args, int rows) {
    const int row_tiles = (args.tokens + rows - 1) / rows;
    const int per_pass = row_tiles * args.pass_heads;
    const int inside = work % per_pass;
    first_row = (row_tiles - 1 - inside / args.pass_heads) * rows;
    head = work / per_pass * args.pass_heads + inside % args.pass_heads;
  }
};

template <class T>
__device__ void hopper_produce(const PrefillArgs& args, const HopperMaps& maps, typename T::Shared& shared) {
  using namespace hopper;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int items = (args.tokens + T::kRows - 1) / T::kRows * args.q_heads;
  RingPlace<T::kStages> place;
  int q_parity = 0;
  [[maybe_unused]] TileWalker<T::kSlices> walker;

  while (true) {
    int work = 0;
    if (lane == 0) work = atomicAdd(args.work_counter, 1);
    work = __shfl_sync(~0u, work, 0);
    const WorkItem item(work, args, T::kRows);
    barrier_wait(&shared.q_empty, q_parity ^ 1);
    q_parity ^= 1;
    if (lane == 0) {
      shared.work = work;
      if (work < items) {
        barrier_arrive_expect(&shared.q_full, T::kQBytes);
        for (int group = 0; group < 2; ++group)
          for (int chunk = 0; chunk < T::kChunks; ++chunk)
            copy_box(shared.q[group][chunk], &maps.q, &shared.q_full, chunk * 64, item.first_row + group * 64,
                     item.head);
      } else {
        barrier_arrive(&shared.q_full);
      }
    }
    if (work >= items) return;
    const int kv_head = kv_head_of(args, item.head);

    const auto load = [&](const CUtensorMap* k_map, const CUtensorMap* v_map, int token, int head) {
      barrier_arrive_expect(&shared.k_full[place.stage], T::kTileBytes);
      for (int chunk = 0; chunk < T::kChunks; ++chunk)
        copy_box(shared.k[place.stage] + chunk * T::kChunkElements, k_map, &shared.k_full[place.stage],
                 chunk * 64, token, head);
      if constexpr (!T::kLists) barrier_wait(&shared.v_empty[place.stage], place.parity ^ 1);
      barrier_arrive_expect(&shared.v_full[place.stage], T::kTileBytes);
      for (int chunk = 0; chunk < T::kChunks; ++chunk)
        copy_box(shared.v[place.stage] + chunk * T::kChunkElements, v_map, &shared.v_full[place.stage],
                 chunk * 64, token, head);
    };

    if constexpr (T::kLists) {
      walker.open(args.lists, item.head, item.first_row, args.tokens, args.window);
      int kind;
      do {
        barrier_wait(&shared.v_empty[place.stage], place.parity ^ 1);
        auto& entry = shared.entry[place.stage];
        kind = walker.next(&entry);
        if (kind == kTileColumns) {
          for (int i = lane; i < kTileKeys; i += 32) {
            const int column = entry.start + i;
            shared.column_key[place.stage][i] =
                column < walker.column_count() ? walker.columns()[column] : INT_MAX;
          }
        }
        __syncwarp();
        if (lane == 0) {
          if (kind == kTileRange) {
            load(&maps.k, &maps.v, entry.start, kv_head);
          } else if (kind == kTileColumns) {
            load(&maps.column_k, &maps.column_v, entry.start, item.head);
          } else {
            barrier_arrive(&shared.k_full[place.stage]);
            barrier_arrive(&shared.v_full[place.stage]);
          }
        }
        place.advance();
      } while (kind != kTileEnd);
    } else {
      const int stop = min(item.first_row + T::kRows, args.tokens);
      int key = args.window > 0 ? max(0, item.first_row - args.window + 1) / T::kKeys * T::kKeys : 0;
      for (; key < stop; key += T::kKeys) {
        barrier_wait(&shared.k_empty[place.stage], place.parity ^ 1);
        if (lane == 0) load(&maps.k, &maps.v, key, kv_head);
        __syncwarp();
        place.advance();
      }
    }
  }
}

/// The two products of one warpgroup.
template <class T>
struct HopperMma {
  /// s = q k^T, issued and committed, not waited for.
  __device__ static void scores(float (&s)[T::kKeys / 2], std::uint64_t q, std::uint64_t k) {
    hopper::pin(s);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < T::kHeadDim / 16; ++step) {
      const int chunk = step / 4;
      const int inside = (step % 4) * 32;
      hopper::WgmmaSs<T::kKeys>::run(s, q + ((chunk * 64 * 128 + inside) >> 4),
                                     k + ((chunk * T::kKeys * 128 + inside) >> 4), step != 0);
    }
    hopper::wgmma_commit();
  }
  /// o += p v
  __device__ static void output(float (&o)[T::kHeadDim / 2], const std::uint32_t (&p)[T::kKeys / 16][4],
                                std::uint64_t v) {
    constexpr int kWidth = T::kHeadDim > 128 ? 128 : T::kHeadDim;
    hopper::pin(o);
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < T::kKeys / 16; ++step) {
#pragma unroll
      for (int part = 0; part < T::kHeadDim / kWidth; ++part)
        hopper::WgmmaRs<kWidth>::run(o + part * (kWidth / 2), p[step],
                                     v + ((step * 16 * 128 + part * 2 * T::kKeys * 128) >> 4));
    }
    hopper::wgmma_commit();
  }
  __device__ static void pack(std::uint32_t (&p)[T::kKeys / 16][4], const float (&s)[T::kKeys / 2]) {
#pragma unroll
    for (int step = 0; step < T::kKeys / 16; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) p[step][i] = pack_bf16(s[step * 8 + 2 * i], s[step * 8 + 2 * i + 1]);
  }
};

/// Everything one consumer warpgroup keeps while it works on 64 rows.
template <class T>
class HopperConsumer {
 public:
  __device__ HopperConsumer(const PrefillArgs& args, typename T::Shared& shared, int group)
      : args_(args), shared_(shared), group_(group) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
    warp_ = (static_cast<int>(threadIdx.x) >> 5) & 3;
    // Raw scores times this are exponents of two; a soft cap has applied the scale itself.
    scale_log2_ = (args.softcap > 0.0f ? 1.0f : args.scale) * kLog2e;
    q_operand_ = hopper::operand(shared.q[group], 16, 1024);
  }

  __device__ void run() {
    using namespace hopper;
    const int items = (args_.tokens + T::kRows - 1) / T::kRows * args_.q_heads;
    int q_parity = 0;
    // The first consumer goes first on the tensor cores.
    if (!T::kLists && group_ == 1) named_arrive(1, 256);
    while (true) {
      barrier_wait(&shared_.q_full, q_parity);
      q_parity ^= 1;
      const int work = shared_.work;
      if (work >= items) return;
      const WorkItem item(work, args_, T::kRows);
      row_ = item.first_row + group_ * 64 + warp_ * kSliceRows;
      softmax_ = SoftmaxState{};
#pragma unroll
      for (int i = 0; i < T::kHeadDim / 2; ++i) o_[i] = 0.0f;
      if constexpr (T::kLists) {
        attend_lists();
      } else {
        attend_dense(item.first_row);
      }
      write(item.head);
    }
  }

 private:
  __device__ std::uint64_t k_operand(int stage) const { return hopper::operand(shared_.k[stage], 16, 1024); }
  __device__ std::uint64_t v_operand(int stage) const {
    return hopper::operand(shared_.v[stage], T::kKeys * 128, 1024);
  }
  /// Every warp tells for itself: another warp of the group may still be reading the stage's entry.
  __device__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_ == 0) hopper::barrier_arrive(barrier);
  }
  /// Causal mask and window of a tile that starts at `start`.
  __device__ void mask_dense(float (&s)[T::kKeys / 2], int start) const {
    const bool causal = start + T::kKeys - 1 > row_;
    const bool window = args_.window > 0 && start <= row_ + kSliceRows - 1 - args_.window;
    if (!causal && !window) return;
    const int row = row_ + lane_ / 4 - start;
    const int last[2] = {row, row + 8};
    const int below = args_.window > 0 ? args_.window - 1 : INT_MAX / 2;
    const int first[2] = {row - below, row + 8 - below};
    mask_span(s, first, last);
  }

  __device__ void attend_dense(int first_row) {
    using namespace hopper;
    const int stop = min(first_row + T::kRows, args_.tokens);
    int key = args_.window > 0 ? max(0, first_row - args_.window + 1) / T::kKeys * T::kKeys : 0;
    float s[T::kKeys / 2];
    std::uint32_t p[T::kKeys / 16][4];
    float rescale[2];

    barrier_wait(&shared_.k_full[place_.stage], place_.parity);
    HopperMma<T>::scores(s, q_operand_, k_operand(place_.stage));
    wgmma_wait<0>();
    pin(s);
    release(&shared_.k_empty[place_.stage]);
    if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
    mask_dense(s, key);
    softmax_.update(s, scale_log2_, rescale);
    HopperMma<T>::pack(p, s);
    auto pending = place_;
    place_.advance();

    for (key += T::kKeys; key < stop; key += T::kKeys) {
      barrier_wait(&shared_.k_full[place_.stage], place_.parity);
      named_sync(1 + group_, 256);
      HopperMma<T>::scores(s, q_operand_, k_operand(place_.stage));
      barrier_wait(&shared_.v_full[pending.stage], pending.parity);
      HopperMma<T>::output(o_, p, v_operand(pending.stage));
      named_arrive(2 - group_, 256);
      wgmma_wait<1>();
      pin(s);
      release(&shared_.k_empty[place_.stage]);
      if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
      mask_dense(s, key);
      softmax_.update(s, scale_log2_, rescale);
      wgmma_wait<0>();
      pin(o_);
      release(&shared_.v_empty[pending.stage]);
      HopperMma<T>::pack(p, s);
      rescale_rows(o_, rescale);
      pending = place_;
      place_.advance();
    }
    release(&shared_.q_empty);
    barrier_wait(&shared_.v_full[pending.stage], pending.parity);
    HopperMma<T>::output(o_, p, v_operand(pending.stage));
    wgmma_wait<0>();
    pin(o_);
    release(&shared_.v_empty[pending.stage]);
  }

  /// List masks, causal mask and window of the tile in `stage`.
  __device__ void mask_listed(float (&s)[T::kKeys / 2], int stage) const {
    const auto& entry = shared_.entry[stage];
    const std::uint64_t mask = entry.mask[group_ * 4 + warp_];
    if (mask != ~std::uint64_t{0}) mask_bits(s, mask);
    const int row = row_ + lane_ / 4;
    const bool edge =
        entry.last > row_ || (args_.window > 0 && entry.first <= row_ + kSliceRows - 1 - args_.window);
    if (!edge) return;
    const int below = args_.window > 0 ? args_.window - 1 : INT_MAX / 2;
    if (entry.kind == kTileRange) {
      const int last[2] = {row - entry.start, row + 8 - entry.start};
      const int first[2] = {last[0] - below, last[1] - below};
      mask_span(s, first, last);
    } else {
      const std::int32_t* keys = shared_.column_key[stage];
#pragma unroll
      for (int i = 0; i < T::kKeys / 2; ++i) {
        const int key = keys[(i / 4) * 8 + (lane_ & 3) * 2 + (i & 1)];
        const int query = row + ((i >> 1) & 1) * 8;
        if (key > query || key < query - below) s[i] = -INFINITY;
      }
    }
  }

  /// Reads the entry at place_: 0 not for these rows, 1 for them, 2 end.
  __device__ int look() const {
    hopper::barrier_wait(&shared_.k_full[place_.stage], place_.parity);
    const auto& entry = shared_.entry[place_.stage];
    if (entry.kind == kTileEnd) return 2;
    const std::uint64_t* mask = entry.mask + group_ * 4;
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0 ? 1 : 0;
  }
  __device__ void pass() {
    release(&shared_.v_empty[place_.stage]);
    place_.advance();
  }

  __device__ void attend_lists() {
    using namespace hopper;
    float s[T::kKeys / 2];
    std::uint32_t p[T::kKeys / 16][4];
    float rescale[2];
    int found;
    while (true) {  // one turn per run of tiles that follow each other closely enough to overlap
      while ((found = look()) == 0) pass();
      if (found == 2) break;
      HopperMma<T>::scores(s, q_operand_, k_operand(place_.stage));
      wgmma_wait<0>();
      pin(s);
      if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
      mask_listed(s, place_.stage);
      softmax_.update(s, scale_log2_, rescale);
      HopperMma<T>::pack(p, s);
      rescale_rows(o_, rescale);
      auto pending = place_;
      place_.advance();

      // The stage of the pending tile is still held, so the producer cannot go further than the ring is long.
      int ahead = 1;
      while (ahead < T::kStages) {
        found = look();
        if (found == 2) break;
        if (found == 0) {
          pass();
          ++ahead;
          continue;
        }
        HopperMma<T>::scores(s, q_operand_, k_operand(place_.stage));
        barrier_wait(&shared_.v_full[pending.stage], pending.parity);
        HopperMma<T>::output(o_, p, v_operand(pending.stage));
        wgmma_wait<1>();
        pin(s);
        if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
        mask_listed(s, place_.stage);
        softmax_.update(s, scale_log2_, rescale);
        wgmma_wait<0>();
        pin(o_);
        release(&shared_.v_empty[pending.stage]);
        HopperMma<T>::pack(p, s);
        rescale_rows(o_, rescale);
        pending = place_;
        place_.advance();
        ahead = 1;
      }
      barrier_wait(&shared_.v_full[pending.stage], pending.parity);
      HopperMma<T>::output(o_, p, v_operand(pending.stage));
      wgmma_wait<0>();
      pin(o_);
      release(&shared_.v_empty[pending.stage]);
      if (found == 2) break;
    }
    release(&shared_.q_empty);
    pass();  // the end entry
  }

  __device__ void write(int head) const {
    float sum[2], inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = quad_sum(softmax_.sum[r]);
      inverse[r] = sum[r] > 0.0f ? 1.0f / sum[r] : 0.0f;  // a row that visited nothing gets zeros
    }
    __nv_bfloat16* base = args_.out + head * args_.out_head_stride + (lane_ & 3) * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = row_ + lane_ / 4 + r * 8;
      if (row >= args_.tokens) continue;
      auto* to = base + row * args_.out_token_stride;
#pragma unroll
      for (int j = 0; j < T::kHeadDim / 8; ++j)
        *reinterpret_cast<std::uint32_t*>(to + j * 8) =
            pack_bf16(o_[j * 4 + 2 * r] * inverse[r], o_[j * 4 + 2 * r + 1] * inverse[r]);
    }
  }

  const PrefillArgs& args_;
  typename T::Shared& shared_;
  int group_, lane_, warp_, row_ = 0;
  float scale_log2_;
  std::uint64_t q_operand_;
  RingPlace<T::kStages> place_;
  SoftmaxState softmax_;
  float o_[T::kHeadDim / 2];
};

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    prefill_hopper_kernel(const __grid_constant__ PrefillArgs args, const __grid_constant__ HopperMaps maps) {
  extern __shared__ unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) &
                                                        ~std::uintptr_t{1023});
  if (threadIdx.x == 0) {
    using namespace hopper;
    constexpr int kConsumerWarps = 8;
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_empty, kConsumerWarps);
    for (int i = 0; i < T::kStages; ++i) {
      barrier_init(&shared.k_full[i], 1);
      barrier_init(&shared.v_full[i], 1);
      barrier_init(&shared.k_empty[i], kConsumerWarps);
      barrier_init(&shared.v_empty[i], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / 128;
  if (group == 2) {
    hopper::give_registers<56>();
    if (threadIdx.x < 256 + 32) hopper_produce<T>(args, maps, shared);
  } else {
    hopper::take_registers<224>();
    HopperConsumer<T>(args, shared, group).run();
  }
}

}  // namespace lacuna
