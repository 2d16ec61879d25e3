// Products with few rows, as in decoding: the weights are read once and everything else hides behind that. A
// block takes 16 or 32 outputs, its warps share the inputs, and the tensor cores multiply: the weights stand
// in for the 16-row operand of mma.sync and the rows of x for its 8 columns. Which of a product's inputs meet
// in one instruction does not matter as long as both operands agree, so a lane takes eight neighbouring
// inputs with one 16-byte load and feeds two instructions with them. Weights pass through a ring in shared
// memory that every lane fills and reads for itself, only to have enough loads under way. No kernel of the
// stream writes weights, so the ring fills while the kernel before is still running.
//
// The 16 outputs of an instruction are two octets of weight rows that need not be neighbours: a gate and its
// up projection, or the two halves of a head that are rotated into each other. Both then end in one thread.
#include "attention/cuda/mma.cuh"
#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/skinny.h"
#include "model/cuda/skinny_cluster.cuh"
#include "model/cuda/skinny_ends.cuh"
#include "model/cuda/skinny_held.cuh"
#include "model/cuda/vector.cuh"

namespace lacuna {

namespace {

using namespace skinny;  // NOLINT: the parts of this kernel

// --- So few rows that a block holds x
// ---------------------------------------------------------------------------------------------------

template <int kDepth, bool kNorm, class End>
__global__ void __launch_bounds__(kThreads, 3)
    held_kernel(const __grid_constant__ SkinnyProduct args, const __grid_constant__ End end) {
  extern __shared__ __align__(128) unsigned char raw[];
  held_product<kDepth, kNorm>(args, end, raw);
}

/// Starts it and returns true, if x fits.
template <class End>
bool launch_held(const SkinnyProduct& product, const End& end, cudaStream_t stream) {
  if (product.rows > kHeldRows) return false;
  const CudaDevice& device = current_cuda_device();
  constexpr int kReserved = 1024;  // bytes of a multiprocessor's shared memory per block
  const HeldLayout layout(product);
  const auto units = (product.outputs + 2 * kOctet - 1) / (2 * kOctet);
  const auto start = [&](auto kernel, int blocks, int bytes) {
    LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const auto resident = static_cast<std::int64_t>(blocks) * device.multiprocessors;
    launch_dependent(kernel, static_cast<unsigned>(units < resident ? units : resident), kThreads, bytes,
                     stream, product, end);
    return true;
  };
  const bool norm = product.norm != nullptr;
  // No more blocks on a multiprocessor than there are units for: the deeper are their rings.
  const std::int64_t wanted = (units + device.multiprocessors - 1) / device.multiprocessors;
  for (int blocks = wanted < 3 ? static_cast<int>(wanted) : 3; blocks > 0; --blocks) {
    const int most = (device.max_shared_bytes + kReserved) / blocks - kReserved;
    const auto fits = [&](int depth) { return layout.bytes(product.rows, depth) <= most; };
    if (fits(6))
      return start(norm ? held_kernel<6, true, End> : held_kernel<6, false, End>, blocks,
                   layout.bytes(product.rows, 6));
    if (fits(4))
      return start(norm ? held_kernel<4, true, End> : held_kernel<4, false, End>, blocks,
                   layout.bytes(product.rows, 4));
    if (fits(3) && blocks > 1)
      return start(norm ? held_kernel<3, true, End> : held_kernel<3, false, End>, blocks,
                   layout.bytes(product.rows, 3));
  }
  return false;
}

// --- More rows, on Hopper
// ---------------------------------------------------------------------------------------------------

template <int kDepth, int kRowTiles, class End>
__global__ void __launch_bounds__(kThreads, kRowTiles < 4 ? 2 : 1)
    cluster_kernel(const __grid_constant__ SkinnyProduct args, const __grid_constant__ End end, int chunk) {
  extern __shared__ __align__(128) unsigned char raw[];
  cluster_product<kDepth, kRowTiles>(args, end, chunk, raw);
}

/// Starts it on rows that are normed already and returns true, if device and code have clusters.
template <int kRowTiles, class End>
bool launch_clusters(const SkinnyProduct& product, const End& end, cudaStream_t stream) {
  const CudaDevice& device = current_cuda_device();
#if !defined(LACUNA_EMULATED_GPU)
  if (device.capability < 90) return false;
  cudaFuncAttributes code{};
  LACUNA_CUDA_TRY(
      cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(cluster_kernel<4, kRowTiles, End>)));
  if (code.ptxVersion < 90) return false;
#endif
  const int slabs = (product.inputs + kSlab - 1) / kSlab, parts = (slabs + kWarps - 1) / kWarps;
  const auto teams = (product.outputs + 2 * kOctet * kClusterUnits - 1) / (2 * kOctet * kClusterUnits);
  const auto bytes = [&](int depth, int chunk) {
    return ClusterLayout(product.rows, chunk).bytes(product.rows, depth);
  };
  const auto start = [&](auto kernel, int depth, int chunk) {
    const int shared_bytes = bytes(depth, chunk);
    LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    launch_dependent_clusters(kernel, static_cast<unsigned>(teams * kClusterBlocks), kThreads, shared_bytes,
                              stream, product, end, chunk);
    return true;
  };
  const int alone = device.max_shared_bytes,
            half = (alone + 1024) / 2 - 1024;  // 1 KiB of each block's is taken
  if (kRowTiles < 4 && bytes(4, parts) <= half) return start(cluster_kernel<4, kRowTiles, End>, 4, parts);
  if (bytes(6, parts) <= alone) return start(cluster_kernel<6, kRowTiles, End>, 6, parts);
  for (int chunks = 1; chunks <= parts; ++chunks) {
    const int chunk = (parts + chunks - 1) / chunks;
    if (bytes(4, chunk) <= alone) return start(cluster_kernel<4, kRowTiles, End>, 4, chunk);
  }
  return false;
}

// --- More rows, on any device
// ---------------------------------------------------------------------------------------------------

/// How a block of kTiles units of 16 outputs for kRowTiles of 8 rows uses its shared memory.
template <int kTiles, int kRowTiles>
struct RingLayout {
  /// Up to 16 rows come through the ring, too, where many outputs share them. Otherwise the first-level cache
  /// serves them better, for which the ring must leave room.
  static constexpr bool kRows = kRowTiles == 1 || (kRowTiles == 2 && kTiles > 1);
  static constexpr int kWeightPieces = 2 * kTiles * kThreads, kRowPieces = kRows ? kRowTiles * kThreads : 0,
                       kStagePieces = kWeightPieces + kRowPieces;  ///< of 16 bytes
  static constexpr int kStages = (kRowTiles == 1 ? 72 : kRows ? 96 : 64) * 1024 / (kStagePieces * 16);
  static constexpr int kBytes = kStages * kStagePieces * 16;
  static_assert(kWarps * 8 * kRowTiles * 2 * kOctet * kTiles * 4 <= kBytes, "the warps' sums go there");
};

constexpr std::int64_t kManyOutputs = 16384;  ///< Two blocks of 32 outputs for each multiprocessor of Hopper.

/// kTiles units of 16 outputs, kRowTiles of 8 rows, which are normed already. The order in which an output is
/// summed depends on the number of inputs alone: that of held_kernel.
template <int kTiles, int kRowTiles, class End>
__global__ void __launch_bounds__(kThreads, kTiles)
    skinny_kernel(const __grid_constant__ SkinnyProduct args, const __grid_constant__ End end) {
  using Ring = RingLayout<kTiles, kRowTiles>;
  constexpr int kOutputs = 2 * kOctet * kTiles, kRows = 8 * kRowTiles, kDepth = Ring::kStages;
  extern __shared__ __align__(128) unsigned char raw[];
  auto* ring = reinterpret_cast<uint4*>(raw);  // [kDepth][kStagePieces]: weights, rows
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = lane / 4, quarter = lane % 4;
  const std::int64_t first_unit = static_cast<std::int64_t>(blockIdx.x) * kTiles,
                     units = (args.outputs + 2 * kOctet - 1) / (2 * kOctet);

  // Outputs and rows that do not exist repeat others; their results are not stored.
  const auto* weights = reinterpret_cast<const uint4*>(args.w);
  unsigned w[2 * kTiles];  // where this lane's outputs begin, in pieces of eight
#pragma unroll
  for (int m = 0; m < 2 * kTiles; ++m) {
    const std::int64_t unit = first_unit + m / 2;
    const std::int64_t output = end.octet(args, unit < units ? unit : first_unit, m % 2) + group;
    w[m] =
        static_cast<unsigned>((End::kWhole || output < args.outputs ? output : 0) * (args.inputs / kVector));
  }
  int x[kRowTiles];  // where this lane's rows begin
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) x[r] = (r * 8 + group < args.rows ? r * 8 + group : 0) * args.inputs;
  // A step is half a slab: the inputs of this lane's pieces.
  const auto input = [&](int step) {
    return warp * kSlab + quarter * kVector + step / 2 * kStride + step % 2 * (kSlab / 2);
  };
  const auto fetch_weights = [&](int step, int stage) {
    const int at = input(step);
    const bool inside = at < args.inputs;
    uint4* to = ring + stage * Ring::kStagePieces + thread;
#pragma unroll
    for (int m = 0; m < 2 * kTiles; ++m)
      copy_async_16(to + m * kThreads, weights + w[m] + (inside ? at / kVector : 0), inside);
  };
  const auto fetch_rows = [&](int step, int stage) {
    if (!Ring::kRows) return;
    const int at = input(step);
    const bool inside = at < args.inputs;
    uint4* to = ring + stage * Ring::kStagePieces + Ring::kWeightPieces + thread;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      copy_async_16(to + r * kThreads, args.x + x[r] + (inside ? at : 0), inside);
  };
  const int slabs = (args.inputs + kSlab - 1) / kSlab;
  const int steps = (slabs - warp + kWarps - 1) / kWarps * 2;  // the same in a warp; may be 0
  for (int step = 0; step < kDepth - 1; ++step) {
    if (step < steps) fetch_weights(step, step);
    copy_async_commit();
  }
  let_next_start();
  wait_for_previous();
  // A group of its own for each step: in both parts of the ring's life kDepth - 2 younger groups may be
  // pending when a step begins.
  for (int step = 0; Ring::kRows && step < kDepth - 1; ++step) {
    if (step < steps) fetch_rows(step, step);
    copy_async_commit();
  }

