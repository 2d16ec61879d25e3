// Eight bfloat16 at a time, sums over lanes in a fixed order, and the gated activations.
#pragma once

#include <cuda_bf16.h>

#include <cstring>

namespace lacuna {

inline constexpr int kVector = 8;  ///< bfloat16 in 16 bytes

__device__ inline void unpack(const uint4& raw, float (&x)[kVector]) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
}

__device__ inline unsigned pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  unsigned word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

__device__ inline uint4 pack(const float (&x)[kVector]) {
  uint4 raw;
  raw.x = pack_pair(x[0], x[1]);
  raw.y = pack_pair(x[2], x[3]);
  raw.z = pack_pair(x[4], x[5]);
  raw.w = pack_pair(x[6], x[7]);
  return raw;
}

/// Eight floats from an address that is a multiple of 16 bytes.
__device__ inline void load_floats(const float* from, float (&x)[kVector]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
  x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

/// Sum over groups of `width` neighbouring lanes (a power of two); every lane of the warp takes part.
__device__ inline float sum_of_lanes(float x, int width) {
  for (int distance = width / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

/// g times a sigmoid: of g for SiLU, of 2u for GELU by tanh, since (1 + tanh u) / 2 = sigmoid(2u).
template <bool kGelu>
__device__ inline float activate(float g) {
  if (kGelu) {
    constexpr float kTwiceRootTwoOverPi = 1.5957691216057308f;
    const float twice_u = kTwiceRootTwoOverPi * (g + 0.044715f * g * g * g);
    return g / (1.0f + expf(-twice_u));
  }
  return g / (1.0f + expf(-g));
}

}  // namespace lacuna
