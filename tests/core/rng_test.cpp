#include "core/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace lacuna {
namespace {

// Known answers of the Random123 library, kat_vectors, philox4x32 10 rounds.
TEST(Philox, KnownAnswers) {
  using Block = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t f = 0xffffffff;
  EXPECT_EQ(philox4x32({f, f, f, f}, {f, f}), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, StreamsAreIndependentAndRepeatable) {
  Rng a(1, 2), b(1, 2), c(1, 3);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const auto x = a.next_u64();
    EXPECT_EQ(x, b.next_u64());
    differs |= x != c.next_u64();
  }
  EXPECT_TRUE(differs);
}

TEST(Rng, BelowIsUniform) {
  Rng rng(7);
  std::array<int, 10> counts{};
  for (int i = 0; i < 100000; ++i) ++counts[rng.below(10)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);  // 5 standard deviations
}

TEST(Rng, SampleIsDistinctAndInRange) {
  Rng rng(7);
  const auto picks = rng.sample(50, 50);
  EXPECT_EQ(std::set(picks.begin(), picks.end()).size(), 50u);
  const auto few = rng.sample(1'000'000'000'000, 1000);
  EXPECT_EQ(std::set(few.begin(), few.end()).size(), 1000u);
  EXPECT_LT(*std::max_element(few.begin(), few.end()), 1'000'000'000'000u);
}

TEST(Rng, NormalHasUnitVariance) {
  Rng rng(7);
  double sum = 0, squares = 0;
  constexpr int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double x = rng.normal();
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / n, 0, 0.02);
  EXPECT_NEAR(squares / n, 1, 0.03);
}

}  // namespace
}  // namespace lacuna