  float sums[kTiles][kRowTiles][4] = {};
  uint4 b[kRowTiles], next[kRowTiles];
  const auto load_rows = [&](int step) {
    const int at = input(step);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      next[r] = at < args.inputs ? *reinterpret_cast<const uint4*>(args.x + x[r] + at) : uint4{0, 0, 0, 0};
  };
  if (!Ring::kRows) load_rows(0);
  int stage = 0, free_stage = kDepth - 1;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const uint4* from = ring + stage * Ring::kStagePieces + thread;
    if (!Ring::kRows) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) b[r] = next[r];
      load_rows(step + 1);
    }
    copy_async_wait<kDepth - 2>();
    if (Ring::kRows) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) b[r] = from[Ring::kWeightPieces + r * kThreads];
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const uint4 upper = from[2 * m * kThreads], lower = from[(2 * m + 1) * kThreads];
      const std::uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
      const std::uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        mma(sums[m][r], low, b[r].x, b[r].y);
        mma(sums[m][r], high, b[r].z, b[r].w);
      }
    }
    // The stage of the step before: this warp has used what it held.
    if (step + kDepth - 1 < steps) {
      fetch_weights(step + kDepth - 1, free_stage);
      fetch_rows(step + kDepth - 1, free_stage);
    }
    copy_async_commit();
    free_stage = stage;
    stage = stage + 1 == kDepth ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  __syncthreads();  // the ring's memory now takes the warps' sums

  auto* partial = reinterpret_cast<float*>(raw);  // [kWarps][kRows][kOutputs]
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = r * 8 + quarter * 2 + e % 2, output = m * 16 + e / 2 * 8 + group;
        partial[(warp * kRows + row) * kOutputs + output] = sums[m][r][e];
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < args.rows * kTiles * kOctet; i += kThreads) {
    const int row = i / (kTiles * kOctet), tile = i / kOctet % kTiles, output = i % kOctet;
    if (first_unit + tile >= units) continue;
    const float* from = partial + row * kOutputs + tile * 2 * kOctet + output;
    float both[2] = {from[0], from[kOctet]};
#pragma unroll
    for (int v = 1; v < kWarps; ++v) {
      both[0] += from[v * kRows * kOutputs];
      both[1] += from[v * kRows * kOutputs + kOctet];
    }
    if (args.norm != nullptr) {
      both[0] *= args.factors[row];
      both[1] *= args.factors[row];
    }
    end.finish(args, row, first_unit + tile, output, both);
  }
}

