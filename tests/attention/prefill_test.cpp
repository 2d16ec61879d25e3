// Prefill: the kernel against plain loops, and every selector's lists against its reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "attention/accounting.h"
#include "attention/kernels.h"
#include "attention/reference/reference.h"
#include "attention/strategy.h"
#include "core/error.h"
#include "tests/attention/compare.h"
#include "tests/attention/fixture.h"

namespace lacuna {
namespace {

using test::Layer;

/// Every selector with settings that make it choose, at test sizes.
const std::vector<std::string> kStrategies = {
    R"({"dense": {}})",
    R"({"vertical_slash": {"verticals": 20, "slashes": 80, "window": 32}})",
    R"({"vertical_slash": {"verticals": 1, "slashes": 1, "window": 7, "tiles": "exact"}})",
    R"({"vertical_slash": {"verticals": 100, "slashes": 100, "window": 4096, "tiles": "exact"}})",
    R"({"block_sparse": {"chunk_size": 16, "top_chunks": 4}})",
    R"({"block_sparse": {"chunk_size": 32, "top_chunks": 1}})",
    R"({"block_sparse": {"chunk_size": 64, "top_chunks": 4}})",
    R"({"block_sparse": {"chunk_size": 128, "top_chunks": 2}})",
    R"({"flexprefill": {"alpha": 0, "min_budget": 30, "window": 64}})",
    R"({"flexprefill": {"alpha": 0.5, "min_budget": 8, "window": 64}})",
    R"({"flexprefill": {"variant": "original", "alpha": 0.6, "min_budget": 40, "window": 128, "tau": 0.1}})",
    R"({"flexprefill": {"variant": "original", "alpha": 0.3, "min_budget": 100, "window": 128, "tau": 1}})",
    R"({"flexprefill": {"variant": "paper", "alpha": 0.3, "min_budget": 10, "window": 50, "tau": 1}})",
    R"({"xattention": {"threshold": 0.5, "stride": 8, "block": 32}})",
    R"({"xattention": {"threshold": 0.9, "stride": 16, "block": 128}})",
    R"({"streaming": {"sinks": 4, "window": 70}})",
    R"({"streaming": {"sinks": 0, "window": 1}})",
    R"({"a_shape": {"sinks": 64, "local": 100}})",
    R"({"tri_shape": {"sinks": 10, "local": 64, "last_queries": 30}})",
    R"({"oracle_top_k": {"block": 16, "top_k": 3}})",
    R"({"oracle_top_p": {"block": 32, "top_p": 0.6}})",
    R"({"random": {"block": 32, "top_k": 3}})",
};

MethodSpec method(const std::string& text) {
  return parse_strategy(Json{{"prefill", Json::parse(text)}}, "test").prefill;
}

TileLists select(const Layer& layer, const std::string& text, ThreadPool* threads = nullptr) {
  TileLists lists;
  AttentionCounts counts;
  PrefillInput input = layer.input;
  input.threads = threads;
  make_prefill_selector(method(text))->select(input, lists, counts);
  return lists;
}

void run(Layer& layer, const TileLists& lists, AttentionCounts& counts, int threads = 2) {
  ThreadPool pool(threads);
  attention_prefill(layer.input, lists, layer.output, pool, counts);
}

/// Kernel output, cells and flops against plain loops over every cell.
void check_kernel(Layer& layer, const TileLists& lists, const std::string& what) {
  const LayerInfo& info = layer.input.info;
  AttentionCounts counts;
  run(layer, lists, counts);
  double visited = 0, causal = 0;
  std::vector<float> want;
  for (int h = 0; h < info.q_heads; ++h) {
    const auto mask = reference::mask_of(lists, h, info.window);
    for (const auto& row : mask) visited += static_cast<double>(std::count(row.begin(), row.end(), true));
    for (const auto& row : reference::causal_mask(lists.tokens, info.window)) {
      causal += static_cast<double>(std::count(row.begin(), row.end(), true));
    }
    const auto head = reference::attention(layer.input, h, mask);
    want.insert(want.end(), head.begin(), head.end());
  }
  const float scores = info.scale * test::largest(layer.q) * test::largest(layer.k) *
                       std::sqrt(static_cast<float>(info.head_dim));
  test::expect_near(layer.out, want, test::largest(layer.v), scores, what);
  EXPECT_EQ(counts.visited_cells, visited) << what;
  EXPECT_EQ(counts.causal_cells, causal) << what;
  EXPECT_GE(counts.computed_cells, visited) << what;
  EXPECT_EQ(counts.flops, 4.0 * info.head_dim * counts.computed_cells) << what;
}

TEST(PrefillKernel, DenseMatchesReferenceInAllSizes) {
  for (const int head_dim : {8, 64, 72, 80, 96, 128, 256}) {
    for (const std::int64_t tokens : {1, 2, 47, 48, 49, 63, 64, 65, 200}) {
      Layer layer({.tokens = tokens, .q_heads = 2, .kv_heads = 1, .head_dim = head_dim}, 7);
      check_kernel(layer, select(layer, R"({"dense": {}})"),
                   fmt::format("head_dim {} tokens {}", head_dim, tokens));
    }
  }
}

TEST(PrefillKernel, SlidingWindowAndSoftCap) {
  for (const int window : {1, 5, 64, 100, 1000}) {
    for (const char* text : {R"({"dense": {}})", R"({"streaming": {"window": 70}})",
                             R"({"random": {"block": 16, "top_k": 2}})"}) {
      Layer layer({.tokens = 200, .q_heads = 2, .kv_heads = 2, .head_dim = 64}, 3);
      layer.input.info.window = window;
      layer.input.info.softcap = window == 64 ? 20.0f : 0.0f;
      check_kernel(layer, select(layer, text), fmt::format("{} window {}", text, window));
    }
  }
}

TEST(PrefillKernel, AnyViewLayout) {
  // The same layer stored [tokens, heads, head_dim], as a transformer writes it.
  Layer layer({.tokens = 130, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 5);
  AttentionCounts counts;
  const TileLists lists = select(layer, kStrategies[1]);
  run(layer, lists, counts);
  const std::vector<float> want = layer.out;

  const auto interleave = [](const std::vector<float>& x, HeadsView& view) {
    std::vector<float> y(x.size());
    for (int h = 0; h < view.heads; ++h) {
      for (std::int64_t t = 0; t < view.tokens; ++t) {
        std::copy_n(view.row(h, t), view.head_dim, y.data() + (t * view.heads + h) * view.head_dim);
      }
    }
    view.head_stride = view.head_dim;
    view.token_stride = std::int64_t{view.heads} * view.head_dim;
    return y;
  };
  auto q = interleave(layer.q, layer.input.q), k = interleave(layer.k, layer.input.k),
       v = interleave(layer.v, layer.input.v);
  layer.input.q.data = q.data();
  layer.input.k.data = k.data();
  layer.input.v.data = v.data();
  EXPECT_EQ(select(layer, kStrategies[1]).columns, lists.columns);
  run(layer, lists, counts);
  EXPECT_EQ(layer.out, want);
}

TEST(PrefillKernel, SameBitsWithAnyNumberOfThreads) {
  for (const auto& text : kStrategies) {
    Layer layer({.tokens = 300, .q_heads = 7, .kv_heads = 1, .head_dim = 64}, 11);
    std::vector<std::vector<float>> outputs;
    std::vector<TileLists> lists;
    for (const int threads : {1, 2, 8}) {
      ThreadPool pool(threads);
      AttentionCounts counts;
      lists.push_back(select(layer, text, &pool));
      run(layer, lists.back(), counts, threads);
      outputs.push_back(layer.out);
      EXPECT_EQ(lists.back().ranges, lists.front().ranges) << text;
      EXPECT_EQ(lists.back().columns, lists.front().columns) << text;
      EXPECT_EQ(outputs.back(), outputs.front()) << text;
    }
  }
}

TEST(PrefillKernel, AllTilesEqualsDenseBitForBit) {
  Layer layer({.tokens = 333, .q_heads = 4, .kv_heads = 2, .head_dim = 80}, 13);
  AttentionCounts dense_counts;
  run(layer, select(layer, R"({"dense": {}})"), dense_counts);
  const std::vector<float> dense = layer.out;
  for (const char* text :
       {R"({"block_sparse": {"chunk_size": 16, "top_chunks": 1000000}})",
        R"({"block_sparse": {"chunk_size": 128, "top_chunks": 1000000}})",
        R"({"vertical_slash": {"verticals": 1000000, "slashes": 1000000}})",
        R"({"flexprefill": {"alpha": 1}})", R"({"flexprefill": {"variant": "original", "alpha": 1}})",
        R"({"xattention": {"threshold": 1}})", R"({"streaming": {"window": 1000000}})",
        R"({"a_shape": {"local": 1000000}})", R"({"tri_shape": {"last_queries": 1000000}})",
        R"({"oracle_top_k": {"top_k": 1000000}})", R"({"random": {"top_k": 1000000}})"}) {
    AttentionCounts counts;
    run(layer, select(layer, text), counts);
    EXPECT_EQ(layer.out, dense) << text;
    EXPECT_EQ(counts.visited_cells, dense_counts.visited_cells) << text;
    EXPECT_EQ(counts.sparsity(), 0) << text;
  }
}

TEST(PrefillSelectors, EqualTheirReferencesOnIntegers) {
  int seed = 0;
  for (const std::int64_t tokens : {1, 3, 64, 65, 200, 391}) {
    for (const int group : {1, 4}) {
      Layer layer({.tokens = tokens, .q_heads = 2 * group, .kv_heads = 2, .head_dim = 64}, ++seed, 3);
      for (const auto& text : kStrategies) {
        const MethodSpec spec = method(text);
        const TileLists lists = select(layer, text);
        for (int h = 0; h < layer.input.info.q_heads; ++h) {
          const auto want = reference::prefill_mask(spec.method, spec.params, layer.input, h);
          ASSERT_EQ(reference::mask_of(lists, h, 0), want) << text << " tokens " << tokens << " head " << h;
        }
        check_kernel(layer, lists, text);
      }
    }
  }
}

TEST(PrefillSelectors, EveryMethodIsTested) {
  for (const auto& info : methods()) {
    if (info.slot != Slot::kPrefill) continue;
    EXPECT_TRUE(std::ranges::any_of(kStrategies, [&](const auto& s) {
      return method(s).method == info.name;
    })) << info.name;
  }
}

TEST(PrefillSelectors, EqualScoresKeepTheLowerIndex) {
  Layer layer({.tokens = 300, .q_heads = 1, .kv_heads = 1, .head_dim = 64}, 1);
  std::fill(layer.q.begin(), layer.q.end(), 1.0f);
  std::fill(layer.k.begin(), layer.k.end(), 1.0f);
  // All columns before the window have the same sum: the first ones win.
  const TileLists lists =
      select(layer, R"({"vertical_slash": {"verticals": 10, "slashes": 64, "window": 8}})");
  std::vector<std::int32_t> first(10);
  std::iota(first.begin(), first.end(), 0);
  EXPECT_EQ(lists.columns, first);
  // All blocks have the same score: the first, the second, ..., then the forced last two.
  const TileLists blocks = select(layer, R"({"block_sparse": {"chunk_size": 16, "top_chunks": 5}})");
  const auto row = blocks.ranges_of(0, 15);
  EXPECT_EQ(std::vector<KeyRange>(row.begin(), row.end()), (std::vector<KeyRange>{{0, 48}, {224, 32}}));
}

TEST(PrefillSelectors, NanScoresNameLayerAndHead) {
  for (const auto& text : kStrategies) {
    const std::string name = method(text).method;
    if (name == "dense" || name == "streaming" || name == "a_shape" || name == "tri_shape" ||
        name == "random")
      continue;
    Layer layer({.tokens = 150, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 1);
    layer.input.info.layer = 5;
    layer.input.q.row(3, 149)[7] = NAN;
    try {
      select(layer, text);
      ADD_FAILURE() << text << " accepted NaN";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr("layer 5, query head 3")) << text;
    }
  }
}

TEST(PrefillSelectors, NanInputsReachTheOutput) {
  Layer layer({.tokens = 100, .q_heads = 1, .kv_heads = 1, .head_dim = 64}, 1);
  layer.input.k.row(0, 50)[0] = NAN;
  AttentionCounts counts;
  run(layer, select(layer, R"({"dense": {}})"), counts);
  EXPECT_FALSE(std::isnan(layer.out[49 * 64]));
  EXPECT_TRUE(std::isnan(layer.out[50 * 64]));
  EXPECT_TRUE(std::isnan(layer.out[99 * 64]));
}

TEST(Accounting, VisibleCellsEqualsCounting) {
  Rng rng(4);
  for (int i = 0; i < 2000; ++i) {
    const auto row_begin = static_cast<std::int64_t>(rng.below(40)),
               row_end = row_begin + static_cast<std::int64_t>(rng.below(20));
    const auto key_begin = static_cast<std::int64_t>(rng.below(60)),
               key_end = key_begin + static_cast<std::int64_t>(rng.below(30));
    const int window = static_cast<int>(rng.below(50));
    double cells = 0;
    for (auto r = row_begin; r < row_end; ++r) {
      for (auto k = key_begin; k < key_end; ++k) cells += k <= r && (window == 0 || k > r - window);
    }
    ASSERT_EQ(visible_cells(row_begin, row_end, key_begin, key_end, window), cells)
        << row_begin << " " << row_end << " " << key_begin << " " << key_end << " " << window;
  }
}

}  // namespace
}  // namespace lacuna
