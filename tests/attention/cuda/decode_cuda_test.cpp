// The decode kernel against plain loops: ragged heads, page lists per kv and per query head, poisoned unused
// pages.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;

enum class Lists { kNone, kPerKvHead, kPerQHead };

struct Case {
  int head_dim = 128, q_heads = 7, kv_heads = 1, batch = 1;
  std::vector<std::int64_t> tokens = {100};  ///< of head i: tokens[i % size]
  Lists lists = Lists::kNone;
  int window = 0;
  float softcap = 0.0f;
};

void check(const Case& c) {
  SCOPED_TRACE(fmt::format("head_dim {} heads {}/{} batch {} tokens {} lists {} window {} softcap {}",
                           c.head_dim, c.q_heads, c.kv_heads, c.batch, c.tokens.front(),
                           static_cast<int>(c.lists), c.window, c.softcap));
  const auto d = static_cast<std::size_t>(c.head_dim);
  const std::size_t page_elements = 2 * kPageTokens * d + 16;
  std::uint64_t state = 99;
  const auto random = [&](std::uint64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % n;
  };

  // Pages in shuffled order; every element that no token owns is NaN.
  const int heads = c.batch * c.kv_heads;
  std::vector<std::int64_t> tokens;
  std::size_t total_pages = 0;
  for (int i = 0; i < heads; ++i) {
    tokens.push_back(c.tokens[static_cast<std::size_t>(i) % c.tokens.size()]);
    total_pages += static_cast<std::size_t>((tokens.back() + kPageTokens - 1) / kPageTokens);
  }
  std::vector<std::int32_t> free(total_pages + 3);
  for (std::size_t i = 0; i < free.size(); ++i) free[i] = static_cast<std::int32_t>(i);
  for (std::size_t i = free.size() - 1; i > 0; --i) std::swap(free[i], free[random(i + 1)]);
  std::vector<BFloat16> pool(free.size() * page_elements, BFloat16{0xFFFF});
  std::vector<std::int32_t> ids;
  std::vector<std::size_t> first_id;
  const auto values = testing::random_bf16(1 << 16, 5);
  const auto place = [&](int head, std::int64_t token, int v) {
    const auto page = static_cast<std::size_t>(
        ids[first_id[static_cast<std::size_t>(head)] + static_cast<std::size_t>(token / kPageTokens)]);
    return page * page_elements + (static_cast<std::size_t>(v * kPageTokens + token % kPageTokens)) * d;
  };
  for (int h = 0; h < heads; ++h) {
    first_id.push_back(ids.size());
    const auto pages = (tokens[static_cast<std::size_t>(h)] + kPageTokens - 1) / kPageTokens;
    for (std::int64_t p = 0; p < pages; ++p) {
      ids.push_back(free.back());
      free.pop_back();
    }
    for (std::int64_t t = 0; t < tokens[static_cast<std::size_t>(h)]; ++t)
      for (int v = 0; v < 2; ++v)
        for (std::size_t i = 0; i < d; ++i) pool[place(h, t, v) + i] = values[random(values.size())];
  }
  const DeviceVector<BFloat16> device_pool(pool);
  const DeviceVector<std::int32_t> device_ids(ids);
  std::vector<DevicePagedHead> paged;
  for (int h = 0; h < heads; ++h)
    paged.push_back(
        {device_ids.data() + first_id[static_cast<std::size_t>(h)], tokens[static_cast<std::size_t>(h)]});
  const DeviceVector<DevicePagedHead> device_heads(paged);

  LayerInfo info;
  info.q_heads = info.q_heads_total = c.q_heads;
  info.kv_heads = info.kv_heads_total = c.kv_heads;
  info.head_dim = c.head_dim;
  info.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  info.window = c.window;
  info.softcap = c.softcap;

  const int rows = c.batch * (c.lists == Lists::kPerQHead ? c.q_heads : c.kv_heads);
  std::vector<std::vector<std::int32_t>> lists(static_cast<std::size_t>(rows));
  std::vector<std::int32_t> counts;
  const std::int64_t longest = *std::max_element(tokens.begin(), tokens.end());
  const auto stride = static_cast<std::size_t>(longest / kPageTokens + 2);
  std::vector<std::int32_t> flat(static_cast<std::size_t>(rows) * stride, 1 << 28);
  const auto kv_of_row = [&](int row) {
    if (c.lists != Lists::kPerQHead) return row;
    return row / c.q_heads * c.kv_heads + info.kv_head_of(row % c.q_heads);
  };
  for (int r = 0; r < rows; ++r) {
    auto& list = lists[static_cast<std::size_t>(r)];
    const auto pages = (tokens[static_cast<std::size_t>(kv_of_row(r))] + kPageTokens - 1) / kPageTokens;
    for (std::int64_t p = 0; p < pages; ++p)
      if (r % 5 == 3 ? false : random(3) == 0) list.push_back(static_cast<std::int32_t>(p));
    if (r % 5 == 4) {  // every page
      counts.push_back(-1);
      list.clear();
      for (std::int64_t p = 0; p < pages; ++p) list.push_back(static_cast<std::int32_t>(p));
    } else {
      counts.push_back(static_cast<std::int32_t>(list.size()));
      std::copy(list.begin(), list.end(),
                flat.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(r) * stride));
    }
  }
  const DeviceVector<std::int32_t> device_lists(flat), device_counts(counts);

  const auto q_count = static_cast<std::size_t>(c.batch * c.q_heads) * d;
  const auto q = testing::random_bf16(q_count, 17, 1.5f);
  const DeviceVector<BFloat16> device_q(q);
  DecodeParams params;
  params.q = device_q.data();
  params.pool = device_pool.data();
  params.page_elements = static_cast<std::int64_t>(page_elements);
  params.heads = device_heads.data();
  if (c.lists != Lists::kNone) {
    params.lists = device_lists.data();
    params.list_counts = device_counts.data();
    params.list_stride = static_cast<std::int64_t>(stride);
    params.lists_per_q_head = c.lists == Lists::kPerQHead;
  }
  params.batch = c.batch;
  params.info = info;
  params.max_tokens = std::max<std::int64_t>(longest, 1);
  const DeviceVector<std::uint8_t> workspace(decode_workspace_bytes(params));

  std::vector<BFloat16> results[2];
  for (auto& result : results) {
    const DeviceVector<BFloat16> out(q_count);
    params.out = out.data();
    attention_decode_cuda(params, {workspace.data(), workspace.size()}, nullptr);
    result = out.download();
  }
  ASSERT_EQ(std::memcmp(results[0].data(), results[1].data(), q_count * 2), 0) << "two runs differ";

  std::vector<float> row_values[2];
  std::vector<double> expected, bound;
  for (int b = 0; b < c.batch; ++b)
    for (int h = 0; h < c.q_heads; ++h) {
      const int kv = b * c.kv_heads + info.kv_head_of(h);
      const std::int64_t n = tokens[static_cast<std::size_t>(kv)];
      for (int v = 0; v < 2; ++v) {
        row_values[v].assign(static_cast<std::size_t>(n) * d, 0.0f);
        for (std::int64_t t = 0; t < n; ++t)
          for (std::size_t i = 0; i < d; ++i)
            row_values[v][static_cast<std::size_t>(t) * d + i] = to_float(pool[place(kv, t, v) + i]);
      }
      const int list_row = c.lists == Lists::kPerQHead ? b * c.q_heads + h : kv;
      const auto& list = lists[static_cast<std::size_t>(list_row)];
      const auto visits = [&](std::int64_t t) {
        if (c.window > 0 && t < n - c.window) return false;
        return c.lists == Lists::kNone ||
               std::binary_search(list.begin(), list.end(), static_cast<std::int32_t>(t / kPageTokens));
      };
      std::vector<float> q_row(d);
      const std::size_t at = static_cast<std::size_t>(b * c.q_heads + h) * d;
      for (std::size_t i = 0; i < d; ++i) q_row[i] = to_float(q[at + i]);
      testing::plain_attention(
          q_row.data(), info, n, visits,
          [&](std::int64_t t) { return row_values[0].data() + t * c.head_dim; },
          [&](std::int64_t t) { return row_values[1].data() + t * c.head_dim; }, expected, bound);
      for (std::size_t i = 0; i < d; ++i)
        ASSERT_LE(std::abs(to_float(results[0][at + i]) - expected[i]), bound[i])
            << "sequence " << b << " head " << h << " channel " << i << " expected " << expected[i];
    }
}

