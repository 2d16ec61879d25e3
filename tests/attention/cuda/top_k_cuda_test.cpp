// Top-k and top-p of long rows and the choice of blocks in short ones, against plain loops: ties, forced
// ends, masses that are exactly reached, numbers that are none, rows that fill several blocks of threads to
// the last entry.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "attention/cuda/select_cuda.h"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Entries of one block of threads in top_k.cu.
constexpr int kChunk = 8192;

struct Rule {
  int k = 0, first = 0, last = 0;
  double mass = -1, mass_total = 0;
};

/// Best first: a NaN with its sign bit clear above all numbers, with it set below; equal ones in order.
template <class Score>
std::vector<std::int32_t> sorted_order(const std::vector<Score>& scores) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto rank = [](Score x) { return std::isnan(x) ? (std::signbit(x) ? -1 : 1) : 0; };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const Score x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
    return rank(x) != rank(y) ? rank(x) > rank(y) : rank(x) == 0 && x > y;
  });
  return order;
}

/// Entries of the shortest prefix of the order whose sum is above (or, not strictly, reaches) the target.
std::int64_t prefix(const std::vector<float>& scores, const std::vector<std::int32_t>& order, double target,
                    bool strictly) {
  double sum = 0;
  std::size_t count = 0;
  const auto enough = [&] { return strictly ? sum > target : sum >= target; };
  while (count < order.size() && !enough()) sum += scores[static_cast<std::size_t>(order[count++])];
  return static_cast<std::int64_t>(count);
}

template <class Score>
std::vector<std::int32_t> best(const std::vector<Score>& scores, const Rule& rule) {
  const auto n = static_cast<std::int64_t>(scores.size());
  std::vector<std::int32_t> order = sorted_order(scores);
  std::int64_t k = rule.k;
  if constexpr (sizeof(Score) == 4) {
    if (rule.mass >= 0) {
      double total = rule.mass_total;
      if (total == 0) total = std::accumulate(scores.begin(), scores.end(), 0.0);
      k = std::max(k, prefix(scores, order, rule.mass * total, true));
    }
  }
  k = std::min<std::int64_t>(n, std::max<std::int64_t>(k, rule.first + rule.last));
  std::stable_partition(order.begin(), order.end(),
                        [&](std::int32_t i) { return i < rule.first || i >= n - rule.last; });
  order.resize(static_cast<std::size_t>(k));
  std::sort(order.begin(), order.end());
  return order;
}

/// A generator whose values the tests spread over `levels`.
struct Random {
  std::uint64_t state;
  int operator()(int levels) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<int>((state >> 33) % static_cast<std::uint64_t>(levels));
  }
};

/// Rows of different lengths in device memory, and what is chosen from them.
struct Rows {
  std::vector<std::vector<float>> scores;
  std::int64_t stride = 0;
  DeviceVector<float> device;
  DeviceVector<std::int32_t> lengths, indices, counts;

  explicit Rows(std::vector<std::vector<float>> rows) : scores(std::move(rows)) {
    for (const auto& row : scores) stride = std::max(stride, std::ssize(row) + 5);
    std::vector<float> all(scores.size() * static_cast<std::size_t>(stride), kInfinity);
    std::vector<std::int32_t> n;
    for (std::size_t r = 0; r < scores.size(); ++r) {
      std::copy(scores[r].begin(), scores[r].end(), all.begin() + static_cast<std::ptrdiff_t>(r) * stride);
      n.push_back(static_cast<std::int32_t>(scores[r].size()));
    }
    device = DeviceVector<float>(all);
    lengths = DeviceVector<std::int32_t>(n);
    indices = DeviceVector<std::int32_t>(all.size());
    counts = DeviceVector<std::int32_t>(scores.size());
  }
  TopKParams params(const Rule& rule) const {
    TopKParams p;
    p.scores = device.data(), p.score_stride = stride;
    p.rows = static_cast<int>(scores.size()), p.n = static_cast<int>(stride) - 5, p.row_n = lengths.data();
    p.k = rule.k, p.first = rule.first, p.last = rule.last, p.mass = rule.mass,
    p.mass_total = rule.mass_total;
    p.indices = indices.data(), p.index_stride = stride, p.counts = counts.data();
    return p;
  }
  void expect_best(const Rule& rule) const {
    SCOPED_TRACE(fmt::format("k {} first {} last {} mass {} of {}", rule.k, rule.first, rule.last, rule.mass,
                             rule.mass_total));
    const auto got = indices.download(), got_counts = counts.download();
    for (std::size_t r = 0; r < scores.size(); ++r) {
      const auto expected = best(scores[r], rule);
      const auto at = got.begin() + static_cast<std::ptrdiff_t>(r) * stride;
      ASSERT_EQ(static_cast<std::size_t>(got_counts[r]), expected.size()) << "row " << r;
      const auto place = std::mismatch(expected.begin(), expected.end(), at);
      ASSERT_TRUE(place.first == expected.end())
          << "row " << r << " of " << scores[r].size() << ": got " << *place.second << ", wanted "
          << *place.first << " in place " << place.first - expected.begin();
    }
  }
};

