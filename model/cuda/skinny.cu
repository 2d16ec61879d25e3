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

template <int kTiles>
inline constexpr int kStages = kTiles == 1 ? 8 : 4;
template <int kTiles>
inline constexpr int kSharedBytes = 2 * kTiles* kStages<kTiles>* kThreads * 16;

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

// --- The product
// ---------------------------------------------------------------------------------------------------

/// kTiles units of 16 outputs, kRowTiles of 8 rows. The order in which an output and a row's squares are
/// summed depends on the number of inputs alone.
template <int kTiles, int kRowTiles, bool kNorm, class End>
__global__ void __launch_bounds__(kThreads, kTiles)
    skinny_kernel(const __grid_constant__ SkinnyProduct args, const __grid_constant__ End end) {
  constexpr int kOutputs = 2 * kOctet * kTiles, kRows = 8 * kRowTiles, kDepth = kStages<kTiles>;
  static_assert(kWarps * kRows * (kOutputs + 1) * 4 <= kSharedBytes<kTiles>);
  extern __shared__ __align__(128) unsigned char raw[];
  auto* ring = reinterpret_cast<uint4*>(raw);  // [kDepth][2 * kTiles][kThreads]
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
  const int first = warp * kStep + quarter * kVector;  // of this lane's inputs
  constexpr int kStride = kWarps * kStep;
  const auto fetch = [&](int step) {
    const int at = first + step * kStride;
    const bool inside = at < args.inputs;
#pragma unroll
    for (int m = 0; m < 2 * kTiles; ++m)
      copy_async_16(ring + (step % kDepth * 2 * kTiles + m) * kThreads + thread,
                    weights + w[m] + (inside ? at / kVector : 0), inside);
  };
  const int steps = (args.inputs - warp * kStep + kStride - 1) / kStride;  // the same in a warp; may be 0
  for (int step = 0; step < kDepth - 1; ++step) {
    if (step < steps) fetch(step);
    copy_async_commit();
  }
  let_next_start();
  wait_for_previous();

  int x[kRowTiles];  // where this lane's rows begin
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) x[r] = (r * 8 + group < args.rows ? r * 8 + group : 0) * args.inputs;
  float sums[kTiles][kRowTiles][4] = {}, squares[kRowTiles] = {};
  uint4 b[kRowTiles], next[kRowTiles];
  constexpr bool kNormAhead = kNorm && kRowTiles == 1;  // more rows need the registers
  float norm[kVector] = {}, next_norm[kVector] = {};
  const auto load_x = [&](int step) {
    const int at = first + step * kStride;
    if (at >= args.inputs) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) next[r] = uint4{0, 0, 0, 0};
      return;
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) next[r] = *reinterpret_cast<const uint4*>(args.x + x[r] + at);
    if (kNormAhead) load_floats(args.norm + at, next_norm);
  };
  load_x(0);
#pragma unroll(kNorm&& kRowTiles > 1 ? 1 : 2)
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) b[r] = next[r];
    if (kNormAhead) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) norm[e] = next_norm[e];
    } else if (kNorm && first + step * kStride < args.inputs) {
      load_floats(args.norm + first + step * kStride, norm);
    }
    load_x(step + 1);
    if (kNorm) {
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
    copy_async_wait<kDepth - 2>();
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const uint4* slot = ring + ((step % kDepth * kTiles + m) * 2) * kThreads + thread;
      const uint4 upper = slot[0], lower = slot[kThreads];
      const std::uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
      const std::uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        mma(sums[m][r], low, b[r].x, b[r].y);
        mma(sums[m][r], high, b[r].z, b[r].w);
      }
    }
    // The slot of the step before: this lane has used what it held.
    if (step + kDepth - 1 < steps) fetch(step + kDepth - 1);
    copy_async_commit();
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
      const float scale = 1.0f / sqrtf(sum / static_cast<float>(args.inputs) + args.eps);
      both[0] *= scale;
      both[1] *= scale;
    }
    end.finish(args, row, first_unit + tile, output, both);
  }
}

template <int kTiles, int kRowTiles, bool kNorm, class End>
void launch_tiles(const SkinnyProduct& product, const End& end, cudaStream_t stream) {
  constexpr int kOutputs = 2 * kOctet * kTiles, kBytes = kSharedBytes<kTiles>;
  const auto kernel = skinny_kernel<kTiles, kRowTiles, kNorm, End>;
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const auto blocks = static_cast<unsigned>((product.outputs + kOutputs - 1) / kOutputs);
  launch_dependent(kernel, blocks, kThreads, kBytes, stream, product, end);
}

template <bool kNorm, class End>
void launch(const SkinnyProduct& product, const End& end, cudaStream_t stream) {
  if (product.rows == 0 || product.outputs == 0) return;
  if (product.rows <= 8) return launch_tiles<1, 1, kNorm>(product, end, stream);
  if (product.rows <= 16) return launch_tiles<1, 2, kNorm>(product, end, stream);
  // More rows need x more often: twice the outputs per block halve that.
  launch_tiles<2, 4, kNorm>(product, end, stream);
}

}  // namespace

void launch_skinny(const SkinnyProduct& product, const SkinnyOutput& to, cudaStream_t stream) {
  if (product.norm != nullptr) return launch<true>(product, LinearEnd{to}, stream);
  launch<false>(product, LinearEnd{to}, stream);
}

void launch_skinny_gated(const SkinnyProduct& product, const SkinnyGated& to, cudaStream_t stream) {
  launch<true>(product, GatedEnd{to}, stream);
}

void launch_skinny_cache(const SkinnyProduct& product, const CacheTarget& to, cudaStream_t stream) {
  launch<true>(product, CacheEnd{to}, stream);
}

}  // namespace lacuna
