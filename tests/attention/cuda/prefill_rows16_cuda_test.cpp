// The prefill kernels for row blocks of 16 and 32 beside plain loops, where those of prefill_cuda_test.cpp do
// not reach: lists longer than what is expanded at a time, gaps, every kind of edge, scores that keep rising.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;
using testing::HeadsOnDevice;
using testing::ListsOnDevice;

struct Case {
  int head_dim = 64, q_heads = 2, kv_heads = 1;
  std::int64_t tokens = 300;
  int row_block = 16;
  int window = 0;
  float softcap = 0.0f, q_scale = 1.0f;
  /// Adds the ranges of a row block that begins at `row`; what reaches past the diagonal is cut.
  std::function<void(int head, std::int64_t row, std::vector<KeyRange>& to)> ranges{};
  std::vector<std::vector<std::int32_t>> columns{};
};

KeyRange range(std::int64_t start, std::int64_t width) {
  return {static_cast<std::int32_t>(start), static_cast<std::int32_t>(width)};
}

TileLists make_lists(const Case& c) {
  TileLists lists;
  lists.heads = c.q_heads, lists.tokens = c.tokens, lists.row_block = c.row_block;
  lists.range_begin.push_back(0);
  for (int h = 0; h < c.q_heads; ++h)
    for (std::int64_t b = 0; b < lists.row_blocks(); ++b) {
      c.ranges(h, b * c.row_block, lists.ranges);
      lists.range_begin.push_back(static_cast<std::int64_t>(lists.ranges.size()));
    }
  if (!c.columns.empty()) {
    lists.column_begin.push_back(0);
    for (const auto& columns : c.columns) {
      lists.columns.insert(lists.columns.end(), columns.begin(), columns.end());
      lists.column_begin.push_back(static_cast<std::int64_t>(lists.columns.size()));
    }
  }
  return lists;
}

void check(const Case& c) {
  SCOPED_TRACE(fmt::format("head_dim {} heads {}/{} tokens {} row_block {} window {} softcap {}", c.head_dim,
                           c.q_heads, c.kv_heads, c.tokens, c.row_block, c.window, c.softcap));
  const HeadsOnDevice q(c.q_heads, c.tokens, c.head_dim, true, 11, c.q_scale);
  const HeadsOnDevice k(c.kv_heads, c.tokens, c.head_dim, true, 12);
  const HeadsOnDevice v(c.kv_heads, c.tokens, c.head_dim, false, 13);
  PrefillInput input;
  input.q = q.view, input.k = k.view, input.v = v.view;
  LayerInfo& info = input.info;
  info.q_heads = info.q_heads_total = c.q_heads;
  info.kv_heads = info.kv_heads_total = c.kv_heads;
  info.head_dim = c.head_dim;
  info.scale = 1.3f / std::sqrt(static_cast<float>(c.head_dim));
  info.softcap = c.softcap;
  info.window = c.window;
  const TileLists lists = make_lists(c);
  const ListsOnDevice device(lists);
  const DeviceVector<std::uint8_t> workspace(prefill_workspace_bytes(device.lists, c.head_dim));
  const auto count = static_cast<std::size_t>(c.q_heads * c.tokens * c.head_dim);

  std::vector<CudaPath> paths{CudaPath::kPortable};
  if (current_cuda_device().capability == 90) paths.push_back(CudaPath::kHopper);
  for (const CudaPath path : paths) {
    SCOPED_TRACE(path == CudaPath::kHopper ? "hopper" : "portable");
    std::vector<BFloat16> results[2];
    for (auto& result : results) {
      const DeviceVector<BFloat16> memory(count);  // NaN until written
      HeadsView out = q.view;
      out.data = memory.data();
      out.token_stride = c.head_dim;
      out.head_stride = c.tokens * c.head_dim;
      attention_prefill_cuda(input, device.lists, out, {workspace.data(), workspace.size()}, nullptr, path);
      result = memory.download();
    }
    ASSERT_EQ(std::memcmp(results[0].data(), results[1].data(), count * 2), 0) << "two runs differ";
    std::vector<double> expected, bound;
    std::vector<char> visited(static_cast<std::size_t>(c.tokens));
    double worst = 0;
    std::string where;
    for (int h = 0; h < c.q_heads; ++h) {
      const int kv = info.kv_head_of(h);
      for (std::int64_t t = 0; t < c.tokens && !std::isnan(worst); ++t) {
        if (t % c.row_block == 0) {
          std::fill(visited.begin(), visited.end(), 0);
          for (const KeyRange& r : lists.ranges_of(h, t / c.row_block))
            for (std::int64_t j = r.start; j < std::min<std::int64_t>(c.tokens, r.start + r.width); ++j)
              visited[static_cast<std::size_t>(j)] = 1;
          if (!c.columns.empty())
            for (const std::int32_t j : c.columns[static_cast<std::size_t>(h)])
              visited[static_cast<std::size_t>(j)] = 1;
        }
        testing::plain_attention(
            q.row(h, t), info, t + 1,
            [&](std::int64_t j) {
              return visited[static_cast<std::size_t>(j)] != 0 && (c.window == 0 || j > t - c.window);
            },
            [&](std::int64_t j) { return k.row(kv, j); }, [&](std::int64_t j) { return v.row(kv, j); },
            expected, bound);
        for (std::size_t i = 0; i < static_cast<std::size_t>(c.head_dim); ++i) {
          const float got = to_float(
              results[0]
                     [static_cast<std::size_t>(h * c.tokens + t) * static_cast<std::size_t>(c.head_dim) + i]);
          const double error = std::abs(got - expected[i]) / bound[i];
          if (!(error <= worst)) {
            worst = error;
            where = fmt::format("head {} row {} channel {}: got {}, expected {}", h, t, i, got, expected[i]);
          }
        }
      }
    }
    EXPECT_LE(worst, 1.0) << where;
  }
}

