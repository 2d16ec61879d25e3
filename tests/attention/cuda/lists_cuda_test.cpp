// Block-sparse lists and eviction: the GPU's choices against plain loops on integer-valued
// inputs, where both must be equal to the last entry.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "attention/cuda/select_cuda.h"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;

struct Random {
  std::uint64_t state = 12345;
  std::int64_t operator()(std::int64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<std::int64_t>((state >> 33) % static_cast<std::uint64_t>(n));
  }
};

/// Small integers, which bfloat16 and every sum here hold exactly.
std::vector<BFloat16> integers(std::size_t count, Random& random, int span) {
  std::vector<BFloat16> values(count);
  for (auto& value : values) value = to_bfloat16(static_cast<float>(random(2 * span + 1) - span));
  return values;
}

/// Indices of the k best, forced first; ties to the lower index; ascending.
template <class Score>
std::vector<std::int32_t> best(const std::vector<Score>& scores, std::int64_t k, std::int64_t first,
                               std::int64_t last) {
  const std::int64_t n = std::ssize(scores);
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  std::stable_partition(order.begin(), order.end(),
                        [&](std::int32_t i) { return i < first || i >= n - last; });
  order.resize(static_cast<std::size_t>(std::min(n, std::max(k, first + last))));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(BlockSparseCuda, ListsMatchPlainLoops) {
  Random random;
  for (const int block : {16, 64, 128})
    for (const std::int64_t tokens : {1, 100, 1000, 2500}) {
      SCOPED_TRACE(fmt::format("block {} tokens {}", block, tokens));
      constexpr int kQ = 4, kKv = 2, kDim = 64;
      const auto n = static_cast<std::size_t>(tokens);
      const auto q = integers(kQ * n * kDim, random, 2), k = integers(kKv * n * kDim, random, 2);
      const DeviceVector<BFloat16> d_q(q), d_k(k);
      PrefillInput input;
      const auto view = [&](const DeviceVector<BFloat16>& x, int heads) {
        return HeadsView{x.data(), DType::kBF16, Device::kCuda, heads, tokens, kDim, tokens * kDim, kDim};
      };
      input.q = view(d_q, kQ), input.k = input.v = view(d_k, kKv);
      LayerInfo& info = input.info;
      info.q_heads = info.q_heads_total = kQ;
      info.kv_heads = info.kv_heads_total = kKv;
      info.head_dim = kDim;
      const std::int64_t blocks = (tokens + block - 1) / block;
      const int top = static_cast<int>(std::max<std::int64_t>(3, blocks / 4));
      const DeviceVector<std::uint8_t> workspace(block_sparse_workspace_bytes(info, tokens, block, top));
      const auto capacity = static_cast<std::size_t>(kQ * blocks * top);
      const DeviceVector<KeyRange> ranges(capacity);
      const DeviceVector<std::int64_t> begin(static_cast<std::size_t>(kQ * blocks + 1));
      const DeviceVector<int> overflow(std::vector<int>{0});
      TileListsOut out;
      out.ranges = ranges.data(), out.max_ranges = static_cast<std::int64_t>(capacity);
      out.range_begin = begin.data(), out.overflow = overflow.data();
      block_sparse_lists_cuda(input, block, top, out, {workspace.data(), workspace.size()}, nullptr);
      const auto got = ranges.download();
      const auto got_begin = begin.download();
      EXPECT_EQ(overflow.download()[0], 0);

      const auto pooled = [&](const std::vector<BFloat16>& x, int head) {
        std::vector<float> means(static_cast<std::size_t>(blocks) * kDim);
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::size_t c = 0; c < kDim; ++c)
            means[static_cast<std::size_t>(t / block) * kDim + c] +=
                to_float(x[(static_cast<std::size_t>(head) * n + static_cast<std::size_t>(t)) * kDim + c]);
        for (std::int64_t b = 0; b < blocks; ++b)
          for (std::size_t c = 0; c < kDim; ++c)
            means[static_cast<std::size_t>(b) * kDim + c] /=
                static_cast<float>(std::min<std::int64_t>(block, tokens - b * block));
        return means;
      };
      for (int h = 0; h < kQ; ++h) {
        const auto queries = pooled(q, h), keys = pooled(k, h / 2);
        for (std::int64_t b = 0; b < blocks; ++b) {
          // The last, ragged block has means that are no dyadic fractions: its scores round differently.
          const bool exact = tokens % block == 0 || b + 1 < blocks;
          std::vector<double> scores;
          for (std::int64_t j = 0; j <= b; ++j) {
            double s = 0;
            for (std::size_t c = 0; c < kDim; ++c)
              s += static_cast<double>(queries[static_cast<std::size_t>(b) * kDim + c]) *
                   keys[static_cast<std::size_t>(j) * kDim + c];
            scores.push_back(s);
          }
          std::vector<bool> kept(static_cast<std::size_t>(tokens)), listed(static_cast<std::size_t>(tokens));
          std::int64_t count = 0;
          for (const auto j : best(scores, top, 1, 2))
            for (std::int64_t t = j * block; t < std::min<std::int64_t>(tokens, (j + 1) * block); ++t)
              kept[static_cast<std::size_t>(t)] = true, ++count;
          const auto row = static_cast<std::size_t>(h * blocks + b);
          std::int64_t listed_count = 0;
          std::int32_t last_end = -1;
          for (std::int64_t i = got_begin[row]; i < got_begin[row + 1]; ++i) {
            const KeyRange range = got[static_cast<std::size_t>(i)];
            ASSERT_GT(range.start, last_end) << "head " << h << " block " << b;
            last_end = range.start + range.width;
            ASSERT_LE(last_end, tokens);
            for (std::int32_t t = range.start; t < last_end; ++t)
              listed[static_cast<std::size_t>(t)] = true, ++listed_count;
          }
          ASSERT_EQ(listed_count, count) << "head " << h << " block " << b;
          if (exact) {
            ASSERT_EQ(listed, kept) << "head " << h << " block " << b;
          }
        }
      }
    }
}

