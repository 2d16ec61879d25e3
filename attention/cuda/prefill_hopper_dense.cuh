// Dense prefill attention on Hopper: 128 query rows per work item, two consumer warpgroups of 64 rows and one
// producer warp, which keeps a ring of K and V tiles filled by TMA.
//
// The softmax of one tile runs while the tensor cores do the PV product of the tile before, and the two
// consumers take turns on the tensor cores.
#pragma once

#include "attention/cuda/prefill_hopper_common.cuh"

namespace lacuna {

template <int kHeadDim_>
struct HopperDenseTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = 128;
  static constexpr int kKeys = hopper_tile_keys(kHeadDim, true);
  static constexpr int kChunks = (kHeadDim + 63) / 64;  ///< 128-byte wide pieces of a row
  static constexpr int kStages = kHeadDim > 64 ? 2 : 4;
  static constexpr int kChunkElements = kKeys * 64;
  static constexpr int kTileElements = kChunkElements * kChunks;
  static constexpr int kTileBytes = kTileElements * 2;
  static constexpr int kQuerySteps = kHeadDim > 128 ? 0 : kHeadDim / 16;
  static constexpr int kQBytes = kRows * kChunks * 64 * 2;

  struct Shared {
    alignas(1024) __nv_bfloat16 q[2][kChunks][64 * 64];
    alignas(1024) __nv_bfloat16 k[kStages][kTileElements];
    alignas(1024) __nv_bfloat16 v[kStages][kTileElements];
    std::uint64_t q_full, q_empty;
    std::uint64_t k_full[kStages], v_full[kStages];
    std::uint64_t k_empty[kStages], v_empty[kStages];
    int work;
  };
  static constexpr int kSharedBytes = static_cast<int>(sizeof(Shared)) + 1024;
};

template <class T>
__device__ void hopper_produce_dense(const PrefillArgs& args, const HopperMaps& maps,
                                     typename T::Shared& shared) {
  using namespace hopper;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int items = (args.tokens + T::kRows - 1) / T::kRows * args.q_heads;
  RingPlace<T::kStages> place;
  int q_parity = 0;

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
    const int stop = min(item.first_row + T::kRows, args.tokens);
    int key = args.window > 0 ? max(0, item.first_row - args.window + 1) / T::kKeys * T::kKeys : 0;
    for (; key < stop; key += T::kKeys) {
      barrier_wait(&shared.k_empty[place.stage], place.parity ^ 1);
      if (lane == 0) {
        barrier_arrive_expect(&shared.k_full[place.stage], T::kTileBytes);
        for (int chunk = 0; chunk < T::kChunks; ++chunk)
          copy_box(shared.k[place.stage] + chunk * T::kChunkElements, &maps.k, &shared.k_full[place.stage],
                   chunk * 64, key, kv_head);
        barrier_wait(&shared.v_empty[place.stage], place.parity ^ 1);
        barrier_arrive_expect(&shared.v_full[place.stage], T::kTileBytes);
        for (int chunk = 0; chunk < T::kChunks; ++chunk)
          copy_box(shared.v[place.stage] + chunk * T::kChunkElements, &maps.v, &shared.v_full[place.stage],
                   chunk * 64, key, kv_head);
      }
      __syncwarp();
      place.advance();
    }
  }
}

