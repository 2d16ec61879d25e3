// The selectors against plain loops: last-window scores and tile lists of diagonals.
#include <gtest/gtest.h>

#include <algorithm>

#include "attention/cuda/select_cuda.h"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;
using testing::HeadsOnDevice;

struct WindowCase {
  int head_dim = 128, q_heads = 4, kv_heads = 2;
  std::int64_t tokens = 700;
  int window = 256;
  int layer_window = 0;
  float softcap = 0.0f;
};

void check_window(const WindowCase& c) {
  SCOPED_TRACE(fmt::format("head_dim {} tokens {} window {} layer window {}", c.head_dim, c.tokens, c.window,
                           c.layer_window));
  const HeadsOnDevice q(c.q_heads, c.tokens, c.head_dim, true, 11);
  const HeadsOnDevice k(c.kv_heads, c.tokens, c.head_dim, true, 12);
  PrefillInput input;
  input.q = q.view, input.k = input.v = k.view;
  LayerInfo& info = input.info;
  info.q_heads = info.q_heads_total = c.q_heads;
  info.kv_heads = info.kv_heads_total = c.kv_heads;
  info.head_dim = c.head_dim;
  info.scale = 2.0f / std::sqrt(static_cast<float>(c.head_dim));
  info.window = c.layer_window;
  info.softcap = c.softcap;
  const auto n = static_cast<std::size_t>(c.tokens);
  const auto cells = n * static_cast<std::size_t>(c.q_heads);
  const DeviceVector<std::uint8_t> workspace(window_scores_workspace_bytes(info, c.tokens, c.window, true));
  std::vector<float> results[2][3];
  for (auto& result : results) {
    const DeviceVector<float> sum(cells), max(cells), diagonal(cells);
    const DeviceVector<int> bad(std::vector<int>(static_cast<std::size_t>(c.q_heads), 0));
    window_scores_cuda(input, c.window,
                       {.column_sum = sum.data(),
                        .column_max = max.data(),
                        .diagonal_sum = diagonal.data(),
                        .not_finite = bad.data()},
                       {workspace.data(), workspace.size()}, nullptr);
    result[0] = sum.download(), result[1] = max.download(), result[2] = diagonal.download();
    for (const int flag : bad.download()) EXPECT_EQ(flag, 0);
  }
  for (int i = 0; i < 3; ++i)
    ASSERT_EQ(std::memcmp(results[0][i].data(), results[1][i].data(), cells * 4), 0) << "two runs differ";

  const std::int64_t rows = std::min<std::int64_t>(c.window, c.tokens);
  std::vector<double> weights(n), sum(n), max(n), diagonal(n);
  for (int h = 0; h < c.q_heads; ++h) {
    std::fill(sum.begin(), sum.end(), 0.0);
    std::fill(max.begin(), max.end(), 0.0);
    std::fill(diagonal.begin(), diagonal.end(), 0.0);
    for (std::int64_t i = c.tokens - rows; i < c.tokens; ++i) {
      const std::int64_t first = c.layer_window > 0 ? std::max<std::int64_t>(0, i - c.layer_window + 1) : 0;
      double total = 0;
      for (std::int64_t j = first; j <= i; ++j) {
        double s = 0;
        for (int x = 0; x < c.head_dim; ++x)
          s += static_cast<double>(q.row(h, i)[x]) * k.row(info.kv_head_of(h), j)[x];
        s *= info.scale;
        if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
        total += weights[static_cast<std::size_t>(j)] = std::exp(s);
      }
      for (std::int64_t j = first; j <= i; ++j) {
        const double p = weights[static_cast<std::size_t>(j)] / total;
        sum[static_cast<std::size_t>(j)] += p;
        max[static_cast<std::size_t>(j)] = std::max(max[static_cast<std::size_t>(j)], p);
        diagonal[static_cast<std::size_t>(i - j)] += p;
      }
    }
    const std::vector<double>* expected[3] = {&sum, &max, &diagonal};
    for (int o = 0; o < 3; ++o)
      for (std::size_t t = 0; t < n; ++t)
        ASSERT_NEAR(results[0][o][static_cast<std::size_t>(h) * n + t], (*expected[o])[t],
                    2e-5 * (*expected[o])[t] + 1e-7)
            << "head " << h << " output " << o << " at " << t;
  }
}

