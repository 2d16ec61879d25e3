// Prefill attention for a few query rows. The lanes of a vector are query rows, so running maximum, sum and
// rescaling are plain vector arithmetic, keys and values are read where they stand (one broadcast per
// element), and a gathered key costs the same as its neighbour.
#pragma once

#include "attention/cpu/kernels.h"
#include "attention/cpu/simd.h"

namespace lacuna::LACUNA_ISA {

inline constexpr float kLog2e = 1.44269504088896341f;
inline constexpr float kLowest = -3.402823466e38f;
/// Keys per step: scores (48 x 64 rows) and the values they meet stay in a 48 KiB first-level cache at
/// head_dim 64.
inline constexpr int kTileKeys = 48;
inline constexpr int kMaxVectors = LACUNA_LANES == 16 ? 4 : 2;
inline constexpr int kMaxHeadDim = 256;

/// Rows of accumulators that fit the register file beside their operands; divides kTileKeys.
template <int V>
inline constexpr int kGroup = V == 4 ? 6 : (LACUNA_LANES == 16 ? 8 : (V == 2 ? 6 : 8));

/// s[j][lane] = sum over c of key[j][c] * q[c][lane] for G keys, c ascending.
template <int V, int G>
static inline void score_group(const float* const* key, const float* q, int head_dim, float* s) {
  Vec acc[G][V] = {};
  const float* k[G];
  for (int j = 0; j < G; ++j) k[j] = key[j];
  for (int c = 0; c < head_dim; ++c) {
    Vec x[V];
    for (int i = 0; i < V; ++i) x[i] = load(q + (c * V + i) * kLanes);
    for (int j = 0; j < G; ++j) {
      const Vec y = splat(k[j][c]);
      for (int i = 0; i < V; ++i) acc[j][i] += x[i] * y;
    }
  }
  for (int j = 0; j < G; ++j) {
    for (int i = 0; i < V; ++i) store(s + (j * V + i) * kLanes, acc[j][i]);
  }
}

/// o[c][lane] = o[c][lane] * factor[lane] + sum over j of p[j][lane] * value[j][c] for G channels, j
/// ascending.
template <int V, int G>
static inline void value_group(const float* const* value, int channel, const float* p, int keys,
                               const Vec* factor, float* o) {
  Vec acc[G][V];
  for (int g = 0; g < G; ++g) {
    for (int i = 0; i < V; ++i) {
      acc[g][i] = load(o + (g * V + i) * kLanes);
      if (factor != nullptr) acc[g][i] *= factor[i];
    }
  }
  for (int j = 0; j < keys; ++j) {
    const float* y = value[j] + channel;
    Vec x[V];
    for (int i = 0; i < V; ++i) x[i] = load(p + (j * V + i) * kLanes);
    for (int g = 0; g < G; ++g) {
      const Vec b = splat(y[g]);
      for (int i = 0; i < V; ++i) acc[g][i] += x[i] * b;
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int i = 0; i < V; ++i) store(o + (g * V + i) * kLanes, acc[g][i]);
  }
}

template <int V>
static void add_values(const float* const* value, const float* p, int keys, const Vec* factor, int head_dim,
                       float* o) {
  constexpr int G = kGroup<V>;
  int c = 0;
  for (; c + G <= head_dim; c += G) value_group<V, G>(value, c, p, keys, factor, o + c * V * kLanes);
  if constexpr (G == 6) {  // head_dim is a multiple of 8, so 0, 2 or 4 channels remain
    if (c + 4 <= head_dim) {
      value_group<V, 4>(value, c, p, keys, factor, o + c * V * kLanes);
      c += 4;
    }
    if (c + 2 <= head_dim) value_group<V, 2>(value, c, p, keys, factor, o + c * V * kLanes);
  }
}

static float soft_cap(float s, float cap) { return cap * __builtin_tanhf(s / cap); }

/// Scores of keys a row may not see become -inf. Only keys at the causal edge or the window's edge are
/// touched.
template <int V>
static void mask_tile(const PrefillRows& w, const std::int32_t* keys, int count, float* s) {
  const auto first = static_cast<std::int32_t>(w.first_row);
  const std::int32_t last = first + w.rows - 1;
  const Vec hidden = splat(-__builtin_inff());
  for (int j = 0; j < count; ++j) {
    const std::int32_t key = keys[j];
    const bool causal_edge = key > first;
    const bool window_edge = w.window > 0 && key <= last - w.window;
    if (!causal_edge && !window_edge) continue;
    for (int i = 0; i < V; ++i) {
      float* at = s + (j * V + i) * kLanes;
      const IVec row = iota() + (first + i * kLanes);
      Vec x = load(at);
      if (causal_edge) x = select(row < splat(key), hidden, x);
      if (window_edge) x = select(row - splat(key) >= splat(std::int32_t{0}) + w.window, hidden, x);
      store(at, x);
    }
  }
}

template <int V>
static void pack_queries(const PrefillRows& w, float factor, float* q) {
  constexpr int kWidth = V * kLanes;
  for (int r = 0; r < w.rows; ++r) {
    const float* from = w.q + r * w.q_stride;
    for (int c = 0; c < w.head_dim; ++c) q[c * kWidth + r] = from[c] * factor;
  }
  for (int r = w.rows; r < kWidth; ++r) {  // idle lanes compute on zeros
    for (int c = 0; c < w.head_dim; ++c) q[c * kWidth + r] = 0;
  }
}

template <int V>
static void write_rows(const PrefillRows& w, const float* o, const Vec* sum) {
  constexpr int kWidth = V * kLanes;
  float total[kWidth];
  for (int i = 0; i < V; ++i) store(total + i * kLanes, sum[i]);
  for (int r = 0; r < w.rows; ++r) {
    float* to = w.out + r * w.out_stride;
    // A row that saw no key has the sum 0: its output is defined as zeros. NaN sums pass on.
    const float inverse = total[r] == 0.0f ? 0.0f : 1.0f / total[r];
    for (int c = 0; c < w.head_dim; ++c) to[c] = o[c * kWidth + r] * inverse;
  }
}

template <int V>
static void prefill_rows_v(const PrefillRows& w) {
  constexpr int kWidth = V * kLanes;
  constexpr int G = kGroup<V>;
  float* q = w.scratch;                // [head_dim][kWidth]
  float* s = q + w.head_dim * kWidth;  // [kTileKeys][kWidth]
  float* o = s + kTileKeys * kWidth;   // [head_dim][kWidth]
  for (int i = 0; i < w.head_dim * kWidth; ++i) o[i] = 0;
  // Softmax in base 2: the factor log2(e) goes into q, unless the soft cap needs natural scores first.
  pack_queries<V>(w, w.softcap > 0 ? w.scale : w.scale * kLog2e, q);

  Vec maximum[V], sum[V];
  for (int i = 0; i < V; ++i) {
    maximum[i] = splat(kLowest);  // finite, so that (-inf) - maximum stays -inf for masked scores
    sum[i] = Vec{};
  }
  const float *key_row[kTileKeys], *value_row[kTileKeys];
  for (std::int64_t begin = 0; begin < w.key_count; begin += kTileKeys) {
    const int count = static_cast<int>(w.key_count - begin < kTileKeys ? w.key_count - begin : kTileKeys);
    const std::int32_t* keys = w.keys + begin;
    for (int j = 0; j < count; ++j) {
      key_row[j] = w.k + keys[j] * w.k_stride;
      value_row[j] = w.v + keys[j] * w.v_stride;
    }
    const int padded = (count + G - 1) / G * G;
    for (int j = count; j < padded; ++j) key_row[j] = key_row[count - 1];  // scores that nobody reads
    for (int j = 0; j < padded; j += G) score_group<V, G>(key_row + j, q, w.head_dim, s + j * kWidth);
    if (w.softcap > 0) {
      for (int i = 0; i < count * kWidth; ++i) s[i] = soft_cap(s[i], w.softcap) * kLog2e;
    }
    mask_tile<V>(w, keys, count, s);

    Vec peak[V];
    for (int i = 0; i < V; ++i) peak[i] = maximum[i];
    for (int j = 0; j < count; ++j) {
      for (int i = 0; i < V; ++i) peak[i] = max(load(s + (j * V + i) * kLanes), peak[i]);
    }
    // Most tiles do not raise any row's maximum: their factor would be exactly 1.
    Vec factor[V];
    bool raised = false;
    for (int i = 0; i < V; ++i) {
      const IVec up = peak[i] > maximum[i];
      for (int lane = 0; lane < kLanes; ++lane) raised = raised || up[lane] != 0;
    }
    if (raised) {
      for (int i = 0; i < V; ++i) {
        factor[i] = exp2(maximum[i] - peak[i]);
        maximum[i] = peak[i];
        sum[i] *= factor[i];
      }
    }
    for (int j = 0; j < count; ++j) {
      for (int i = 0; i < V; ++i) {
        float* at = s + (j * V + i) * kLanes;
        const Vec p = exp2(load(at) - maximum[i]);
        store(at, p);
        sum[i] += p;
      }
    }
    add_values<V>(value_row, s, count, raised ? factor : nullptr, w.head_dim, o);
  }
  write_rows<V>(w, o, sum);
}

static std::int64_t prefill_scratch(int head_dim) {
  return static_cast<std::int64_t>(2 * head_dim + kTileKeys) * kMaxVectors * kLanes;
}

static void prefill_rows(const PrefillRows& w) {
  if (w.rows <= kLanes) return prefill_rows_v<1>(w);
  if (w.rows <= 2 * kLanes) return prefill_rows_v<2>(w);
  if constexpr (kMaxVectors == 4) prefill_rows_v<4>(w);
}

}  // namespace lacuna::LACUNA_ISA
