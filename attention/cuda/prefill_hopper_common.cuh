// What the two Hopper prefill kernels share: the ring of stages, the order of work, the two products of a
// warpgroup and writing its rows.
#pragma once

#include "attention/cuda/hopper.cuh"
#include "attention/cuda/mma.cuh"
#include "attention/cuda/prefill_launch.h"
#include "attention/cuda/softmax.cuh"

namespace lacuna {

/// Two consumer warpgroups and one whose warps load.
inline constexpr int kHopperThreads = 384;

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

/// Every warp tells for itself: another warp of its group may still be reading. One lane tells for all: the
/// tensor cores alone have read the stage, and that lane what stands beside it.
__device__ inline void release_stage(std::uint64_t* barrier) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) hopper::barrier_arrive(barrier);
}

/// The 64 query rows of a warpgroup as the left operand of the score product. The first T::kQuerySteps times
/// 16 channels are kept in registers: reading them from shared memory again for every tile takes a third of
/// the bandwidth that the product has.
template <class T>
struct QueryOperand {
  static constexpr bool kAllInRegisters = T::kQuerySteps == T::kHeadDim / 16;
  std::uint32_t fragments[T::kQuerySteps > 0 ? T::kQuerySteps : 1][4];
  std::uint64_t descriptor;

  /// `q` are chunks of [64 rows, 64 channels] under the 128-byte swizzle, given back as soon as they may be.
  /// Every thread gives them back for itself, as every thread reads them, and the number of the work item.
  __device__ void load(const __nv_bfloat16 (*q)[64 * 64], std::uint64_t* empty) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const int row = ((static_cast<int>(threadIdx.x) >> 5) & 3) * 16 + (lane & 15);
#pragma unroll
    for (int step = 0; step < T::kQuerySteps; ++step) {
      const int piece = (step % 4) * 2 + (lane >> 4);  // of 16 bytes
      load_matrix(fragments[step], q[step / 4] + row * 64 + (piece ^ (row & 7)) * 8);
    }
    if constexpr (kAllInRegisters) {
      hopper::barrier_arrive(empty);
    } else {
      descriptor = hopper::operand(q, 16, 1024);
    }
  }
  __device__ void done(std::uint64_t* empty) const {
    if constexpr (!kAllInRegisters) hopper::barrier_arrive(empty);
  }
};

/// The two products of one warpgroup.
template <class T>
struct HopperMma {
  /// s = q k^T, issued and committed, not waited for.
  __device__ static void scores(float (&s)[T::kKeys / 2], const QueryOperand<T>& q, std::uint64_t k) {
    hopper::pin(s);
    std::uint64_t queries = q.descriptor;
    // Hides where it comes from, so that the sixteen made of it are not kept over the loop.
    if constexpr (T::kHeadDim > 128) asm volatile("" : "+l"(queries));
    hopper::wgmma_fence();
#pragma unroll
    for (int step = 0; step < T::kHeadDim / 16; ++step) {
      const int chunk = step / 4;
      const int inside = (step % 4) * 32;
      const std::uint64_t keys = k + ((chunk * T::kKeys * 128 + inside) >> 4);
      if (step < T::kQuerySteps) {
        hopper::WgmmaQk<T::kKeys>::run(s, q.fragments[step], keys, step != 0);
      } else {
        hopper::WgmmaSs<T::kKeys>::run(s, queries + ((chunk * 64 * 128 + inside) >> 4), keys, step != 0);
      }
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

/// Divides 64 rows of output by their sums and stores them; `row` is the first of this warp's 16.
template <class T>
__device__ void write_rows(const PrefillArgs& args, int head, int row, const SoftmaxState& softmax,
                           const float (&o)[T::kHeadDim / 2]) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  __nv_bfloat16* base = args.out + head * args.out_head_stride + (lane & 3) * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = quad_sum(softmax.sum[r]);
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that visited nothing gets zeros
    const int to_row = row + lane / 4 + r * 8;
    if (to_row >= args.tokens) continue;
    auto* to = base + to_row * args.out_token_stride;
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 8; ++j)
      *reinterpret_cast<std::uint32_t*>(to + j * 8) =
          pack_bf16(o[j * 4 + 2 * r] * inverse, o[j * 4 + 2 * r + 1] * inverse);
  }
}

/// Raw scores times this are exponents of two; a soft cap has applied the scale itself.
__device__ inline float scale_log2_of(const PrefillArgs& args) {
  return (args.softcap > 0.0f ? 1.0f : args.scale) * kLog2e;
}
/// The dynamic shared memory, aligned as swizzled tiles need it.
template <class Shared>
__device__ Shared& aligned_shared(unsigned char* raw) {
  return *reinterpret_cast<Shared*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) & ~std::uintptr_t{1023});
}

}  // namespace lacuna