constexpr int kScaleThreads = 256;

/// normed = x * norm and factors = 1 / sqrt(mean(x^2) + eps), with the bits of held_product: a lane of the
/// first warp adds the squares that lane l % 4 of warp l / 4 adds there, while the other warps multiply.
/// Block: one row.
__global__ void __launch_bounds__(kScaleThreads)
    scale_rows_kernel(const __grid_constant__ SkinnyProduct args) {
  let_next_start();
  wait_for_previous();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, pieces = args.inputs / kVector;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * pieces;
  const uint4* from = reinterpret_cast<const uint4*>(args.x) + row;
  if (thread >= 32) {
    constexpr int kStep = kScaleThreads - 32;
    for (int first = thread - 32; first < pieces; first += 2 * kStep) {
      const int second = first + kStep;
      const uint4 raw[2] = {from[first], from[second < pieces ? second : first]};  // on their way together
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int at = k == 0 ? first : second;
        if (at >= pieces) break;
        float values[kVector], norm[kVector];
        unpack(raw[k], values);
        load_floats(args.norm + at * kVector, norm);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[e] *= norm[e];
        reinterpret_cast<uint4*>(args.normed)[row + at] = pack(values);
      }
    }
    return;
  }
  float squares = 0.0f;
  const int first = lane / 4 * kSlabPieces + lane % 4;