TEST(WindowScoresCuda, MatchPlainLoops) {
  for (const int d : {64, 96, 128, 256}) check_window({.head_dim = d});
  for (const std::int64_t tokens : {1, 17, 255, 256, 257, 600})
    for (const int window : {1, 64, 300})
      check_window({.q_heads = 2, .kv_heads = 1, .tokens = tokens, .window = window});
  check_window({.tokens = 500, .window = 200, .layer_window = 90, .softcap = 20.0f});
  // Keys of several blocks, rows of several blocks.
  check_window({.head_dim = 64, .q_heads = 2, .kv_heads = 1, .tokens = 2200, .window = 150});
  // Few rows: the warps of a block work for several heads, not all of which there are.
  check_window({.head_dim = 64, .q_heads = 7, .kv_heads = 1, .tokens = 1100, .window = 20});
  check_window({.head_dim = 64, .q_heads = 10, .kv_heads = 2, .tokens = 513, .window = 33});
}

TEST(WindowScoresCuda, ReportsNotFinite) {
  const HeadsOnDevice q(2, 300, 64, false, 1), k(1, 300, 64, false, 2);
  const BFloat16 nan{0x7FC0};
  LACUNA_CUDA(cudaMemcpy(static_cast<BFloat16*>(q.view.data) + q.view.head_stride + 290 * q.view.token_stride,
                         &nan, 2, cudaMemcpyHostToDevice));
  PrefillInput input;
  input.q = q.view, input.k = input.v = k.view;
  input.info.q_heads = input.info.q_heads_total = 2;
  input.info.kv_heads = input.info.kv_heads_total = 1;
  input.info.head_dim = 64;
  const DeviceVector<std::uint8_t> workspace(window_scores_workspace_bytes(input.info, 300, 64, false));
  const DeviceVector<float> sum(std::size_t{600});
  const DeviceVector<int> bad(std::vector<int>{0, 0});
  window_scores_cuda(input, 64, {.column_sum = sum.data(), .not_finite = bad.data()},
                     {workspace.data(), workspace.size()}, nullptr);
  EXPECT_EQ(bad.download(), (std::vector<int>{0, 1}));
}

/// The released rule in the words of docs: offsets descending, extension by a whole 64.
std::vector<KeyRange> released_ranges(const std::vector<std::int32_t>& offsets, std::int64_t m,
                                      std::int64_t tokens, bool exact) {
  std::vector<KeyRange> ranges;
  std::int64_t start = -1, end = -1;
  const auto flush = [&] {
    if (start >= 0)
      ranges.push_back({static_cast<std::int32_t>(start),
                        static_cast<std::int32_t>(std::min({end, m + 64, tokens}) - start)});
  };
  for (auto o = offsets.rbegin(); o != offsets.rend(); ++o) {
    if (*o >= m + 64) continue;
    const std::int64_t from = std::max<std::int64_t>(0, m - *o), to = from + 64;
    if (start >= 0 && from <= end) {
      if (to > end) end = exact ? to : end + 64;
    } else {
      flush();
      start = from, end = to;
    }
  }
  flush();
  return ranges;
}

