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
#include "model/cuda/newest_slot.cuh"
#include "model/cuda/skinny.h"
#include "model/cuda/vector.cuh"

namespace lacuna {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kStep = 32;  ///< Inputs of one load of a warp.
constexpr int kOctet = 8;  ///< Outputs of half an instruction.

/// How a block of kTiles units of 16 outputs for kRowTiles of 8 rows uses its shared memory.
template <int kTiles, int kRowTiles, bool kNorm>
struct RingLayout {
  /// Up to 16 rows come through the ring, too: loaded a step ahead their latency would be the time of a step.
  static constexpr bool kRows = kRowTiles <= 2;
  static constexpr int kWeightPieces = 2 * kTiles * kThreads, kRowPieces = kRows ? kRowTiles * kThreads : 0,
                       kNormPieces = kNorm ? kWarps * kStep / 4 : 0,
                       kStagePieces = kWeightPieces + kRowPieces + kNormPieces;  ///< of 16 bytes
  /// Three blocks of 8 rows, two of more fit on a multiprocessor of Hopper.
  static constexpr int kStages = (kRowTiles == 1 ? 72 : 96) * 1024 / (kStagePieces * 16);
  static_assert(kRows || !kNorm);
  static constexpr int kBytes = kStages * kStagePieces * 16;
  static_assert(kWarps * 8 * kRowTiles * (2 * kOctet * kTiles + 1) * 4 <= kBytes, "the warps' sums go there");
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kBlocksOfMany = 1;  ///< of 64 outputs per multiprocessor: a second one would cost spills
#else
constexpr int kBlocksOfMany = 2;
#endif
constexpr std::int64_t kManyOutputs = 16384;  ///< Two blocks of 64 outputs for each multiprocessor of Hopper.

/// Weights that nothing but this product reads, of small matrices, come into the second-level cache while the
/// block waits: more than the ring holds. Attention over few pages leaves memory idle before the output
/// projection.
constexpr std::int64_t kAheadBytes = std::int64_t{32} << 20;

/// The line of 128 bytes at `from` comes into the second-level cache.
__device__ inline void fetch_ahead(const void* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

// --- What becomes of a product. A unit is two octets: octet(unit, 0) and octet(unit, 1) are their first rows
// of w; finish() takes the sums of row `i` of both.
// --------------------------------------------------------------------------

struct LinearEnd {
  static constexpr bool kWhole = false;  ///< Rows of w beyond the last may be asked for.
  SkinnyOutput to;

  __device__ std::int64_t octet(const SkinnyProduct&, std::int64_t unit, int which) const {
    return unit * 2 * kOctet + which * kOctet;
  }
  __device__ void finish(const SkinnyProduct& p, int row, std::int64_t unit, int i,
                         const float (&sums)[2]) const {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const std::int64_t output = octet(p, unit, which) + i;
      if (output >= p.outputs) continue;
      const std::int64_t at = row * p.outputs + output;
      float y = sums[which];
      if (p.bias != nullptr) y += __bfloat162float(p.bias[output]);
      if (to.float_output) {
        auto* out = static_cast<float*>(to.y) + at;
        if (to.accumulate) y += *out;
        *out = to.cap > 0.0f ? to.cap * tanhf(y / to.cap) : y;
      } else {
        auto* out = static_cast<__nv_bfloat16*>(to.y) + at;
        if (to.accumulate) y += __bfloat162float(*out);
        *out = __float2bfloat16_rn(y);
      }
    }
  }
};

struct GatedEnd {
  static constexpr bool kWhole = true;
  SkinnyGated to;

  __device__ std::int64_t octet(const SkinnyProduct& p, std::int64_t unit, int which) const {
    return unit * kOctet + which * (p.outputs / 2);
  }
  __device__ void finish(const SkinnyProduct& p, int row, std::int64_t unit, int i,
                         const float (&sums)[2]) const {
    const std::int64_t half = p.outputs / 2, output = unit * kOctet + i;
    float gate = sums[0], up = sums[1];
    if (p.bias != nullptr) {
      gate += __bfloat162float(p.bias[output]);
      up += __bfloat162float(p.bias[half + output]);
    }
    const float activated = to.gelu ? activate<true>(gate) : activate<false>(gate);
    to.out[row * half + output] = __float2bfloat16_rn(activated * up);
  }
};

struct CacheEnd {
  static constexpr bool kWhole = true;
  CacheTarget to;

