// What selectors need: score matrices, softmax rows, sums, page bounds.
#pragma once

#include "attention/cpu/kernels.h"
#include "attention/cpu/simd.h"

namespace lacuna::LACUNA_ISA {

inline constexpr int kPackVectors = kMaxVectors;
inline constexpr int kPackKeys = kPackVectors * kLanes;  // keys per packed panel

static std::int64_t pack_size(int k) { return static_cast<std::int64_t>(k) * kPackKeys; }

/// c[G][kPackKeys] = alpha * a[G][k] x panel[k][kPackKeys].
template <int G>
static inline void gemm_group(const float* a, std::int64_t lda, const float* panel, int k, float alpha,
                              float* c, std::int64_t ldc, int columns) {
  Vec acc[G][kPackVectors] = {};
  for (int x = 0; x < k; ++x) {
    Vec y[kPackVectors];
    for (int i = 0; i < kPackVectors; ++i) y[i] = load(panel + (x * kPackVectors + i) * kLanes);
    for (int g = 0; g < G; ++g) {
      const Vec b = splat(a[g * lda + x]);
      for (int i = 0; i < kPackVectors; ++i) acc[g][i] += b * y[i];
    }
  }
  for (int g = 0; g < G; ++g) {
    float row[kPackKeys];
    float* to = columns == kPackKeys ? c + g * ldc : row;
    for (int i = 0; i < kPackVectors; ++i) store(to + i * kLanes, acc[g][i] * alpha);
    if (columns != kPackKeys) {
      for (int j = 0; j < columns; ++j) c[g * ldc + j] = row[j];
    }
  }
}

/// One level of the transposition of kLanes vectors: swaps the blocks of W lanes off the diagonal of every 2W
/// x 2W.
template <int W>
static inline void swap_blocks(Vec* rows) {
  if constexpr (W < kLanes) {
    IVec upper{}, lower{};
    for (int lane = 0; lane < kLanes; ++lane) {
      upper[lane] = (lane & W) != 0 ? kLanes + lane - W : lane;
      lower[lane] = (lane & W) != 0 ? kLanes + lane : lane + W;
    }
    for (int i = 0; i < kLanes; ++i) {
      if ((i & W) != 0) continue;
      const Vec x = rows[i], y = rows[i + W];
      rows[i] = __builtin_shuffle(x, y, upper);
      rows[i + W] = __builtin_shuffle(x, y, lower);
    }
    swap_blocks<2 * W>(rows);
  }
}

/// packed[c][key] = b[key][c]; absent keys are zero.
static void pack_keys(const float* b, std::int64_t ldb, int keys, int k, float* packed) {
  for (int first = 0; first < kPackKeys; first += kLanes) {
    int c = 0;
    if (first + kLanes <= keys) {
      for (; c + kLanes <= k; c += kLanes) {
        Vec rows[LACUNA_LANES];
        for (int t = 0; t < kLanes; ++t) rows[t] = load(b + (first + t) * ldb + c);
        swap_blocks<1>(rows);
        for (int x = 0; x < kLanes; ++x) store(packed + (c + x) * kPackKeys + first, rows[x]);
      }
    }
    for (int t = first; t < first + kLanes; ++t) {
      for (int x = c; x < k; ++x) packed[x * kPackKeys + t] = t < keys ? b[t * ldb + x] : 0.0f;
    }
  }
}

static void gemm_nt(std::int64_t m, std::int64_t n, int k, float alpha, const float* a, std::int64_t lda,
                    const float* b, std::int64_t ldb, float* c, std::int64_t ldc, float* b_packed) {
  for (std::int64_t j = 0; j < n; j += kPackKeys) {
    const int columns = static_cast<int>(n - j < kPackKeys ? n - j : kPackKeys);
    pack_keys(b + j * ldb, ldb, columns, k, b_packed);
    std::int64_t i = 0;
    for (; i + 6 <= m; i += 6)
      gemm_group<6>(a + i * lda, lda, b_packed, k, alpha, c + i * ldc + j, ldc, columns);
    if (i + 4 <= m) {
      gemm_group<4>(a + i * lda, lda, b_packed, k, alpha, c + i * ldc + j, ldc, columns);
      i += 4;
    }
    if (i + 2 <= m) {
      gemm_group<2>(a + i * lda, lda, b_packed, k, alpha, c + i * ldc + j, ldc, columns);
      i += 2;
    }
    if (i < m) gemm_group<1>(a + i * lda, lda, b_packed, k, alpha, c + i * ldc + j, ldc, columns);
  }
}

static float maximum(const float* x, std::int64_t n) {
  Vec peak = splat(kLowest);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) peak = max(load(x + i), peak);
  float top = reduce_max(peak);
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

static double exp_sum(float* x, std::int64_t n, float top) {
  double sum = 0;
  std::int64_t i = 0;
  // Sums of 256 weights stay in float lanes, then join a double: the error stays near one float rounding.
  for (; i + kLanes <= n;) {
    Vec part{};
    for (int step = 0; step < 16 && i + kLanes <= n; ++step, i += kLanes) {
      const Vec p = exp2((load(x + i) - splat(top)) * splat(kLog2e));
      store(x + i, p);
      part += p;
    }
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(part[lane]);
  }
  if (i < n) {
    float rest[LACUNA_LANES];
    for (int lane = 0; lane < kLanes; ++lane) rest[lane] = i + lane < n ? x[i + lane] : kLowest;
    store(rest, exp2((load(rest) - splat(top)) * splat(kLog2e)));
    for (int lane = 0; i < n; ++i, ++lane) {
      x[i] = rest[lane];
      sum += static_cast<double>(rest[lane]);
    }
  }
  return sum;
}

static void add_scaled(double* to, const float* x, std::int64_t n, float factor) {
  for (std::int64_t i = 0; i < n; ++i) to[i] += static_cast<double>(x[i] * factor);
}

static void max_scaled(float* to, const float* x, std::int64_t n, float factor) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float y = x[i] * factor;
    to[i] = y > to[i] ? y : to[i];
  }
}

static void page_bounds(const float* bounds, std::int64_t pages, int dim, const float* plus,
                        const float* minus, float* out) {
  for (std::int64_t p = 0; p < pages; ++p) {
    const float* low = bounds + p * 2 * dim;
    const float* high = low + dim;
    Vec a{}, b{};
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) {
      a += load(plus + c) * load(high + c);
      b += load(minus + c) * load(low + c);
    }
    float sum = reduce_sum(a + b);
    for (; c < dim; ++c) sum += plus[c] * high[c] + minus[c] * low[c];
    out[p] = sum;
  }
}

}  // namespace lacuna::LACUNA_ISA
