// The prefill kernels against plain loops: every head size, row block and path, ragged lengths, columns,
// windows, caps.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;
using testing::HeadsOnDevice;
using testing::ListsOnDevice;

enum class Pattern { kDense, kAll, kBlocks, kShifted, kColumnsOnly, kEmpty };

struct Case {
  int head_dim = 128, q_heads = 4, kv_heads = 2;
  std::int64_t tokens = 300;
  int row_block = 64;
  Pattern pattern = Pattern::kBlocks;
  bool columns = false, token_major = false;
  int window = 0;
  float softcap = 0.0f;
};

std::vector<CudaPath> paths() {
  std::vector<CudaPath> all{CudaPath::kPortable};
  if (current_cuda_device().capability == 90) all.push_back(CudaPath::kHopper);
  return all;
}

/// Lists of the given pattern; a few row blocks stay empty.
TileLists make_lists(const Case& c, std::uint64_t seed) {
  TileLists lists;
  lists.heads = c.q_heads;
  lists.tokens = c.tokens;
  lists.row_block = c.row_block;
  if (c.pattern == Pattern::kDense) {
    lists.dense = true;
    return lists;
  }
  std::uint64_t state = seed;
  const auto random = [&](std::int64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(n));
  };
  lists.range_begin.push_back(0);
  for (int h = 0; h < c.q_heads; ++h) {
    for (std::int64_t b = 0; b < lists.row_blocks(); ++b) {
      const auto end = static_cast<std::int32_t>(std::min(c.tokens, (b + 1) * c.row_block));
      const auto add = [&](std::int64_t start, std::int64_t width) {
        lists.ranges.push_back({static_cast<std::int32_t>(start), static_cast<std::int32_t>(width)});
      };
      if (c.pattern == Pattern::kAll) add(0, end);
      if (c.pattern == Pattern::kBlocks)
        for (std::int64_t k = 0; k <= b; ++k)
          if (random(3) == 0 || k == b) add(k * c.row_block, c.row_block);
      if (c.pattern == Pattern::kShifted && random(5) != 0)
        for (std::int64_t at = random(40); at < end; at += 1 + random(150)) {
          const std::int64_t width = 1 + random(130);
          add(at, width);  // may reach past the diagonal and past the end
          at += width;
        }
      lists.range_begin.push_back(static_cast<std::int64_t>(lists.ranges.size()));
    }
  }
  if (c.columns || c.pattern == Pattern::kColumnsOnly) {
    lists.column_begin.push_back(0);
    for (int h = 0; h < c.q_heads; ++h) {
      const bool none = h == 1;
      for (std::int64_t t = 0; t < c.tokens && !none; ++t)
        if (random(h == 2 ? 40 : 3) == 0) lists.columns.push_back(static_cast<std::int32_t>(t));
      lists.column_begin.push_back(static_cast<std::int64_t>(lists.columns.size()));
    }
  }
  return lists;
}

bool visits(const TileLists& lists, int window, int head, std::int64_t row, std::int64_t key) {
  if (key > row || (window > 0 && key <= row - window)) return false;
  if (lists.dense) return true;
  for (const KeyRange& range : lists.ranges_of(head, row / lists.row_block))
    if (key >= range.start && key < range.start + range.width) return true;
  if (lists.column_begin.empty()) return false;
  const auto columns = lists.columns_of(head);
  return std::binary_search(columns.begin(), columns.end(), static_cast<std::int32_t>(key));
}

void check(const Case& c) {
  SCOPED_TRACE(
      fmt::format("head_dim {} heads {}/{} tokens {} row_block {} pattern {} columns {} window {} softcap {}",
                  c.head_dim, c.q_heads, c.kv_heads, c.tokens, c.row_block, static_cast<int>(c.pattern),
                  c.columns, c.window, c.softcap));
  const HeadsOnDevice q(c.q_heads, c.tokens, c.head_dim, c.token_major, 1);
  const HeadsOnDevice k(c.kv_heads, c.tokens, c.head_dim, !c.token_major, 2);
  const HeadsOnDevice v(c.kv_heads, c.tokens, c.head_dim, c.token_major, 3);
  PrefillInput input;
  input.q = q.view, input.k = k.view, input.v = v.view;
  LayerInfo& info = input.info;
  info.q_heads = info.q_heads_total = c.q_heads;
  info.kv_heads = info.kv_heads_total = c.kv_heads;
  info.head_dim = c.head_dim;
  info.scale = 1.7f / std::sqrt(static_cast<float>(c.head_dim));
  info.softcap = c.softcap;
  info.window = c.window;
  const TileLists lists = make_lists(c, static_cast<std::uint64_t>(c.tokens * 7 + c.row_block));
  const ListsOnDevice device(lists);
  const DeviceVector<std::uint8_t> workspace(prefill_workspace_bytes(device.lists, c.head_dim));

  const auto count = static_cast<std::size_t>(c.q_heads * c.tokens * c.head_dim);
  for (const CudaPath path : paths()) {
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
    double worst = 0;
    std::string where;
    for (int h = 0; h < c.q_heads; ++h) {
      const int kv = info.kv_head_of(h);
      for (std::int64_t t = 0; t < c.tokens; ++t) {
        testing::plain_attention(
            q.row(h, t), info, t + 1, [&](std::int64_t j) { return visits(lists, c.window, h, t, j); },
            [&](std::int64_t j) { return k.row(kv, j); }, [&](std::int64_t j) { return v.row(kv, j); },
            expected, bound);
        for (int i = 0; i < c.head_dim; ++i) {
          const float got =
              to_float(results[0][static_cast<std::size_t>((h * c.tokens + t) * c.head_dim + i)]);
          const double error =
              std::abs(got - expected[static_cast<std::size_t>(i)]) / bound[static_cast<std::size_t>(i)];
          if (!(error <= worst)) {
            worst = error;
            where = fmt::format("head {} row {} channel {}: got {}, expected {}", h, t, i, got,
                                expected[static_cast<std::size_t>(i)]);
          }
          if (std::isnan(error)) break;
        }
        if (std::isnan(worst)) break;
      }
      if (std::isnan(worst)) break;
    }
    EXPECT_LE(worst, 1.0) << where;
  }

  // The accounting counts what the loops visit.
  unsigned long long visited = 0, causal = 0;
  for (int h = 0; h < c.q_heads; ++h)
    for (std::int64_t t = 0; t < c.tokens; ++t)
      for (std::int64_t j = 0; j <= t; ++j) {
        visited += visits(lists, c.window, h, t, j) ? 1 : 0;
        causal += c.window == 0 || j > t - c.window ? 1 : 0;
      }
  const DeviceVector<unsigned long long> counts(3);
  count_tile_cells_cuda(device.lists, c.window, counts.data(), {workspace.data(), workspace.size()}, nullptr);
  const auto counted = counts.download();
  EXPECT_EQ(counted[0], visited);
  EXPECT_EQ(counted[1], causal);
}