TEST(SlashListsCuda, ReleasedAndExact) {
  std::uint64_t state = 5;
  const auto random = [&](std::int64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(n));
  };
  // Sparse and dense heads, an empty one, and gaps about as wide as what ends ranges: 64, 128 and up to both.
  const std::int64_t gaps[3][2] = {{1, 130}, {62, 67}, {125, 131}};
  for (const std::int64_t tokens : {1, 64, 65, 1000, 5003, 20011})
    for (const bool exact : {false, true}) {
      constexpr int kHeads = 6;
      const auto stride = static_cast<std::size_t>(tokens);
      std::vector<std::int32_t> offsets(kHeads * stride, -7), columns(kHeads * stride, -7), offset_counts,
          column_counts;
      std::vector<std::vector<std::int32_t>> kept(kHeads);
      for (std::size_t h = 0; h < kHeads; ++h) {
        for (std::int64_t o = random(70); h >= 3 && o < tokens;
             o += gaps[h - 3][0] + random(gaps[h - 3][1] - gaps[h - 3][0] + 1)) {
          kept[h].push_back(static_cast<std::int32_t>(o));
          // Two side by side: the range ends 127 positions behind the second.
          if (h == 5 && random(2) == 0 && o + 1 < tokens) kept[h].push_back(static_cast<std::int32_t>(++o));
        }
        for (std::int64_t o = 0; h < 3 && o < tokens; ++o)
          if ((o < 64 && h < 2) || random(h == 0 ? 90 : tokens > 20000 ? 2 : 8) == 0)
            kept[h].push_back(static_cast<std::int32_t>(o));
        if (h == 2 && tokens > 64) kept[h].clear();
        std::copy(kept[h].begin(), kept[h].end(), offsets.begin() + static_cast<std::ptrdiff_t>(h * stride));
        std::copy(kept[h].rbegin(), kept[h].rend(),
                  columns.begin() + static_cast<std::ptrdiff_t>(h * stride));
        offset_counts.push_back(static_cast<std::int32_t>(kept[h].size()));
        column_counts.push_back(static_cast<std::int32_t>(kept[h].size()));
      }
      const DeviceVector<std::int32_t> d_offsets(offsets), d_columns(columns), d_oc(offset_counts),
          d_cc(column_counts);
      const std::int64_t blocks = (tokens + 63) / 64;
      const std::size_t capacity = static_cast<std::size_t>(kHeads * blocks * (tokens / 64 + 2));
      const DeviceVector<KeyRange> ranges(capacity);
      const DeviceVector<std::int64_t> begin(static_cast<std::size_t>(kHeads * blocks + 1)),
          column_begin(std::size_t{kHeads + 1});
      const DeviceVector<std::int32_t> out_columns(kHeads * stride);
      const DeviceVector<int> overflow(std::vector<int>{0});
      SlashListsParams params;
      params.columns = d_columns.data(), params.column_counts = d_cc.data();
      params.offsets = d_offsets.data(), params.offset_counts = d_oc.data();
      params.column_stride = params.offset_stride = tokens;
      params.heads = kHeads, params.tokens = tokens, params.exact = exact;
      TileListsOut out;
      out.ranges = ranges.data(), out.max_ranges = static_cast<std::int64_t>(capacity);
      out.range_begin = begin.data(), out.columns = out_columns.data(),
      out.column_begin = column_begin.data();
      out.overflow = overflow.data();
      const DeviceVector<std::uint8_t> memory(slash_lists_workspace_bytes(kHeads, tokens, tokens));
      const CudaWorkspace workspace{memory.data(), memory.size()};
      slash_lists_cuda(params, out, workspace, nullptr);
      const auto got = ranges.download();
      const auto got_begin = begin.download();
      EXPECT_EQ(overflow.download()[0], 0);
      std::size_t at = 0;
      for (std::size_t h = 0; h < kHeads; ++h)
        for (std::int64_t b = 0; b < blocks; ++b) {
          ASSERT_EQ(got_begin[h * static_cast<std::size_t>(blocks) + static_cast<std::size_t>(b)],
                    static_cast<std::int64_t>(at));
          for (const KeyRange& range : released_ranges(kept[h], b * 64, tokens, exact)) {
            ASSERT_EQ(got[at].start, range.start) << "tokens " << tokens << " head " << h << " block " << b;
            ASSERT_EQ(got[at].width, range.width) << "tokens " << tokens << " head " << h << " block " << b;
            ++at;
          }
        }
      const auto got_columns = out_columns.download();
      const auto got_column_begin = column_begin.download();
      for (std::size_t h = 0; h < kHeads; ++h)
        for (std::size_t i = 0; i < kept[h].size(); ++i)
          ASSERT_EQ(got_columns[static_cast<std::size_t>(got_column_begin[h]) + i],
                    kept[h][kept[h].size() - 1 - i]);
      // Too little room is told, not written past.
      if (at > 1) {
        out.max_ranges = static_cast<std::int64_t>(at) - 1;
        slash_lists_cuda(params, out, workspace, nullptr);
        EXPECT_EQ(overflow.download()[0], 1);
      }
    }
}

}  // namespace
}  // namespace lacuna