void check(const std::vector<std::vector<float>>& rows, const std::vector<Rule>& rules) {
  const Rows on_device(rows);
  const auto n = static_cast<std::int64_t>(on_device.stride);
  const DeviceVector<std::uint8_t> workspace(top_k_workspace_bytes(std::ssize(rows), n, true));
  for (const Rule& rule : rules) {
    top_k_cuda(on_device.params(rule), {workspace.data(), workspace.size()}, nullptr);
    on_device.expect_best(rule);
    if (::testing::Test::HasFailure()) return;
  }
}

std::vector<float> random_row(int n, int levels, int least, std::uint64_t seed) {
  Random random{seed};
  std::vector<float> row(static_cast<std::size_t>(n));
  for (float& x : row) x = static_cast<float>(random(levels) + least);
  return row;
}

TEST(TopKCuda, TiesGoToTheLowerIndex) {
  for (const int n : {1, 5, 100, 1024, 1025, 5000, 20000})
    for (const int levels : {1, 3, 50, 1000000}) {
      std::vector<Rule> rules;
      for (const int k : {0, 1, 7, n / 3, n, n + 10}) rules.push_back({.k = k});
      check({random_row(n, levels, -levels / 2, 1), random_row(n / 2, levels, -levels / 2, 2)}, rules);
    }
}

TEST(TopKCuda, ForcedEnds) {
  for (const int n : {3, 200, 3000, 17000})
    check({random_row(n, 20, -10, 3), random_row(n / 2, 20, -10, 4)},
          {{.k = std::max(150, n / 10), .first = 4, .last = 128},
           {.k = 0, .first = n, .last = n},
           {.first = 1}});
}

TEST(TopKCuda, RowsThatFillBlocksOfThreads) {
  for (const int n : {kChunk - 1, kChunk, kChunk + 1, 2 * kChunk, 2 * kChunk + 1, 3 * kChunk - 32})
    check({random_row(n, 4, 0, 5), random_row(kChunk, 1 << 20, 0, 6), {}},
          {{.k = kChunk - 1}, {.k = kChunk}, {.k = kChunk + 1}, {.k = n - 1, .last = 3}, {.mass = 0.6}});
}

TEST(TopKCuda, LongRowsOfTies) {
  constexpr int kLong = 131072;
  check({std::vector<float>(kLong, 0.25f), random_row(kLong, 3, 0, 7), random_row(kLong, 1 << 22, 0, 8)},
        {{.k = 512, .first = 4}, {.k = kLong - 1}, {.k = 9000, .first = 64, .mass = 0.3}});
}

TEST(TopKCuda, Mass) {
  for (const int n : {10, 900, 18000})
    for (const int levels : {1, 2, 30, 1000}) {
      std::vector<Rule> rules;
      for (const double mass : {0.0, 0.25, 0.5, 0.9, 1.0})
        rules.push_back({.k = std::min(n, 5), .first = 4, .mass = mass});
      check({random_row(n, levels, 0, 9), random_row(n / 2, levels, 0, 10)}, rules);
    }
}

TEST(TopKCuda, MassExactlyReachedIsNotAbove) {
  const std::vector<float> ones(8, 1.0f), halves = {4, 2, 1, 1, 0.5f, 0.5f, 0, 0};
  // Four of eight ones hold half, five hold more; 4 + 2 of 9 are two thirds.
  check({ones, halves}, {{.mass = 0.5, .mass_total = 8},
                         {.mass = 0.75, .mass_total = 8},
                         {.mass = 1, .mass_total = 8},
                         {.mass = 2, .mass_total = 8},
                         {.mass = 0}});
}

TEST(TopKCuda, MassOverManyOrdersOfMagnitude) {
  // Powers of two: every sum is exact, the smallest numbers are subnormal.
  std::vector<float> row;
  for (int e = -149; e <= 100; ++e) row.push_back(std::ldexp(1.0f, e));
  std::vector<float> shuffled = row;
  Random random{11};
  for (std::size_t i = shuffled.size() - 1; i > 0; --i)
    std::swap(shuffled[i], shuffled[static_cast<std::size_t>(random(static_cast<int>(i) + 1))]);
  check({row, shuffled}, {{.mass = 0.5}, {.mass = 0.9}, {.mass = 1 - 0x1p-50}, {.mass = 0.75}});
}

