// The prefill kernel against plain loops.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/accounting.h"
#include "attention/cpu/kernels.h"
#include "attention/kernels.h"
#include "attention/reference/reference.h"
#include "attention/strategy.h"
#include "tests/attention/fixture.h"

namespace lacuna {
namespace {

using test::Layer;

/// Outputs are averages of values: the error of fp32 sums over n terms stays below a few roundings of the
/// largest value.
void expect_near(const std::vector<float>& got, const std::vector<float>& want, float largest,
                 const char* what) {
  ASSERT_EQ(got.size(), want.size());
  std::size_t worst = 0;
  float error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::isnan(got[i]), std::isnan(want[i])) << what << " element " << i;
    if (std::abs(got[i] - want[i]) > error) {
      error = std::abs(got[i] - want[i]);
      worst = i;
    }
  }
  EXPECT_LE(error, 16 * 1.2e-7f * largest)
      << what << ": element " << worst << " is " << got[worst] << ", expected " << want[worst];
}

float largest(const std::vector<float>& x) {
  float m = 0;
  for (const float v : x) m = std::max(m, std::abs(v));
  return m;
}

void check(Layer& layer, const TileLists& lists, const char* what) {
  ThreadPool pool(2);
  AttentionCounts counts;
  attention_prefill(layer.input, lists, layer.output, pool, counts);
  double visited = 0;
  std::vector<float> want;
  for (int h = 0; h < layer.input.info.q_heads; ++h) {
    const auto mask = reference::mask_of(lists, h, layer.input.info.window);
    for (const auto& row : mask) visited += static_cast<double>(std::count(row.begin(), row.end(), true));
    const auto head = reference::attention(layer.input, h, mask);
    want.insert(want.end(), head.begin(), head.end());
  }
  expect_near(layer.out, want, largest(layer.v), what);
  EXPECT_EQ(counts.visited_cells, visited) << what;
}

TEST(Prefill, DenseMatchesReference) {
  for (const int head_dim : {8, 64, 72, 80, 96, 128, 256}) {
    for (const std::int64_t tokens : {1, 2, 63, 64, 65, 200}) {
      Layer layer({.tokens = tokens, .q_heads = 4, .kv_heads = 2, .head_dim = head_dim}, 7);
      TileLists lists;
      AttentionCounts counts;
      make_prefill_selector(parse_strategy(nullptr, "test").prefill)->select(layer.input, lists, counts);
      check(layer, lists, ("dense " + std::to_string(head_dim) + " x " + std::to_string(tokens)).c_str());
    }
  }
}

}  // namespace
}  // namespace lacuna
