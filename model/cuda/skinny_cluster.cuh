// Products of more rows than one block can hold (skinny.cu): a cluster of blocks shares the inputs, so that
// each holds its part of x, and four units of 16 outputs share what a block holds. The sums of all parts are
// added as held_product adds them, out of the shared memory of the cluster's blocks. Hopper and later.
//
// Wants attention/cuda/mma.cuh before it, which the emulator replaces.
#pragma once

#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/skinny.h"
#include "model/cuda/skinny_ends.cuh"
#include "model/cuda/skinny_held.cuh"

namespace lacuna::skinny {

constexpr int kClusterBlocks = 4, kClusterUnits = 4;
constexpr int kParts = kWarps / kClusterBlocks;  ///< of the eight parts of the inputs, in one block
static_assert(kParts * kClusterUnits == kWarps);

/// Shared memory: ring [depth][kWarps][kUnitPieces], x [rows][pitch] with kParts times `chunk` slabs of a
/// row, sums [kWarps][rows][16].
struct ClusterLayout {
  int chunk = 0;  ///< slabs of a part that are held at a time
  int pitch = 0;  ///< pieces: half a line more than there is, so that two rows are in different banks
  int sums = 0;   ///< floats of one warp

  __host__ __device__ ClusterLayout(int rows, int slabs_held)
      : chunk(slabs_held), pitch(kParts * chunk * kSlabPieces + kSlabPieces / 2), sums(rows * 2 * kOctet) {}
  __host__ __device__ int bytes(int rows, int depth) const {
    return (depth * kWarps * kUnitPieces + rows * pitch) * 16 + kWarps * sums * 4;
  }
};

/// launch_dependent() for code of sm_90 and later in clusters of kClusterBlocks: no more of them than the
/// device holds at once, since they take item after item.
template <class... Params, class... Args>
void launch_dependent_clusters(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                               cudaStream_t stream, const Args&... args) {
#if defined(LACUNA_EMULATED_GPU)
  (void)stream;
  if (grid.x > 3 * kClusterBlocks) grid.x = 3 * kClusterBlocks;
  emulator::launch(
      grid, block, shared_bytes, [=] { kernel(args...); }, kClusterBlocks);
#else
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kClusterBlocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = attributes;
  config.numAttrs = 1;
  int clusters = 0;
  LACUNA_CUDA_TRY(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  const unsigned most = static_cast<unsigned>(clusters > 0 ? clusters : 1) * kClusterBlocks;
  if (config.gridDim.x > most) config.gridDim.x = most;
  config.stream = stream;
  config.numAttrs = 2;
  LACUNA_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
#endif
}

/// All threads of the cluster: what they wrote before cluster_arrive() is there after cluster_wait().
__device__ inline void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
#if defined(LACUNA_EMULATED_GPU)
  __syncthreads();  // of the cluster
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
/// What block `rank` of the cluster has at this place of its shared memory.
__device__ inline float value_in_block(const float* at, int rank) {
  float value = 0.0f;
#if defined(LACUNA_EMULATED_GPU)
  value = *static_cast<const float*>(emulator::in_block(const_cast<float*>(at), rank));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 remote;\nmapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [remote];\n}"
      : "=f"(value)
      : "r"(shared_address(at)), "r"(rank)
      : "memory");
#endif
  return value;
}

