// One way to compare outputs: NaN positions first, then the largest error against the size of the values.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

namespace lacuna::test {

inline float largest(const std::vector<float>& x) {
  float m = 0;
  for (const float v : x) m = std::max(m, std::abs(v));
  return m;
}

/// An output is an average of values, weighted by exponentials of scores. Its error is a few roundings of the
/// largest value, plus the rounding of the scores themselves, which the exponential turns into a relative
/// error of |score| * epsilon.
inline void expect_near(const std::vector<float>& got, const std::vector<float>& want, float largest_value,
                        float largest_score, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  constexpr float kEpsilon = 1.2e-7f;
  std::size_t worst = 0;
  float error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::isnan(got[i]), std::isnan(want[i])) << what << ": element " << i;
    if (std::abs(got[i] - want[i]) > error) {
      error = std::abs(got[i] - want[i]);
      worst = i;
    }
  }
  EXPECT_LE(error, (16 + 2 * largest_score) * kEpsilon * largest_value)
      << what << ": element " << worst << " is " << got[worst] << ", expected " << want[worst];
}

}  // namespace lacuna::test
