// Attention summed over squares of rows and keys, without ever writing the matrix of weights: what oracles
// and xattention choose blocks by. A block of threads owns 128 rows and goes over their keys twice: for each
// row's maximum and sum, then for its normalised weights. All sums have a fixed order.
//
// With a stride, "rows" and "keys" are groups of tokens, and a score is the sum of q . k along the
// antidiagonal of the square of tokens where two groups meet.
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/cuda/mma.cuh"
#include "attention/cuda/select_cuda.h"
#include "attention/cuda/softmax.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kWarps = kMassRows / 16, kThreads = 32 * kWarps;
constexpr int kKeys = 64;
constexpr int kStripPitch = kKeys + 8;

struct MassArgs {
  const __nv_bfloat16 *q, *k;
  std::int64_t q_head_stride, q_token_stride, k_head_stride, k_token_stride;
  int tokens, groups, stride, group, head_base, kv_base, window;
  float scale, softcap;
  int per_block, first, count;  ///< row blocks [first, first + count)
  float* mass;
  std::int64_t mass_stride;
  int* not_finite;
};

template <int kHeadDim>
struct MassShared {
  static constexpr int kPitch = kHeadDim + 8;
  alignas(16) __nv_bfloat16 q[kMassRows * kPitch];
  alignas(16) __nv_bfloat16 k[kKeys * kPitch];
  alignas(16) float strip[kWarps][16 * kStripPitch];
  float part[kWarps][2];
};

/// Token `slot` of `rows` groups from `first` on; zeros where there is none.
template <int kHeadDim>
__device__ void load_rows(const MassArgs& args, const __nv_bfloat16* from, std::int64_t token_stride,
                          int first, int rows, int slot, __nv_bfloat16* to) {
  constexpr int kPieces = kHeadDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, channel = i % kPieces * 8;
    const std::int64_t token = static_cast<std::int64_t>(first + row) * args.stride + slot;
    const bool valid = token < args.tokens;
    copy_async_16(to + row * (kHeadDim + 8) + channel, from + (valid ? token : 0) * token_stride + channel,
                  valid);
  }
}

/// Scores of this warp's 16 rows and the 64 keys from first_key on, in base-2 exponents, -inf where masked.
template <int kHeadDim>
__device__ void score_tile(const MassArgs& args, const __nv_bfloat16* q, const __nv_bfloat16* k,
                           int first_row, int first_key, MassShared<kHeadDim>& shared, float (&s)[32]) {
  constexpr int kPitch = MassShared<kHeadDim>::kPitch;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (float& x : s) x = 0.0f;
  for (int slot = 0; slot < args.stride; ++slot) {
    __syncthreads();
    // With one slot the queries stay where the first tile put them.
    if (args.stride > 1 || first_key == 0)
      load_rows<kHeadDim>(args, q, args.q_token_stride, first_row, kMassRows, args.stride - 1 - slot,
                          shared.q);
    load_rows<kHeadDim>(args, k, args.k_token_stride, first_key, kKeys, slot, shared.k);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      std::uint32_t a[4];
      load_matrix(a, shared.q + (warp * 16 + (lane & 15)) * kPitch + step * 16 + (lane >> 4) * 8);
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        std::uint32_t b[4];
        load_matrix(b, shared.k + (j * 16 + (lane >> 4) * 8 + (lane & 7)) * kPitch + step * 16 +
                           ((lane >> 3) & 1) * 8);
        mma(s + j * 8, a, b[0], b[1]);
        mma(s + j * 8 + 4, a, b[2], b[3]);
      }
    }
  }
  const float factor = args.softcap > 0.0f ? kLog2e : args.scale * kLog2e;
  if (args.softcap > 0.0f) apply_softcap(s, args.scale, args.softcap);
#pragma unroll
  for (float& x : s) x *= factor;
  const int row = first_row + warp * 16 + lane / 4;
  const int below = args.window > 0 ? args.window - 1 : INT_MAX / 2;
  // Rows past the prompt see nothing.
  const int last[2] = {row < args.groups ? row - first_key : -1,
                       row + 8 < args.groups ? row + 8 - first_key : -1};
  const int first[2] = {row - below - first_key, row + 8 - below - first_key};
  mask_span(s, first, last);
}