TEST(EvictCuda, ImportanceBudgetAndCompaction) {
  Random random;
  constexpr int kQ = 6, kKv = 2, kDim = 64, kKernel = 21;
  for (const std::int64_t tokens : {200, 1500}) {
    const auto n = static_cast<std::size_t>(tokens);
    std::vector<float> from(kQ * n);
    for (auto& x : from) x = static_cast<float>(random(50) * kKernel * 3);
    const DeviceVector<float> d_from(from), importance(kKv * n);
    LayerInfo info;
    info.q_heads = info.q_heads_total = kQ;
    info.kv_heads = info.kv_heads_total = kKv;
    for (const bool maximum : {true, false}) {
      pool_importance_cuda(d_from.data(), info, tokens, maximum, kKernel, importance.data(), nullptr);
      const auto got = importance.download();
      for (int kv = 0; kv < kKv; ++kv)
        for (std::int64_t t = 0; t < tokens; ++t) {
          double sum = 0;
          for (std::int64_t j = std::max<std::int64_t>(0, t - 10); j <= std::min(tokens - 1, t + 10); ++j) {
            double x = maximum ? 0 : 0;
            for (int h = kv * 3; h < kv * 3 + 3; ++h) {
              const double y = from[static_cast<std::size_t>(h) * n + static_cast<std::size_t>(j)];
              x = maximum ? std::max(x, y) : x + y / 3;
            }
            sum += x;
          }
          ASSERT_NEAR(got[static_cast<std::size_t>(kv) * n + static_cast<std::size_t>(t)], sum / kKernel,
                      1e-6 * sum / kKernel + 1e-9);
        }
    }

    // Ada-SnapKV's shared budget on what is there now.
    const auto scores = importance.download();
    const std::int64_t capacity = tokens / 3, floor = 132 + 10;
    const DeviceVector<std::int32_t> kept(kKv * n), counts(std::size_t{kKv});
    const DeviceVector<std::uint8_t> workspace(shared_budget_workspace_bytes(kKv, tokens));
    SharedBudgetParams params;
    params.importance = importance.data(), params.kv_heads = kKv, params.tokens = tokens,
    params.capacity = capacity;
    params.floor = static_cast<int>(floor), params.first = 4, params.last = 128;
    params.kept = kept.data(), params.kept_stride = tokens, params.counts = counts.data();
    shared_budget_cuda(params, {workspace.data(), workspace.size()}, nullptr);
    std::vector<std::vector<std::int32_t>> expected;
    std::vector<std::tuple<float, int, std::int32_t>> rest;
    std::int64_t left = capacity * kKv;
    for (int h = 0; h < kKv; ++h) {
      const auto begin = scores.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(h) * n);
      const std::vector<float> row(begin, begin + tokens);
      expected.push_back(best(row, floor, 4, 128));
      left -= std::ssize(expected.back());
      for (std::int32_t t = 0; t < tokens; ++t)
        if (!std::binary_search(expected.back().begin(), expected.back().end(), t))
          rest.emplace_back(-row[static_cast<std::size_t>(t)], h, t);
    }
    std::sort(rest.begin(), rest.end());
    for (std::int64_t i = 0; i < std::min<std::int64_t>(std::max<std::int64_t>(left, 0), std::ssize(rest));
         ++i)
      expected[static_cast<std::size_t>(std::get<1>(rest[static_cast<std::size_t>(i)]))].push_back(
          std::get<2>(rest[static_cast<std::size_t>(i)]));
    const auto got_kept = kept.download(), got_counts = counts.download();
    int longest = 0;
    for (std::size_t h = 0; h < kKv; ++h) {
      std::sort(expected[h].begin(), expected[h].end());
      ASSERT_EQ(got_counts[h], std::ssize(expected[h])) << "head " << h;
      for (std::size_t i = 0; i < expected[h].size(); ++i) ASSERT_EQ(got_kept[h * n + i], expected[h][i]);
      longest = std::max(longest, got_counts[h]);
    }

    // Compaction of those tokens.
    const auto k = integers(kKv * n * kDim, random, 100), v = integers(kKv * n * kDim, random, 100);
    const DeviceVector<BFloat16> d_k(k), d_v(v);
    const std::int64_t id_stride = (tokens + kPageTokens - 1) / kPageTokens;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(kKv * id_stride));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(ids.size() - 1 - i);
    const DeviceVector<std::int32_t> d_ids(ids);
    constexpr std::int64_t kElements = 2 * kPageTokens * kDim;
    const DeviceVector<BFloat16> pool(ids.size() * kElements);
    CompactParams compact;
    compact.k = {d_k.data(), DType::kBF16, Device::kCuda, kKv, tokens, kDim, tokens * kDim, kDim};
    compact.v = {d_v.data(), DType::kBF16, Device::kCuda, kKv, tokens, kDim, tokens * kDim, kDim};
    compact.kept = kept.data(), compact.counts = counts.data(), compact.kept_stride = tokens;
    compact.max_kept = longest;
    compact.pool = pool.data(), compact.page_elements = kElements, compact.page_ids = d_ids.data();
    compact.id_stride = id_stride;
    compact_cache_cuda(compact, nullptr);
    const auto got = pool.download();
    for (std::size_t h = 0; h < kKv; ++h)
      for (std::size_t i = 0; i < expected[h].size(); ++i)
        for (std::size_t c = 0; c < kDim; ++c) {
          const auto page =
              static_cast<std::size_t>(ids[h * static_cast<std::size_t>(id_stride) + i / kPageTokens]);
          const std::size_t at = page * kElements + i % kPageTokens * kDim + c;
          const std::size_t token = (h * n + static_cast<std::size_t>(expected[h][i])) * kDim + c;
          ASSERT_EQ(got[at].bits, k[token].bits);
          ASSERT_EQ(got[at + kPageTokens * kDim].bits, v[token].bits);
        }
  }
}

}  // namespace
}  // namespace lacuna
