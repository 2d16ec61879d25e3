// Decode attention over pages. The lanes of a vector are channels; the scores of kLanes keys are summed
// across lanes together, by a tree of shuffles. The query heads that share a kv head pass over each page
// while it is in cache.
#pragma once

#include "attention/cpu/kernels.h"
#include "attention/cpu/simd.h"

namespace lacuna::LACUNA_ISA {

inline constexpr int kPage = 16;      // kPageTokens; checked in decode_cpu.cpp
inline constexpr int kTilePages = 8;  // 128 tokens per softmax step
inline constexpr int kTileTokens = kPage * kTilePages;

/// Adds pairs of neighbouring lanes of (a, b): one level of the tree that sums many vectors across lanes at
/// once.
static inline Vec add_pairs(Vec a, Vec b) {
  IVec even{}, odd{};
  for (int i = 0; i < kLanes; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}

/// s[j] = q . k[j] for kLanes consecutive keys.
static inline void dot_keys(const float* q, const float* k, int head_dim, float* s) {
  Vec acc[LACUNA_LANES] = {};
  int c = 0;
  for (; c + kLanes <= head_dim; c += kLanes) {
    const Vec x = load(q + c);
    for (int j = 0; j < kLanes; ++j) acc[j] += x * load(k + j * head_dim + c);
  }
  for (int n = kLanes; n > 1; n /= 2) {
    for (int j = 0; j < n / 2; ++j) acc[j] = add_pairs(acc[2 * j], acc[2 * j + 1]);
  }
  Vec total = acc[0];
  for (; c < head_dim; ++c) {  // head_dim is a multiple of 8: at most 8 channels with 16 lanes
    for (int j = 0; j < kLanes; ++j) total[j] += q[c] * k[j * head_dim + c];
  }
  store(s, total);
}

/// out[c] = out[c] * factor + sum over j of p[j] * value[j][c], for R query rows, C vectors of channels.
template <int R, int C>
static inline void add_decode_values(const float* const* value, int tokens, int channel, const float* p,
                                     const float* factor, float* out, int head_dim) {
  Vec acc[R][C];
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < C; ++i) acc[r][i] = load(out + r * head_dim + channel + i * kLanes) * factor[r];
  }
  for (int j = 0; j < tokens; ++j) {
    const float* v = value[j] + channel;
    Vec y[C];
    for (int i = 0; i < C; ++i) y[i] = load(v + i * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(p[r * kTileTokens + j]);
      for (int i = 0; i < C; ++i) acc[r][i] += x * y[i];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < C; ++i) store(out + r * head_dim + channel + i * kLanes, acc[r][i]);
  }
}

template <int R>
static void add_decode_rows(const float* const* value, int tokens, const float* p, const float* factor,
                            float* out, int head_dim) {
  int c = 0;
  for (; c + 4 * kLanes <= head_dim; c += 4 * kLanes) {
    add_decode_values<R, 4>(value, tokens, c, p, factor, out, head_dim);
  }
  for (; c + kLanes <= head_dim; c += kLanes)
    add_decode_values<R, 1>(value, tokens, c, p, factor, out, head_dim);
  for (; c < head_dim; ++c) {
    for (int r = 0; r < R; ++r) {
      float sum = out[r * head_dim + c] * factor[r];
      for (int j = 0; j < tokens; ++j) sum += p[r * kTileTokens + j] * value[j][c];
      out[r * head_dim + c] = sum;
    }
  }
}

/// Scores of one query row become weights; returns the factor for what was summed before.
static float decode_softmax(float* s, int tokens, float* maximum, float* sum) {
  Vec peak = splat(kLowest);
  for (int j = 0; j < tokens; j += kLanes) peak = max(load(s + j), peak);
  float top = reduce_max(peak);
  if (*maximum > top) top = *maximum;
  Vec total{};
  for (int j = 0; j < tokens; j += kLanes) {
    const Vec p = exp2(load(s + j) - splat(top));
    store(s + j, p);
    total += p;
  }
  const float factor = exp2(splat(*maximum - top))[0];
  *sum = *sum * factor + reduce_sum(total);
  *maximum = top;
  return factor;
}

/// Pages of one softmax step: where their keys and values stand, and how many tokens of each are wanted.
struct DecodeTile {
  const float* value[kTileTokens];
  int tokens = 0;  // a multiple of kLanes slots is scored; slots past `tokens` are -inf
};

static void decode_run(const DecodeRun& w) {
  const float factor_q = w.softcap > 0 ? w.scale : w.scale * kLog2e;
  const int head_dim = w.head_dim;
  constexpr int kMaxRows = 64;
  // Callers pass at most kMaxRows query rows (checked there).
  alignas(64) float s[kMaxRows * kTileTokens];
  alignas(64) float q[kMaxHeadDim];
  float factor[kMaxRows];
  for (int r = 0; r < w.q_rows; ++r) {
    w.maximum[r] = kLowest;
    w.sum[r] = 0;
    for (int c = 0; c < head_dim; ++c) w.out[r * head_dim + c] = 0;
  }
  for (std::int64_t begin = 0; begin < w.page_count; begin += kTilePages) {
    const int pages = static_cast<int>(w.page_count - begin < kTilePages ? w.page_count - begin : kTilePages);
    const float* value[kTileTokens];
    const float* key_page[kTilePages];
    int first_slot[kTilePages], last_slot[kTilePages];
    for (int p = 0; p < pages; ++p) {
      const std::int64_t page = w.pages != nullptr ? w.pages[begin + p] : w.first_page + begin + p;
      const float* at = w.pool + w.page_ids[page] * w.page_elements;
      key_page[p] = at;
      const std::int64_t token = page * kPage;
      first_slot[p] = static_cast<int>(w.token_begin > token ? w.token_begin - token : 0);
      last_slot[p] = static_cast<int>(w.token_end < token + kPage ? w.token_end - token : kPage);
      // Slots outside stay unread: their weight is zero, and their pointer repeats a token that exists.
      for (int j = 0; j < kPage; ++j) {
        const int slot = j < first_slot[p] ? first_slot[p] : (j < last_slot[p] ? j : last_slot[p] - 1);
        value[p * kPage + j] = at + (kPage + slot) * head_dim;
      }
    }
    const int tokens = pages * kPage;
    for (int r = 0; r < w.q_rows; ++r) {
      float* row = s + r * kTileTokens;
      for (int c = 0; c < head_dim; ++c) q[c] = w.q[r * head_dim + c] * factor_q;
      for (int p = 0; p < pages; ++p) {
        for (int j = 0; j < kPage; j += kLanes)
          dot_keys(q, key_page[p] + j * head_dim, head_dim, row + p * kPage + j);
        for (int j = 0; j < kPage; ++j) {
          float* x = row + p * kPage + j;
          if (w.softcap > 0) *x = soft_cap(*x, w.softcap) * kLog2e;
          if (j < first_slot[p] || j >= last_slot[p]) *x = -__builtin_inff();
        }
      }
      factor[r] = decode_softmax(row, tokens, w.maximum + r, w.sum + r);
    }
    int r = 0;
    for (; r + 4 <= w.q_rows; r += 4) {
      add_decode_rows<4>(value, tokens, s + r * kTileTokens, factor + r, w.out + r * head_dim, head_dim);
    }
    for (; r < w.q_rows; ++r) {
      add_decode_rows<1>(value, tokens, s + r * kTileTokens, factor + r, w.out + r * head_dim, head_dim);
    }
  }
}

}  // namespace lacuna::LACUNA_ISA