/// This warp's weights, added up over squares of `per_block` as far as its 16 rows go: squares of up to 16
/// rows go to mass, parts of larger ones to shared.part.
template <int kHeadDim>
__device__ void add_squares(const MassArgs& args, const float (&s)[32], int first_row, int first_key,
                            float* mass, MassShared<kHeadDim>& shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  float* strip = shared.strip[warp];
  __syncwarp();
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 8; ++j)
      *reinterpret_cast<float2*>(strip + (lane / 4 + r * 8) * kStripPitch + j * 8 + (lane & 3) * 2) =
          make_float2(s[j * 4 + 2 * r], s[j * 4 + 2 * r + 1]);
  __syncwarp();
  // Along the rows: two lanes share one, each its half.
  const int width = min(args.per_block, kKeys), height = min(args.per_block, 16);
  float* half = strip + lane / 2 * kStripPitch + (lane & 1) * (kKeys / 2);
  const int wide = min(width, kKeys / 2);
  float total = 0.0f;
  for (int at = 0; at < kKeys / 2; at += wide) {
    total = 0.0f;
    for (int i = 0; i < wide; ++i) total += half[at + i];
    if (width < kKeys) half[at] = total;
  }
  if (width == kKeys) {
    total += __shfl_down_sync(~0u, total, 1);
    if ((lane & 1) == 0) half[0] = total;
  }
  __syncwarp();
  // Down the columns.
  const int across = kKeys / width, squares = 16 / height * across;
  for (int square = lane; square < squares; square += 32) {
    const float* from = strip + square / across * height * kStripPitch + square % across * width;
    float sum = 0.0f;
    for (int i = 0; i < height; ++i) sum += from[i * kStripPitch];
    if (args.per_block > 16) {
      shared.part[warp][square] = sum;
      continue;
    }
    const int row_block = (first_row + warp * 16) / args.per_block + square / across;
    const int key_block = first_key / args.per_block + square % across;
    if (row_block < args.first + args.count && key_block <= row_block)
      mass[(row_block - args.first) * args.mass_stride + key_block] = sum;
  }
}

/// Squares of 32 to 128 rows from the warps' parts. One of 128 keys gets two tiles, from the same thread.
template <int kHeadDim>
__device__ void join_squares(const MassArgs& args, int first_row, int first_key, float* mass,
                             const MassShared<kHeadDim>& shared) {
  const int warps = args.per_block / 16, across = kKeys / min(args.per_block, kKeys);
  const int square = static_cast<int>(threadIdx.x);
  if (square >= kWarps / warps * across) return;
  float sum = 0.0f;
  for (int w = 0; w < warps; ++w) sum += shared.part[square / across * warps + w][square % across];
  const int row_block = first_row / args.per_block + square / across;
  const int key_block = first_key / args.per_block + square % across;
  if (row_block >= args.first + args.count || key_block > row_block) return;
  float* to = mass + (row_block - args.first) * args.mass_stride + key_block;
  *to = first_key % args.per_block == 0 ? sum : *to + sum;
}