TEST(DecodeCuda, EveryHeadSize) {
  for (const int d : {64, 96, 128, 256}) check({.head_dim = d, .tokens = {333}});
}
TEST(DecodeCuda, RaggedLengths) {
  for (const std::int64_t n : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 2000, 5000})
    check({.q_heads = 4, .kv_heads = 2, .tokens = {n, n / 2 + 1}});
}
TEST(DecodeCuda, GroupsOfEverySize) {
  check({.q_heads = 1, .kv_heads = 1, .tokens = {200}});
  check({.q_heads = 8, .kv_heads = 8, .tokens = {50, 180}});
  check({.q_heads = 16, .kv_heads = 1, .tokens = {200}});
  check({.q_heads = 20, .kv_heads = 1, .tokens = {200}});
  check({.head_dim = 64, .q_heads = 40, .kv_heads = 2, .tokens = {77, 300}});
}
TEST(DecodeCuda, LongHeadsInRunsOfDifferentLengths) {
  // So many kv heads that few runs fill a device; lengths around where the cut changes.
  for (const std::int64_t n : {1536, 1537, 2500})
    check({.head_dim = 64, .q_heads = 66, .kv_heads = 66, .tokens = {n, 100, n / 3}});
}
TEST(DecodeCuda, BatchesWithLists) {
  for (const Lists lists : {Lists::kPerKvHead, Lists::kPerQHead})
    for (const int d : {64, 128, 256})
      check({.head_dim = d,
             .q_heads = 8,
             .kv_heads = 2,
             .batch = 5,
             .tokens = {1, 40, 999, 2049, 17, 640},
             .lists = lists});
}
TEST(DecodeCuda, WindowAndSoftcap) {
  for (const int window : {1, 16, 100, 4000}) check({.tokens = {1000}, .window = window});
  check({.tokens = {700}, .lists = Lists::kPerKvHead, .window = 300, .softcap = 15.0f});
}
TEST(DecodeCuda, GroupsWithLists) {
  // Rows with lists beside rows that read everything, ragged heads, windows: every fifth row has count -1.
  for (int group = 1; group <= 16; ++group)
    for (const Lists lists : {Lists::kPerKvHead, Lists::kPerQHead})
      check({.head_dim = 64,
             .q_heads = 2 * group,
             .kv_heads = 2,
             .batch = 3,
             .tokens = {30, 300, 65, 1, 170},
             .lists = lists,
             .window = group % 4 == 3 ? 100 : 0});
}
TEST(DecodeCuda, EmptySequence) { check({.q_heads = 4, .kv_heads = 2, .tokens = {0, 20}}); }

