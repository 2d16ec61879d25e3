// Embedding, gated activation, residual sum, logits: one thread for eight elements.
#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/kernels.h"
#include "model/cuda/vector.cuh"

namespace lacuna {

namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(EmbedArgs args) {
  let_next_start();
  wait_for_previous();
  const auto i = static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t row = args.ids[i] - args.first_row;
  auto* out = reinterpret_cast<uint4*>(args.out + i * args.hidden);
  const bool mine = row >= 0 && row < args.rows;
  const auto* from = reinterpret_cast<const uint4*>(args.table + (mine ? row : 0) * args.hidden);
  for (int c = static_cast<int>(threadIdx.x); c < args.hidden / kVector; c += static_cast<int>(blockDim.x)) {
    uint4 raw = {0, 0, 0, 0};
    if (mine) {
      raw = from[c];
      if (args.scale != 1.0f) {
        float x[kVector];
        unpack(raw, x);
#pragma unroll
        for (int e = 0; e < kVector; ++e) x[e] *= args.scale;
        raw = pack(x);
      }
    }
    out[c] = raw;
  }
}

template <bool kGelu>
__global__ void gated_activation_kernel(const __nv_bfloat16* gate_up, std::int64_t m, __nv_bfloat16* out) {
  let_next_start();
  wait_for_previous();
  const auto row = static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kVector;
  if (c >= m) return;
  const __nv_bfloat16* gate = gate_up + row * 2 * m + c;
  float g[kVector], u[kVector];
  unpack(*reinterpret_cast<const uint4*>(gate), g);
  unpack(*reinterpret_cast<const uint4*>(gate + m), u);
#pragma unroll
  for (int e = 0; e < kVector; ++e) g[e] = activate<kGelu>(g[e]) * u[e];
  *reinterpret_cast<uint4*>(out + row * m + c) = pack(g);
}

__global__ void add_kernel(const __nv_bfloat16* x, __nv_bfloat16* y, std::int64_t count) {
  let_next_start();
  wait_for_previous();
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kVector;
  if (i + kVector <= count) {
    float a[kVector], b[kVector];
    unpack(*reinterpret_cast<const uint4*>(x + i), a);
    unpack(*reinterpret_cast<const uint4*>(y + i), b);
#pragma unroll
    for (int e = 0; e < kVector; ++e) b[e] += a[e];
    *reinterpret_cast<uint4*>(y + i) = pack(b);
    return;
  }
  for (std::int64_t e = i; e < count; ++e)
    y[e] = __float2bfloat16_rn(__bfloat162float(y[e]) + __bfloat162float(x[e]));
}

__global__ void finish_logits_kernel(float* y, const __nv_bfloat16* bias, float cap, std::int64_t columns) {
  let_next_start();
  wait_for_previous();
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  float* at = y + static_cast<std::int64_t>(blockIdx.x) * columns + c;
  float value = *at;
  if (bias != nullptr) value += __bfloat162float(bias[c]);
  *at = cap > 0.0f ? cap * tanhf(value / cap) : value;
}

__global__ void to_float_kernel(const __nv_bfloat16* from, float* to, std::int64_t count) {
  let_next_start();
  wait_for_previous();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = __bfloat162float(from[i]);
}

__global__ void to_bfloat16_kernel(const float* from, __nv_bfloat16* to, std::int64_t count) {
  let_next_start();
  wait_for_previous();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = __float2bfloat16_rn(from[i]);
}

unsigned blocks_for(std::int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

}  // namespace

void launch_embed(const EmbedArgs& args, cudaStream_t stream) {
  if (args.n == 0) return;
  launch_dependent(embed_kernel, static_cast<unsigned>(args.n), kThreads, 0, stream, args);
}

void launch_gated_activation(const __nv_bfloat16* gate_up, bool gelu, std::int64_t n, std::int64_t m,
                             __nv_bfloat16* out, cudaStream_t stream) {
  if (n == 0) return;
  const dim3 grid(static_cast<unsigned>(n), blocks_for(m / kVector));
  if (gelu) {
    launch_dependent(gated_activation_kernel<true>, grid, kThreads, 0, stream, gate_up, m, out);
  } else {
    launch_dependent(gated_activation_kernel<false>, grid, kThreads, 0, stream, gate_up, m, out);
  }
}

void launch_add(const __nv_bfloat16* x, __nv_bfloat16* y, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch_dependent(add_kernel, blocks_for((count + kVector - 1) / kVector), kThreads, 0, stream, x, y, count);
}

void launch_finish_logits(float* y, const __nv_bfloat16* bias, float cap, std::int64_t n,
                          std::int64_t columns, cudaStream_t stream) {
  if (n == 0 || (bias == nullptr && cap <= 0.0f)) return;
  const dim3 grid(static_cast<unsigned>(n), blocks_for(columns));
  launch_dependent(finish_logits_kernel, grid, kThreads, 0, stream, y, bias, cap, columns);
}

void launch_to_float(const __nv_bfloat16* from, float* to, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch_dependent(to_float_kernel, blocks_for(count), kThreads, 0, stream, from, to, count);
}

void launch_to_bfloat16(const float* from, __nv_bfloat16* to, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch_dependent(to_bfloat16_kernel, blocks_for(count), kThreads, 0, stream, from, to, count);
}

}  // namespace lacuna