/// What a block of a cluster does with rows that are normed already; `raw` is its shared memory, of which x
/// takes `chunk` slabs of a part at a time.
template <int kDepth, int kRowTiles, class End>
__device__ inline void cluster_product(const SkinnyProduct& args, const End& end, int chunk,
                                       unsigned char* raw) {
  const ClusterLayout layout(args.rows, chunk);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = lane / 4, quarter = lane % 4;
  const int rank = static_cast<int>(blockIdx.x) % kClusterBlocks;
  auto* ring = reinterpret_cast<uint4*>(raw) + warp * kUnitPieces;
  auto* held = reinterpret_cast<uint4*>(raw) + kDepth * kWarps * kUnitPieces;
  auto* sums_at = reinterpret_cast<float*>(held + args.rows * layout.pitch);
  const int pieces = args.inputs / kVector, slabs = (args.inputs + kSlab - 1) / kSlab;
  const int own = warp % kClusterUnits, part = warp / kClusterUnits, v = rank * kParts + part;
  const int steps = (slabs - v + kWarps - 1) / kWarps;  // the same in a warp; may be 0
  const int most_steps = (slabs + kWarps - 1) / kWarps;
  const auto units = static_cast<int>((args.outputs + 2 * kOctet - 1) / (2 * kOctet));
  const int teams = (units + kClusterUnits - 1) / kClusterUnits;
  const int begin = static_cast<int>(blockIdx.x) / kClusterBlocks,
            stride = static_cast<int>(gridDim.x) / kClusterBlocks;

  // Weights as in held_product. Units that do not exist repeat the team's first.
  const auto* weights = reinterpret_cast<const uint4*>(args.w);
  const int row = lane / 8, piece = lane % 8;
  uint4* const copied = ring + row * kSlabPieces + (piece ^ (row % 2 * 4));
  unsigned from[4];
  const auto locate = [&](int team) {
    const int first = team * kClusterUnits, unit = first + own < units ? first + own : first;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t output = end.octet(args, unit, i / 2) + i % 2 * 4 + row;
      from[i] = static_cast<unsigned>((End::kWhole || output < args.outputs ? output : 0) * pieces);
    }
  };
  int next_team = begin, next_step = 0, next_stage = 0;
  locate(next_team);
  const auto fetch = [&] {
    if (next_team < teams) {
      const int at = (v + next_step * kWarps) * kSlabPieces + piece;
      const bool inside = at < pieces;
      uint4* to = copied + next_stage * kWarps * kUnitPieces;
#pragma unroll
      for (int i = 0; i < 4; ++i) copy_async_16(to + i * 32, weights + from[i] + (inside ? at : 0), inside);
      if (++next_step == steps) {
        next_step = 0;
        next_team += stride;
        if (next_team < teams) locate(next_team);
      }
      next_stage = next_stage + 1 == kDepth ? 0 : next_stage + 1;
    }
    copy_async_commit();
  };
  if (steps > 0)
    for (int i = 0; i < kDepth - 1; ++i) fetch();
  let_next_start();
  wait_for_previous();

  const auto* x = reinterpret_cast<const uint4*>(args.x);
  const auto hold = [&](int first) {  // slabs of both parts from the first on
    const int span = kParts * chunk * kSlabPieces;
    for (int i = thread; i < args.rows * span; i += kThreads) {
      const int r = i / span, j = i - r * span, slab = j / kSlabPieces;
      const int at_part = slab / chunk, step = first + slab - at_part * chunk;
      const int at = (rank * kParts + at_part + step * kWarps) * kSlabPieces + j % kSlabPieces;
      const bool inside = at < pieces;
      copy_async_16(held + r * layout.pitch + j, x + r * pieces + (inside ? at : 0), inside);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
  };
  hold(0);

  const uint4* b_from[kRowTiles];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
    b_from[r] = held + (r * 8 + group < args.rows ? r * 8 + group : 0) * layout.pitch +
                part * chunk * kSlabPieces + quarter;
  const uint4* a_from = ring + group * kSlabPieces;
  const int halves[2] = {quarter ^ (group % 2 * 4), (quarter + 4) ^ (group % 2 * 4)};
  int stage = 0;
  for (int team = begin; team < teams; team += stride) {
    float sums[kRowTiles][4] = {};
    for (int first = 0; first < most_steps; first += chunk) {
      if (chunk < most_steps && (first > 0 || team > begin)) {
        __syncthreads();  // nobody needs what was held
        hold(first);
      }
      const int last = min(first + chunk, steps);
#pragma unroll 1
      for (int step = first; step < last; ++step) {
        copy_async_wait<kDepth - 2>();
        __syncwarp();  // other lanes copied, and all have used the stage that is filled next
        const uint4* a = a_from + stage * kWarps * kUnitPieces;
        const int b = (step - first) * kSlabPieces;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint4 upper = a[halves[h]], lower = a[kUnitPieces / 2 + halves[h]];
          const std::uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
          const std::uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            const uint4 values = b_from[r][b + 4 * h];
            mma(sums[r], low, values.x, values.y);
            mma(sums[r], high, values.z, values.w);
          }
        }
        fetch();
        stage = stage + 1 == kDepth ? 0 : stage + 1;
      }
    }
    if (team > begin) cluster_wait();  // everybody has read the sums of the team before
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int at = r * 8 + quarter * 2 + e % 2;
        if (at < args.rows)
          sums_at[warp * layout.sums + at * 2 * kOctet + e / 2 * kOctet + group] = sums[r][e];
      }
    }
    cluster_arrive();
    cluster_wait();
    const int unit = team * kClusterUnits + rank;  // this block finishes one of the four
    for (int i = thread; unit < units && i < args.rows * kOctet; i += kThreads) {
      const int r = i / kOctet, output = i % kOctet;
      float both[2] = {};
#pragma unroll
      for (int p = 0; p < kWarps; ++p) {
        const float* sum =
            sums_at + (p % kParts * kClusterUnits + rank) * layout.sums + r * 2 * kOctet + output;
        const float upper = value_in_block(sum, p / kParts), lower = value_in_block(sum + kOctet, p / kParts);
        both[0] = p == 0 ? upper : both[0] + upper;
        both[1] = p == 0 ? lower : both[1] + lower;
      }
      if (args.norm != nullptr) {
        both[0] *= args.factors[r];
        both[1] *= args.factors[r];
      }
      end.finish(args, r, unit, output, both);
    }
    cluster_arrive();
  }
  cluster_wait();  // no block ends while others read its sums
  copy_async_wait<0>();
}

}  // namespace lacuna::skinny