#pragma unroll 8
  for (int step = 0; step < (pieces + kStride / kVector - 1) / (kStride / kVector) * 2; ++step) {
    const int at = first + step / 2 * (kStride / kVector) + step % 2 * (kSlabPieces / 2);
    float values[kVector];
    unpack(at < pieces ? from[at] : uint4{0, 0, 0, 0}, values);
#pragma unroll
    for (int e = 0; e < kVector; ++e) squares += values[e] * values[e];
  }
  squares = sum_of_lanes(squares, 4);
  float sum = __shfl_sync(~0u, squares, 0);
#pragma unroll
  for (int v = 1; v < kWarps; ++v) sum += __shfl_sync(~0u, squares, v * 4);
  if (lane == 0) args.factors[blockIdx.x] = row_factor(args, sum);
}

template <int kTiles, int kRowTiles, class End>
void launch_tiles(const SkinnyProduct& product, const End& end, cudaStream_t stream) {
  constexpr int kOutputs = 2 * kOctet * kTiles, kBytes = RingLayout<kTiles, kRowTiles>::kBytes;
  const auto kernel = skinny_kernel<kTiles, kRowTiles, End>;
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto blocks = static_cast<unsigned>((product.outputs + kOutputs - 1) / kOutputs);
  launch_dependent(kernel, blocks, kThreads, kBytes, stream, product, end);
}

/// More rows need x more often: more outputs per block save some of that, where there are enough of them.
template <class End>
void launch(const SkinnyProduct& given, const End& end, cudaStream_t stream) {
  if (given.rows == 0 || given.outputs == 0) return;
  if (launch_held(given, end, stream)) return;
  SkinnyProduct product = given;
  if (product.norm != nullptr) {
    launch_dependent(scale_rows_kernel, static_cast<unsigned>(product.rows), kScaleThreads, 0, stream,
                     product);
    product.x = product.normed;
  }
  if (product.clusters && (product.rows <= 8    ? launch_clusters<1>(product, end, stream)
                           : product.rows <= 16 ? launch_clusters<2>(product, end, stream)
                                                : launch_clusters<4>(product, end, stream)))
    return;
  if (product.rows <= 8) return launch_tiles<1, 1>(product, end, stream);
  if (product.rows <= 16) {
    if (product.outputs >= kManyOutputs) return launch_tiles<2, 2>(product, end, stream);
    return launch_tiles<1, 2>(product, end, stream);
  }
  launch_tiles<2, 4>(product, end, stream);
}

}  // namespace

void launch_skinny(const SkinnyProduct& product, const SkinnyOutput& to, cudaStream_t stream) {
  launch(product, LinearEnd{to}, stream);
}

void launch_skinny_gated(const SkinnyProduct& product, const SkinnyGated& to, cudaStream_t stream) {
  launch(product, GatedEnd{to}, stream);
}

void launch_skinny_cache(const SkinnyProduct& product, const CacheTarget& to, cudaStream_t stream) {
  launch(product, CacheEnd{to}, stream);
}

}  // namespace lacuna