TEST(PrefillCuda, DenseEveryHeadSize) {
  for (const int d : {64, 96, 128, 256}) check({.head_dim = d, .tokens = 333, .pattern = Pattern::kDense});
}
TEST(PrefillCuda, DenseRaggedLengths) {
  for (const std::int64_t tokens : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257, 400})
    check({.q_heads = 3,
           .kv_heads = 1,
           .tokens = tokens,
           .pattern = Pattern::kDense,
           .token_major = tokens % 2 == 0});
}
TEST(PrefillCuda, DenseManyTilesPerBlock) {
  // More work items than multiprocessors, so that persistent blocks take several.
  check({.q_heads = 28, .kv_heads = 4, .tokens = 777, .pattern = Pattern::kDense});
}
TEST(PrefillCuda, WindowAndSoftcap) {
  for (const int d : {64, 128, 256})
    for (const int window : {1, 5, 64, 100, 129})
      check({.head_dim = d,
             .q_heads = 2,
             .kv_heads = 2,
             .tokens = 290,
             .pattern = Pattern::kDense,
             .window = window});
  check({.tokens = 200, .pattern = Pattern::kDense, .softcap = 3.0f});
  check({.head_dim = 256, .tokens = 200, .pattern = Pattern::kDense, .window = 70, .softcap = 30.0f});
}
TEST(PrefillCuda, EveryTileListedEqualsDense) {
  for (const int d : {64, 96, 128, 256}) check({.head_dim = d, .tokens = 270, .pattern = Pattern::kAll});
}
TEST(PrefillCuda, BlocksOfEverySize) {
  for (const int block : {16, 32, 64, 128})
    for (const int d : {64, 96, 128, 256}) check({.head_dim = d, .tokens = 345, .row_block = block});
}
TEST(PrefillCuda, ShiftedRangesAndColumns) {
  for (const int block : {16, 64, 128})
    for (const int d : {64, 128, 256})
      check({.head_dim = d,
             .tokens = 391,
             .row_block = block,
             .pattern = Pattern::kShifted,
             .columns = true,
             .token_major = d == 64});
  check({.head_dim = 96,
         .q_heads = 28,
         .kv_heads = 4,
         .tokens = 641,
         .pattern = Pattern::kShifted,
         .columns = true});
}
TEST(PrefillCuda, ListsWithWindow) {
  for (const int window : {3, 90})
    check({.tokens = 350, .pattern = Pattern::kShifted, .columns = true, .window = window, .softcap = 20.0f});
}
TEST(PrefillCuda, ColumnsOnlyAndEmptyLists) {
  check({.tokens = 330, .pattern = Pattern::kColumnsOnly});
  check({.tokens = 130, .pattern = Pattern::kEmpty});
  check({.tokens = 1, .pattern = Pattern::kBlocks});
  check({.tokens = 1, .pattern = Pattern::kEmpty});
}
TEST(PrefillCuda, RefusesWhatItCannotDo) {
  const HeadsOnDevice q(1, 8, 40, false, 1);
  PrefillInput input;
  input.q = input.k = input.v = q.view;
  input.info.q_heads = input.info.kv_heads = input.info.q_heads_total = input.info.kv_heads_total = 1;
  input.info.head_dim = 40;
  DeviceTileLists lists;
  lists.heads = 1, lists.tokens = 8, lists.dense = true;
  const DeviceVector<std::uint8_t> workspace(prefill_workspace_bytes(lists, 40));
  EXPECT_THROW(attention_prefill_cuda(input, lists, q.view, {workspace.data(), workspace.size()}, nullptr),
               Error);
  EXPECT_THROW(attention_prefill_cuda(input, lists, q.view, {nullptr, 0}, nullptr), Error);
}

}  // namespace
}  // namespace lacuna
