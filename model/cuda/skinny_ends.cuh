// What becomes of a product of few rows (skinny.cu): the results and their way into memory.
#pragma once

#include "core/cuda.h"
#include "model/cuda/newest_slot.cuh"
#include "model/cuda/skinny.h"
#include "model/cuda/vector.cuh"

namespace lacuna::skinny {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kOctet = 8;  ///< Outputs of half an instruction.
/// Inputs of a warp's step: warp v takes inputs [64 (v + 8 i), 64 (v + 8 i) + 64) in its step i, so that a
/// row of weights is read in whole lines of 128 bytes.
constexpr int kSlab = 64, kStride = kWarps * kSlab, kSlabPieces = kSlab / kVector;

// A unit is two octets: octet(unit, 0) and octet(unit, 1) are their first rows
// of w; finish() takes the sums of row `i` of both.

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

}  // namespace lacuna::skinny
