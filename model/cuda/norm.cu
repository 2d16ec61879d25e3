// RMS norm of rows, and of heads together with their rotation.
#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/newest_slot.cuh"
#include "model/cuda/vector.cuh"

namespace lacuna {

namespace {

constexpr int kMostThreads = 512;

/// Sum over the block, the same in every thread: lanes pairwise, then warps in order.
__device__ inline float sum_of_block(float x) {
  __shared__ float partial[kMostThreads / 32];
  x = sum_of_lanes(x, 32);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) sum += partial[w];
  return sum;
}

/// One block per row, which stays in registers between the sum and the scaling. kVectors 0: rows of any
/// length, read twice.
template <int kVectors>
__global__ void __launch_bounds__(kMostThreads) rms_norm_kernel(RmsNormArgs args) {
  let_next_start();
  wait_for_previous();
  const auto row = static_cast<std::int64_t>(blockIdx.x);
  const auto* x = reinterpret_cast<const uint4*>(args.x + row * args.d);
  auto* out = reinterpret_cast<uint4*>(args.out + row * args.d);
  const int vectors = args.d / kVector, threads = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  uint4 kept[kVectors > 0 ? kVectors : 1];
  float sum = 0.0f;
  const auto square = [&](const uint4& raw) {
    float values[kVector];
    unpack(raw, values);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum += values[e] * values[e];
  };
  if (kVectors > 0) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (first + v * threads < vectors) {
        kept[v] = x[first + v * threads];
        square(kept[v]);
      }
    }
  } else {
    for (int i = first; i < vectors; i += threads) square(x[i]);
  }
  const float scale = 1.0f / sqrtf(sum_of_block(sum) / static_cast<float>(args.d) + args.eps);
  const auto finish = [&](const uint4& raw, int i) {
    float values[kVector], weight[kVector];
    unpack(raw, values);
    load_floats(args.weight + i * kVector, weight);
#pragma unroll
    for (int e = 0; e < kVector; ++e) values[e] = values[e] * scale * weight[e];
    if (args.add) {
      float before[kVector];
      unpack(out[i], before);
#pragma unroll
      for (int e = 0; e < kVector; ++e) values[e] += before[e];
    }
    out[i] = pack(values);
  };
  if (kVectors > 0) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      if (first + v * threads < vectors) finish(kept[v], first + v * threads);
  } else {
    for (int i = first; i < vectors; i += threads) finish(x[i], i);
  }
}

/// Lanes that share one head: each holds eight channels of the first half and their partners of the second.
template <int kHeadDim>
inline constexpr int kLanesPerHead = kHeadDim == 64    ? 4
                                     : kHeadDim == 256 ? 16
                                                       : 8;