TEST(TopKCuda, ZerosAreEqualAndNumbersThatAreNoneAreOrderedBySign) {
  const std::vector<float> row = {0.0f, -0.0f, 1.0f, kNaN, -kNaN, kInfinity, -kInfinity, -0.0f, 0.0f};
  std::vector<Rule> rules;
  for (int k = 0; k <= 9; ++k) rules.push_back({.k = k});
  check({row, std::vector<float>(row.rbegin(), row.rend())}, rules);
}

TEST(TopKCuda, MassOfWhatIsNoNumberTakesAll) {
  const Rows rows({{1, 2, kNaN, 3}, {1, kInfinity, 2, kInfinity}});
  const DeviceVector<std::uint8_t> workspace(top_k_workspace_bytes(2, rows.stride, true));
  top_k_cuda(rows.params({.mass = 0.5, .mass_total = 4}), {workspace.data(), workspace.size()}, nullptr);
  // No sum is above a share when it is no number; one infinity is above all.
  EXPECT_EQ(rows.counts.download(), (std::vector<std::int32_t>{4, 1}));
  EXPECT_EQ(rows.indices.download()[static_cast<std::size_t>(rows.stride)], 1);
}

TEST(TopKCuda, TwoChoicesInOneSequence) {
  const Rows columns({random_row(9000, 50, 0, 12), random_row(100, 50, 0, 13)}),
      diagonals({random_row(20000, 5, 0, 14)});
  const Rule by_count{.k = 700, .first = 4}, by_mass{.k = 3, .first = 64, .mass = 0.4};
  const DeviceVector<std::uint8_t> workspace(top_k_workspace_bytes(3, 20000, true));
  for (const bool swapped : {false, true}) {
    top_k_pair_cuda(columns.params(swapped ? by_mass : by_count),
                    diagonals.params(swapped ? by_count : by_mass), {workspace.data(), workspace.size()},
                    nullptr);
    columns.expect_best(swapped ? by_mass : by_count);
    diagonals.expect_best(swapped ? by_count : by_mass);
  }
}

TEST(TopKCuda, BitsAreAddedAndRowsLeftAlone) {
  constexpr int kN = 9000, kWords = (kN + 31) / 32;
  const Rows rows({random_row(kN, 40, 0, 15), random_row(kN, 40, 0, 16)});
  const DeviceVector<std::uint32_t> bits(std::vector<std::uint32_t>(2 * kWords, 1u));
  const DeviceVector<int> only(std::vector<int>{1, 0});
  const DeviceVector<std::uint8_t> workspace(top_k_workspace_bytes(2, rows.stride, true));
  const Rule rule{.mass = 0.2};
  TopKParams params = rows.params(rule);
  params.indices = params.counts = nullptr;
  params.bits = bits.data(), params.bit_words = kWords, params.only_rows = only.data();
  top_k_cuda(params, {workspace.data(), workspace.size()}, nullptr);
  std::vector<std::uint32_t> expected(2 * kWords, 1u);
  for (const std::int32_t i : best(rows.scores[0], rule))
    expected[static_cast<std::size_t>(i / 32)] |= 1u << (i % 32);
  EXPECT_EQ(bits.download(), expected);
}

TEST(TopKCuda, Doubles) {
  for (const int n : {7, 3000, 20000})
    for (const int levels : {1, 40, 1 << 30}) {
      Random random{17};
      std::vector<double> row(static_cast<std::size_t>(n));
      // Differences that a float does not know.
      for (double& x : row) x = 1.0 + random(levels) * 0x1p-50 - (random(5) == 0 ? 2.0 : 0.0);
      const DeviceVector<double> scores(row);
      const DeviceVector<std::int32_t> indices(row.size());
      const DeviceVector<std::uint8_t> workspace(double_top_k_workspace_bytes(1, n));
      for (const int k : {1, n / 3 + 1, n}) {
        const Rule rule{.k = k, .first = 1, .last = k > 1 ? 1 : 0};
        DoubleTopKParams params;
        params.scores = scores.data(), params.rows = 1, params.n = n, params.k = std::max(k, 1);
        params.first = rule.first, params.last = rule.last;
        params.indices = indices.data(), params.index_stride = n;
        double_top_k_cuda(params, {workspace.data(), workspace.size()}, nullptr);
        auto got = indices.download();
        const auto expected = best(row, rule);
        got.resize(expected.size());
        ASSERT_EQ(got, expected) << "n " << n << " levels " << levels << " k " << k;
      }
    }
}