TEST(DecodeCuda, SequenceDoesNotDependOnBatch) {
  // One sequence alone and the same as the first of three: the same bits.
  constexpr int kDim = 128;
  const std::size_t pages = 200, page_elements = 2 * kPageTokens * kDim;
  const DeviceVector<BFloat16> pool(testing::random_bf16(pages * page_elements, 3));
  std::vector<std::int32_t> ids(pages);
  for (std::size_t i = 0; i < pages; ++i) ids[i] = static_cast<std::int32_t>(i);
  const DeviceVector<std::int32_t> device_ids(ids);
  const DeviceVector<DevicePagedHead> heads(std::vector<DevicePagedHead>{
      {device_ids.data(), 3100}, {device_ids.data() + 50, 900}, {device_ids.data(), 5}});
  const DeviceVector<BFloat16> q(testing::random_bf16(3 * 7 * kDim, 4));
  std::vector<BFloat16> results[2];
  for (const int batch : {1, 3}) {
    DecodeParams params;
    const DeviceVector<BFloat16> out(static_cast<std::size_t>(batch * 7 * kDim));
    params.q = q.data(), params.out = out.data(), params.pool = pool.data();
    params.page_elements = page_elements;
    params.heads = heads.data();
    params.batch = batch;
    params.info.q_heads = params.info.q_heads_total = 7;
    params.info.kv_heads = params.info.kv_heads_total = 1;
    params.info.head_dim = kDim;
    params.info.scale = 0.09f;
    params.max_tokens = batch == 1 ? 3100 : 100000;
    const DeviceVector<std::uint8_t> workspace(decode_workspace_bytes(params));
    attention_decode_cuda(params, {workspace.data(), workspace.size()}, nullptr);
    results[batch / 2] = out.download();
  }
  EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), 7 * kDim * 2), 0);
}

}  // namespace
}  // namespace lacuna