/// Everything one consumer warpgroup keeps while it works on 64 rows.
template <class T>
class HopperDenseConsumer {
 public:
  __device__ HopperDenseConsumer(const PrefillArgs& args, typename T::Shared& shared, int group)
      : args_(args), shared_(shared), group_(group), scale_log2_(scale_log2_of(args)) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
    warp_ = (static_cast<int>(threadIdx.x) >> 5) & 3;
  }

  __device__ void run() {
    using namespace hopper;
    const int items = (args_.tokens + T::kRows - 1) / T::kRows * args_.q_heads;
    int q_parity = 0;
    // The first consumer goes first on the tensor cores.
    if (group_ == 1) named_arrive(1, 256);
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
      query_.load(shared_.q[group_], &shared_.q_empty);
      attend(item.first_row);
      write_rows<T>(args_, item.head, row_, softmax_, o_);
    }
  }

 private:
  __device__ std::uint64_t k_operand(int stage) const { return hopper::operand(shared_.k[stage], 16, 1024); }
  __device__ std::uint64_t v_operand(int stage) const {
    return hopper::operand(shared_.v[stage], T::kKeys * 128, 1024);
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

  __device__ void attend(int first_row) {
    using namespace hopper;
    const int stop = min(first_row + T::kRows, args_.tokens);
    int key = args_.window > 0 ? max(0, first_row - args_.window + 1) / T::kKeys * T::kKeys : 0;
    float s[T::kKeys / 2];
    std::uint32_t p[T::kKeys / 16][4];
    float rescale[2];

    barrier_wait(&shared_.k_full[place_.stage], place_.parity);
    HopperMma<T>::scores(s, query_, k_operand(place_.stage));
    wgmma_wait<0>();
    pin(s);
    release_stage(&shared_.k_empty[place_.stage]);
    if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
    mask_dense(s, key);
    softmax_.update(s, scale_log2_, rescale);
    HopperMma<T>::pack(p, s);
    auto pending = place_;
    place_.advance();

    for (key += T::kKeys; key < stop; key += T::kKeys) {
      barrier_wait(&shared_.k_full[place_.stage], place_.parity);
      named_sync(1 + group_, 256);
      HopperMma<T>::scores(s, query_, k_operand(place_.stage));
      barrier_wait(&shared_.v_full[pending.stage], pending.parity);
      HopperMma<T>::output(o_, p, v_operand(pending.stage));
      named_arrive(2 - group_, 256);
      wgmma_wait<1>();
      pin(s);
      release_stage(&shared_.k_empty[place_.stage]);
      if (args_.softcap > 0.0f) apply_softcap(s, args_.scale, args_.softcap);
      mask_dense(s, key);
      softmax_.update(s, scale_log2_, rescale);
      softmax_.settle();
      wgmma_wait<0>();
      pin(o_);
      release_stage(&shared_.v_empty[pending.stage]);
      HopperMma<T>::pack(p, s);
      rescale_rows(o_, rescale);
      pending = place_;
      place_.advance();
    }
    query_.done(&shared_.q_empty);
    barrier_wait(&shared_.v_full[pending.stage], pending.parity);
    HopperMma<T>::output(o_, p, v_operand(pending.stage));
    wgmma_wait<0>();
    pin(o_);
    release_stage(&shared_.v_empty[pending.stage]);
  }

  const PrefillArgs& args_;
  typename T::Shared& shared_;
  int group_, lane_, warp_, row_ = 0;
  float scale_log2_;
  RingPlace<T::kStages> place_;
  QueryOperand<T> query_;
  SoftmaxState softmax_;
  float o_[T::kHeadDim / 2];
};

template <class T>
__global__ void __launch_bounds__(kHopperThreads, 1)
    prefill_hopper_dense_kernel(const __grid_constant__ PrefillArgs args,
                                const __grid_constant__ HopperMaps maps) {
  extern __shared__ unsigned char raw[];
  auto& shared = aligned_shared<typename T::Shared>(raw);
  if (threadIdx.x == 0) {
    using namespace hopper;
    constexpr int kConsumerWarps = 8;
    prefetch_map(&maps.q);
    prefetch_map(&maps.k);
    prefetch_map(&maps.v);
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.q_empty, 32 * kConsumerWarps);
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
    hopper::give_registers<40>();
    if (threadIdx.x < 256 + 32) hopper_produce_dense<T>(args, maps, shared);
  } else {
    hopper::take_registers<232>();
    HopperDenseConsumer<T>(args, shared, group).run();
  }
}

}  // namespace lacuna