TEST(TopKCuda, RefusesTooLittleWorkspace) {
  const Rows rows({random_row(100, 5, 0, 18)});
  const DeviceVector<std::uint8_t> workspace(top_k_workspace_bytes(1, 100, false));
  EXPECT_THROW(top_k_cuda(rows.params({.k = 3}), {workspace.data(), workspace.size() - 256}, nullptr), Error);
  EXPECT_THROW(top_k_cuda(rows.params({.mass = 0.5}), {workspace.data(), workspace.size()}, nullptr), Error);
}

struct BlockRule {
  int count = 0, force_first = 0, force_last = 0;
  double mass = -1, mass_total = 0;
  bool strictly = false;
};

/// Rows of 2 heads whose lengths end in `longest`, against plain loops.
void check_blocks(int longest, int levels, const BlockRule& rule) {
  SCOPED_TRACE(fmt::format("longest {} levels {} count {} ends {} {} mass {} of {}", longest, levels,
                           rule.count, rule.force_first, rule.force_last, rule.mass, rule.mass_total));
  constexpr int kHeads = 2;
  const int rows = std::min(longest, 3), first = longest - rows, words = (longest + 31) / 32;
  const auto stride = static_cast<std::size_t>(longest + 3);
  std::vector<float> scores(static_cast<std::size_t>(kHeads * rows) * stride, kInfinity);
  std::vector<std::uint32_t> expected(static_cast<std::size_t>(kHeads * longest * words), 7u);
  for (int head = 0; head < kHeads; ++head)
    for (int r = 0; r < rows; ++r) {
      const int n = first + r + 1;
      const int least = rule.mass < 0 ? -levels / 2 : 0;
      const auto row = random_row(n, levels, least, static_cast<std::uint64_t>(head * 7 + r));
      std::copy(
          row.begin(), row.end(),
          scores.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(head * rows + r) * stride));
      const auto order = sorted_order(row);
      std::vector<std::int32_t> kept;
      if (rule.mass < 0) {
        kept = best(row, {.k = std::min(rule.count, n), .first = rule.force_first, .last = rule.force_last});
      } else {
        const double total =
            rule.mass_total > 0 ? rule.mass_total : std::accumulate(row.begin(), row.end(), 0.0);
        kept.assign(order.begin(), order.begin() + prefix(row, order, rule.mass * total, rule.strictly));
        for (int i = 0; i < n; ++i)
          if (i < rule.force_first || i >= n - rule.force_last) kept.push_back(i);
      }
      std::uint32_t* to = expected.data() + static_cast<std::ptrdiff_t>(head * longest + first + r) * words;
      std::fill(to, to + words, 0u);
      for (const std::int32_t i : kept) to[i / 32] |= 1u << (i % 32);
    }
  const DeviceVector<float> device(scores);
  const DeviceVector<std::uint32_t> bits(std::vector<std::uint32_t>(expected.size(), 7u));
  BlockChoiceParams params;
  params.scores = device.data(), params.score_stride = static_cast<std::int64_t>(stride);
  params.strip_rows = rows, params.first_row = first;
  params.count = rule.count, params.mass = rule.mass, params.mass_total = rule.mass_total;
  params.strictly = rule.strictly;
  params.force_first = rule.force_first, params.force_last = rule.force_last;
  params.bits = bits.data(), params.row_blocks = longest, params.words = words;
  choose_blocks_cuda(params, kHeads, rows, nullptr);
  ASSERT_EQ(bits.download(), expected);
}

TEST(ChooseBlocksCuda, ByCount) {
  for (const int longest : {1, 2, 33, 511, 512, 513, 2048, 2050, 8300, 16384, 16390})
    for (const int levels : {1, 6, 1 << 22})
      for (const int count : {1, 3, longest / 9, longest})
        check_blocks(longest, levels, {.count = std::max(count, 3), .force_first = 1, .force_last = 2});
  check_blocks(700, 9, {.count = 64});
}

TEST(ChooseBlocksCuda, ByMass) {
  for (const int longest : {1, 33, 512, 1500, 8300, 16390})
    for (const int levels : {1, 6, 1000})
      for (const double mass : {0.0, 0.25, 0.75, 1.0}) {
        check_blocks(longest, levels, {.force_first = 1, .force_last = 1, .mass = mass});
        check_blocks(longest, levels, {.mass = mass, .strictly = true});
      }
  check_blocks(64, 1000, {.mass = 0.5, .mass_total = 4096});
}

}  // namespace
}  // namespace lacuna