TEST(PrefillRows16Cuda, ListsLongerThanOneExpansion) {
  // 2048 keys are expanded at a time, 32 ranges of a list at once.
  Case c{.tokens = 2490};
  c.ranges = [](int head, std::int64_t row, std::vector<KeyRange>& to) {
    const std::int64_t block = row / 16;
    if (block % 11 == 3) return;  // empty
    if (block % 11 == 4) {        // more ranges in one expansion than a warp reads at once
      for (std::int64_t at = 0; at <= row; at += 32) to.push_back(range(at + 16 * head, 16));
    } else if (block % 11 == 5) {  // single keys
      for (std::int64_t at = block % 7; at <= row; at += 61) to.push_back(range(at, 1));
    } else if (block % 11 == 6) {  // one range over the boundary, and one long after it
      to.push_back(range(1990, 100));
      to.push_back(range(2300, 190));
    } else if (block % 11 == 7) {  // nothing before the second expansion
      to.push_back(range(2048, 16));
    } else {
      to.push_back(range(0, 16));
      to.push_back(range(row, 16));
    }
  };
  check(c);
}

TEST(PrefillRows16Cuda, OneListInTheWholeBlock) {
  // All other slices pass over every stage; the first and the last slice of a block in turn.
  for (const std::int64_t busy : {0, 15, 16, 31}) {
    Case c{.head_dim = 128, .q_heads = 1, .tokens = 560};
    c.ranges = [=](int, std::int64_t row, std::vector<KeyRange>& to) {
      if (row / 16 == busy) to.push_back(range(0, row + 16));
    };
    check(c);
  }
}

TEST(PrefillRows16Cuda, EveryHeadOfAGroupHasItsOwnList) {
  for (const int row_block : {16, 32}) {
    Case c{.head_dim = 128, .q_heads = 7, .tokens = 290, .row_block = row_block};
    c.ranges = [](int head, std::int64_t row, std::vector<KeyRange>& to) {
      for (std::int64_t at = 0; at <= row; at += 16)
        if ((at / 16 + row / 16 + head) % 3 == 0 || at == row) to.push_back(range(at, 16));
    };
    check(c);
  }
}

TEST(PrefillRows16Cuda, RangesColumnsWindowAndCapTogether) {
  for (const int row_block : {16, 32})
    for (const int head_dim : {64, 96, 128, 256})
      for (const int window : {0, 37}) {
        Case c{.head_dim = head_dim, .tokens = 171, .row_block = row_block, .window = window};
        c.softcap = window > 0 ? 5.0f : 0.0f;
        c.ranges = [](int head, std::int64_t row, std::vector<KeyRange>& to) {
          for (std::int64_t at = (row / 16 * 5 + head) % 23; at <= row + 16; at += 29)
            to.push_back(range(at, 3 + row / 16 % 19));
        };
        c.columns.resize(2);
        for (std::int32_t j = 0; j < 171; ++j)
          if (j * 7 % 5 < 2) c.columns[0].push_back(j);
        check(c);
      }
}

TEST(PrefillRows16Cuda, ScoresThatKeepRising) {
  // Keys are random, so with large queries new maxima pass the old ones by more than 2^8 again and again.
  Case c{.head_dim = 128, .q_heads = 1, .tokens = 400, .q_scale = 12.0f};
  c.ranges = [](int, std::int64_t row, std::vector<KeyRange>& to) { to.push_back(range(0, row + 16)); };
  check(c);
}

}  // namespace
}  // namespace lacuna
