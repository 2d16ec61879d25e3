// Short vectors of floats for the CPU kernels, written once and compiled once per instruction set.
// Include after defining LACUNA_ISA (a namespace name) and LACUNA_LANES (floats per vector), and include
// nothing else of ours in those files: code that other files could share must not be compiled with their
// instruction set flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lacuna::LACUNA_ISA {

inline constexpr int kLanes = LACUNA_LANES;

using Vec = float __attribute__((vector_size(4 * LACUNA_LANES)));
using IVec = std::int32_t __attribute__((vector_size(4 * LACUNA_LANES)));
using VecUnaligned = float __attribute__((vector_size(4 * LACUNA_LANES), aligned(4), may_alias));

static inline Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
static inline void store(float* p, Vec x) { *reinterpret_cast<VecUnaligned*>(p) = x; }
static inline Vec splat(float x) { return x - Vec{}; }
static inline IVec splat(std::int32_t x) { return x - IVec{}; }

/// 0, 1, 2, ... lane by lane.
static inline IVec iota() {
  IVec v{};
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

/// mask ? a : b per lane; mask is all ones or all zeros.
static inline Vec select(IVec mask, Vec a, Vec b) { return mask ? a : b; }
/// The larger one; b when a is NaN.
static inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }

static inline float reduce_max(Vec x) {
  float m = x[0];
  for (int i = 1; i < kLanes; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

/// Sum of the lanes as a balanced tree: the same order for every caller.
static inline float reduce_sum(Vec x) {
  float lane[LACUNA_LANES];
  store(lane, x);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

/// 2^x for x <= 127. Relative error below 1.2e-7 (polynomial 2.0e-9 plus rounding), exactly 1 at 0, exactly 0
/// below -126.5 (so results are never subnormal), NaN for NaN. 2^f = 1 + f g(f) for f in [-1/2, 1/2], g
/// minimax of degree 5.
static inline Vec exp2(Vec x) {
  const Vec low = splat(-127.0f);
  x = select(x < low, low, x);           // NaN passes
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  const IVec n = reinterpret_cast<IVec>(shifted) - splat(std::int32_t{0x4B400000});
  Vec g = splat(0.00015353362f);
  g = g * f + splat(0.00133988747f);
  g = g * f + splat(0.00961843736f);
  g = g * f + splat(0.0555033247f);
  g = g * f + splat(0.240226479f);
  g = g * f + splat(0.693147203f);
  const Vec power = reinterpret_cast<Vec>((n + 127) << 23);
  return (g * f + 1.0f) * power;
}

}  // namespace lacuna::LACUNA_ISA