  __device__ std::int64_t octet(const SkinnyProduct&, std::int64_t unit, int which) const {
    const int half = to.head_dim / 2, octets = half / kOctet, flat = static_cast<int>(unit);
    return flat / octets * to.head_dim + flat % octets * kOctet + which * half;
  }
  __device__ void finish(const SkinnyProduct& p, int row, std::int64_t unit, int i,
                         const float (&sums)[2]) const {
    const int half = to.head_dim / 2, octets = half / kOctet, flat = static_cast<int>(unit);
    const int head = flat / octets, channel = flat % octets * kOctet + i;
    float a = sums[0], b = sums[1];
    if (p.bias != nullptr) {
      a += __bfloat162float(p.bias[head * to.head_dim + channel]);
      b += __bfloat162float(p.bias[head * to.head_dim + half + channel]);
    }
    if (head < to.q_heads + to.kv_heads) {
      const std::int64_t angle = static_cast<std::int64_t>(to.positions[row]) * half + channel;
      const float c = to.cos[angle], s = to.sin[angle], x = a, y = b;
      a = x * c - y * s;
      b = y * c + x * s;
    }
    __nv_bfloat16* out = newest_row(to.to, row, head, to.q_heads, to.kv_heads, to.head_dim);
    if (out == nullptr) return;
    out[channel] = __float2bfloat16_rn(a);
    out[channel + half] = __float2bfloat16_rn(b);
  }
};

/// Of a row whose squares add up to `squares`.
__device__ inline float row_factor(const SkinnyProduct& args, float squares) {
  return 1.0f / sqrtf(squares / static_cast<float>(args.inputs) + args.eps);
}

// --- The product
// ---------------------------------------------------------------------------------------------------

/// kTiles units of 16 outputs, kRowTiles of 8 rows. The order in which an output and a row's squares are
/// summed depends on the number of inputs alone.
template <int kTiles, int kRowTiles, bool kNorm, class End>
__global__ void __launch_bounds__(kThreads, kTiles == 1   ? 1
                                            : kTiles == 2 ? 2
                                                          : kBlocksOfMany)
    skinny_kernel(const __grid_constant__ SkinnyProduct args, const __grid_constant__ End end) {
  using Ring = RingLayout<kTiles, kRowTiles, kNorm>;
  constexpr int kOutputs = 2 * kOctet * kTiles, kRows = 8 * kRowTiles, kDepth = Ring::kStages;
  extern __shared__ __align__(128) unsigned char raw[];
  auto* ring = reinterpret_cast<uint4*>(raw);  // [kDepth][kStagePieces]: weights, rows, norm
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
  const int first = warp * kStep + quarter * kVector;  // of this lane's inputs
  constexpr int kStride = kWarps * kStep;
  const auto fetch_weights = [&](int step, int stage) {
    const int at = first + step * kStride;
    const bool inside = at < args.inputs;
    uint4* to = ring + stage * Ring::kStagePieces + thread;
#pragma unroll
    for (int m = 0; m < 2 * kTiles; ++m)
      copy_async_16(to + m * kThreads, weights + w[m] + (inside ? at / kVector : 0), inside);
    if (Ring::kNormPieces > 0 && lane < kStep / 4) {  // the warp's 32 floats
      const int norm = warp * kStep + lane * 4 + step * kStride;
      const bool exists = norm < args.inputs;
      copy_async_16(to - thread + Ring::kWeightPieces + Ring::kRowPieces + warp * (kStep / 4) + lane,
                    args.norm + (exists ? norm : 0), exists);
    }
  };
  const auto fetch_rows = [&](int step, int stage) {
    if (!Ring::kRows) return;
    const int at = first + step * kStride;
    const bool inside = at < args.inputs;
    uint4* to = ring + stage * Ring::kStagePieces + Ring::kWeightPieces + thread;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      copy_async_16(to + r * kThreads, args.x + x[r] + (inside ? at : 0), inside);
  };
  const int steps = (args.inputs - warp * kStep + kStride - 1) / kStride;  // the same in a warp; may be 0
  for (int step = 0; step < kDepth - 1; ++step) {
    if (step < steps) fetch_weights(step, step);
    copy_async_commit();
  }
  let_next_start();
  if (args.outputs * args.inputs * 2 <= kAheadBytes) {
    constexpr int kHeld = (kDepth - 1) * kStride, kLine = 64;  // inputs
    const int lines = (args.inputs - kHeld + kLine - 1) / kLine;
    for (int i = thread; i < kOutputs * lines; i += kThreads) {
      const int row = i / lines;
      const std::int64_t unit = first_unit + row / (2 * kOctet);
      const std::int64_t output = end.octet(args, unit, row / kOctet % 2) + row % kOctet;
      if (unit < units && output < args.outputs)
        fetch_ahead(args.w + output * args.inputs + kHeld + (i - row * lines) * kLine);
    }
  }
  wait_for_previous();
  // A group of its own for each step: in both parts of the ring's life kDepth - 2 younger groups may be
  // pending when a step begins.
  for (int step = 0; Ring::kRows && step < kDepth - 1; ++step) {
    if (step < steps) fetch_rows(step, step);
    copy_async_commit();
  }

  float sums[kTiles][kRowTiles][4] = {}, squares[kRowTiles] = {};
  uint4 b[kRowTiles], next[kRowTiles];
  const auto load_rows = [&](int step) {
    const int at = first + step * kStride;
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
    if (kNorm) {
      __syncwarp();  // other lanes fetched the norm
      float norm[kVector];
      load_floats(reinterpret_cast<const float*>(from - thread + Ring::kWeightPieces + Ring::kRowPieces +
                                                 warp * (kStep / 4) + quarter * 2),
                  norm);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        float values[kVector];
        unpack(b[r], values);
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          squares[r] += values[e] * values[e];
          values[e] *= norm[e];
        }
        b[r] = pack(values);
      }
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

  auto* partial = reinterpret_cast<float*>(raw);             // [kWarps][kRows][kOutputs]
  float* row_squares = partial + kWarps * kRows * kOutputs;  // [kWarps][kRows]
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
    if (kNorm) {
      const float sum = sum_of_lanes(squares[r], 4);
      if (quarter == 0) row_squares[warp * kRows + r * 8 + group] = sum;
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
    if (kNorm) {
      float sum = row_squares[row];
#pragma unroll
      for (int v = 1; v < kWarps; ++v) sum += row_squares[v * kRows + row];
      const float scale = row_factor(args, sum);
      both[0] *= scale;
      both[1] *= scale;
    } else if (args.norm != nullptr) {
      both[0] *= args.factors[row];
      both[1] *= args.factors[row];
    }
    end.finish(args, row, first_unit + tile, output, both);
  }
}

/// normed = x * norm and factors = 1 / sqrt(mean(x^2) + eps), with the bits of skinny_kernel: a lane here
/// adds the squares that lane l % 4 of warp l / 4 adds there. Block: one row.
__global__ void __launch_bounds__(32) scale_rows_kernel(const __grid_constant__ SkinnyProduct args) {
  let_next_start();
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * args.inputs;
  float squares = 0.0f;
#pragma unroll 4
  for (int at = lane * kVector; at < args.inputs; at += kWarps * kStep) {
    float values[kVector], norm[kVector];
    unpack(*reinterpret_cast<const uint4*>(args.x + row + at), values);
    load_floats(args.norm + at, norm);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      squares += values[e] * values[e];
      values[e] *= norm[e];
    }
    *reinterpret_cast<uint4*>(args.normed + row + at) = pack(values);
  }
  squares = sum_of_lanes(squares, 4);
  float sum = __shfl_sync(~0u, squares, 0);
#pragma unroll
  for (int v = 1; v < kWarps; ++v) sum += __shfl_sync(~0u, squares, v * 4);
  if (lane == 0) args.factors[blockIdx.x] = row_factor(args, sum);
}

template <int kTiles, int kRowTiles, bool kNorm, class End>
void launch_tiles(const SkinnyProduct& product, const End& end, cudaStream_t stream) {
  constexpr int kOutputs = 2 * kOctet * kTiles, kBytes = RingLayout<kTiles, kRowTiles, kNorm>::kBytes;
  const auto kernel = skinny_kernel<kTiles, kRowTiles, kNorm, End>;
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto blocks = static_cast<unsigned>((product.outputs + kOutputs - 1) / kOutputs);
  launch_dependent(kernel, blocks, kThreads, kBytes, stream, product, end);
}

/// More rows need x more often: more outputs per block save some of that, where there are enough of them.
template <class End>
void launch(const SkinnyProduct& given, const End& end, cudaStream_t stream) {
  if (given.rows == 0 || given.outputs == 0) return;
  if (given.rows <= 8) {
    if (given.norm != nullptr) return launch_tiles<1, 1, true>(given, end, stream);
    return launch_tiles<1, 1, false>(given, end, stream);
  }
  SkinnyProduct product = given;
  if (product.norm != nullptr) {
    launch_dependent(scale_rows_kernel, static_cast<unsigned>(product.rows), 32, 0, stream, product);
    product.x = product.normed;
  }
  const bool many = product.outputs >= kManyOutputs;
  if (product.rows <= 16) {
    if (many) return launch_tiles<2, 2, false>(product, end, stream);
    return launch_tiles<1, 2, false>(product, end, stream);
  }
  if (many) return launch_tiles<4, 4, false>(product, end, stream);
  launch_tiles<2, 4, false>(product, end, stream);
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