/// kCache: to args.to instead of in place, and v's heads behind those of k.
template <int kHeadDim, bool kCache>
__global__ void norm_and_rotate_kernel(const __grid_constant__ RotateToCacheArgs all) {
  let_next_start();
  wait_for_previous();
  constexpr int kLanes = kLanesPerHead<kHeadDim>, kHalf = kHeadDim / 2;
  const RotateArgs& args = all.rotate;
  const std::int64_t flat = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t item = flat / kLanes;
  const int channel = static_cast<int>(flat % kLanes) * kVector;
  const int heads = args.q_heads + args.k_heads * (kCache ? 2 : 1);
  const std::int64_t token = item / heads;
  const int head = static_cast<int>(item - token * heads);
  const bool live = token < args.tokens && channel < kHalf;
  const bool is_q = head < args.q_heads, is_v = head >= args.q_heads + args.k_heads;
  __nv_bfloat16* row =
      is_q ? args.q + head * args.q_head_stride + token * args.q_token_stride
           : args.k + (head - args.q_heads) * args.k_head_stride + token * args.k_token_stride;
  const __nv_bfloat16* from =
      is_v ? all.v + (head - args.q_heads - args.k_heads) * all.v_head_stride + token * all.v_token_stride
           : row;
  if (kCache && live) row = newest_row(all.to, token, head, args.q_heads, args.k_heads, kHeadDim);
  float a[kVector] = {}, b[kVector] = {};
  if (live) {
    unpack(*reinterpret_cast<const uint4*>(from + channel), a);
    unpack(*reinterpret_cast<const uint4*>(from + channel + kHalf), b);
  }
  if (args.q_weight != nullptr || args.k_weight != nullptr) {  // every lane takes part in the sum
    float sum = 0.0f;
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum += a[e] * a[e] + b[e] * b[e];
    sum = sum_of_lanes(sum, kLanes);
    const float* weight = is_q ? args.q_weight : args.k_weight;
    if (live && weight != nullptr && !is_v) {
      const float scale = 1.0f / sqrtf(sum / static_cast<float>(kHeadDim) + args.eps);
      float wa[kVector], wb[kVector];
      load_floats(weight + channel, wa);
      load_floats(weight + channel + kHalf, wb);
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        a[e] = a[e] * scale * wa[e];
        b[e] = b[e] * scale * wb[e];
      }
    }
  }
  if (!live || row == nullptr) return;
  if (!is_v && args.cos != nullptr) {
    const std::int64_t at = static_cast<std::int64_t>(args.positions[token]) * kHalf + channel;
    float c[kVector], s[kVector];
    load_floats(args.cos + at, c);
    load_floats(args.sin + at, s);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const float x = a[e], y = b[e];
      a[e] = x * c[e] - y * s[e];
      b[e] = y * c[e] + x * s[e];
    }
  }
  *reinterpret_cast<uint4*>(row + channel) = pack(a);
  *reinterpret_cast<uint4*>(row + channel + kHalf) = pack(b);
}

template <int kHeadDim, bool kCache>
void launch_rotate(const RotateToCacheArgs& args, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const RotateArgs& rotate = args.rotate;
  const int heads = rotate.q_heads + rotate.k_heads * (kCache ? 2 : 1);
  const std::int64_t threads = rotate.tokens * heads * kLanesPerHead<kHeadDim>;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  launch_dependent(norm_and_rotate_kernel<kHeadDim, kCache>, blocks, kThreads, 0, stream, args);
}

template <bool kCache>
void launch_rotate_any(const RotateToCacheArgs& args, cudaStream_t stream) {
  if (args.rotate.tokens == 0) return;
  switch (args.rotate.head_dim) {
    case 64:
      return launch_rotate<64, kCache>(args, stream);
    case 96:
      return launch_rotate<96, kCache>(args, stream);
    case 128:
      return launch_rotate<128, kCache>(args, stream);
    case 256:
      return launch_rotate<256, kCache>(args, stream);
    default:
      throw_cuda(cudaErrorInvalidValue, "norm_and_rotate: head_dim is not 64, 96, 128 or 256");
  }
}

}  // namespace

void launch_rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.n == 0) return;
  const int vectors = args.d / kVector;
  const int per_thread = (vectors + kMostThreads - 1) / kMostThreads;
  const int needed = per_thread > 4 ? kMostThreads : (vectors + per_thread - 1) / per_thread;
  const int threads = (needed + 31) / 32 * 32;
  const auto rows = static_cast<unsigned>(args.n);
  if (per_thread <= 1) {
    launch_dependent(rms_norm_kernel<1>, rows, threads, 0, stream, args);
  } else if (per_thread <= 2) {
    launch_dependent(rms_norm_kernel<2>, rows, threads, 0, stream, args);
  } else if (per_thread <= 4) {
    launch_dependent(rms_norm_kernel<4>, rows, threads, 0, stream, args);
  } else {
    launch_dependent(rms_norm_kernel<0>, rows, threads, 0, stream, args);
  }
}

void launch_norm_and_rotate(const RotateArgs& args, cudaStream_t stream) {
  launch_rotate_any<false>({.rotate = args}, stream);
}

void launch_rotate_to_cache(const RotateToCacheArgs& args, cudaStream_t stream) {
  launch_rotate_any<true>(args, stream);
}

}  // namespace lacuna