template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) block_mass_kernel(const __grid_constant__ MassArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<MassShared<kHeadDim>*>(raw);
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int head = static_cast<int>(blockIdx.x);
  // The longest rows first.
  const int first_row =
      args.first * args.per_block + static_cast<int>(gridDim.y - 1 - blockIdx.y) * kMassRows;
  const int kv_head = (args.head_base + head) / args.group - args.kv_base;
  const __nv_bfloat16* q = args.q + head * args.q_head_stride;
  const __nv_bfloat16* k = args.k + kv_head * args.k_head_stride;
  float* mass = args.mass + static_cast<std::int64_t>(head) * args.count * args.mass_stride;
  const int end_key = min(first_row + kMassRows, args.groups);

  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  float s[32];
  for (int key = 0; key < end_key; key += kKeys) {
    score_tile<kHeadDim>(args, q, k, first_row, key, shared, s);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float high = top[r];
#pragma unroll
      for (int j = 0; j < 32; j += 4) high = fmaxf(high, fmaxf(s[j + 2 * r], s[j + 2 * r + 1]));
      const float shift = high == -INFINITY ? 0.0f : high;
      // The sum is 0, or NaN from a NaN score, while nothing has been seen.
      float total = top[r] == -INFINITY ? sum[r] : sum[r] * exp2_fast(top[r] - shift);
#pragma unroll
      for (int j = 0; j < 32; j += 4)
        total += exp2_fast(s[j + 2 * r] - shift) + exp2_fast(s[j + 2 * r + 1] - shift);
      top[r] = high;
      sum[r] = total;
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float high = quad_max(top[r]);
    const float shift = high == -INFINITY ? 0.0f : high;
    const float total = quad_sum(top[r] == -INFINITY ? sum[r] : sum[r] * exp2_fast(top[r] - shift));
    const int row = first_row + warp * 16 + lane / 4 + r * 8;
    // Every row sees at least itself: a sum that is no positive number comes from bad scores.
    const bool bad = !(total > 0.0f) || !isfinite(total);
    if (bad && row < args.groups && args.not_finite != nullptr) args.not_finite[head] = 1;
    top[r] = shift;
    sum[r] = bad ? 0.0f : 1.0f / total;
  }
  for (int key = 0; key < end_key; key += kKeys) {
    score_tile<kHeadDim>(args, q, k, first_row, key, shared, s);
#pragma unroll
    for (int i = 0; i < 32; ++i) s[i] = exp2_fast(s[i] - top[(i >> 1) & 1]) * sum[(i >> 1) & 1];
    add_squares<kHeadDim>(args, s, first_row, key, mass, shared);
    if (args.per_block > 16) {
      __syncthreads();
      join_squares<kHeadDim>(args, first_row, key, mass, shared);
    }
  }
}

template <int kHeadDim>
void launch_mass(const MassArgs& args, int q_heads, cudaStream_t stream) {
  constexpr int kBytes = static_cast<int>(sizeof(MassShared<kHeadDim>));
  LACUNA_CUDA_TRY(
      cudaFuncSetAttribute(block_mass_kernel<kHeadDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int rows = std::min(args.count * args.per_block, args.groups - args.first * args.per_block);
  const dim3 grid(static_cast<unsigned>(q_heads), static_cast<unsigned>((rows + kMassRows - 1) / kMassRows));
  block_mass_kernel<kHeadDim><<<grid, kThreads, kBytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace

void block_mass_cuda(const PrefillInput& input, const BlockMassParams& params, cudaStream_t stream) {
  const LayerInfo& info = input.info;
  MassArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(input.q.data);
  args.k = static_cast<const __nv_bfloat16*>(input.k.data);
  args.q_head_stride = input.q.head_stride, args.q_token_stride = input.q.token_stride;
  args.k_head_stride = input.k.head_stride, args.k_token_stride = input.k.token_stride;
  args.tokens = static_cast<int>(input.q.tokens);
  args.stride = params.stride;
  args.groups = (args.tokens + params.stride - 1) / params.stride;
  args.group = info.q_heads_total / info.kv_heads_total;
  args.head_base = info.q_head_begin;
  args.kv_base = info.kv_head_begin;
  // The estimate knows neither soft cap nor window.
  args.window = params.stride == 1 ? info.window : 0;
  args.softcap = params.stride == 1 ? info.softcap : 0.0f;
  args.scale = info.scale / static_cast<float>(params.stride);
  args.per_block = params.per_block;
  args.first = params.first;
  args.count = params.count;
  args.mass = params.mass;
  args.mass_stride = params.mass_stride;
  args.not_finite = params.not_finite;
  switch (info.head_dim) {
    case 64:
      return launch_mass<64>(args, info.q_heads, stream);
    case 96:
      return launch_mass<96>(args, info.q_heads, stream);
    case 128:
      return launch_mass<128>(args, info.q_heads, stream);
    case 256:
      return launch_mass<256>(args, info.q_heads, stream);
    default:
      throw_cuda(cudaErrorInvalidValue, "block mass: head_dim must be 64, 96, 128 or 256");
  }
}

}  // namespace lacuna
