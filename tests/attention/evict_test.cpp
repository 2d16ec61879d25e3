// Evictors: kept sets against references, rules that must hold, and degenerate input.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "attention/reference/reference.h"
#include "attention/strategy.h"
#include "core/error.h"
#include "tests/attention/fixture.h"

namespace lacuna {
namespace {

using test::Layer;

const std::vector<std::string> kStrategies = {
    R"({"none": {}})",
    R"({"snapkv": {"capacity": 150, "window": 32}})",
    R"({"snapkv": {"capacity": 200, "window": 4096, "kernel": 1}})",
    R"({"ada_snapkv": {"capacity": 160, "window": 32}})",
    R"({"ada_snapkv": {"capacity": 220, "window": 16, "min_share": 0.9}})",
    R"({"ada_snapkv": {"capacity": 10, "window": 16}})",
    R"({"pyramidkv": {"capacity": 180, "window": 32, "beta": 3}})",
    R"({"tova": {"capacity": 33}})",
    R"({"expected_attention": {"capacity": 60, "window": 64}})",
    R"({"expected_attention": {"capacity": 60, "epsilon": 0.01, "value_norm": false}})",
    R"({"streaming": {"capacity": 50}})",
};

MethodSpec method(const std::string& text) {
  return parse_strategy(Json{{"evict", Json::parse(text)}}, "test").evict;
}

std::vector<std::vector<std::int32_t>> keep(const Layer& layer, const std::string& text) {
  AttentionCounts counts;
  auto kept = make_evictor(method(text))->keep(layer.input, counts);
  if (kept.empty()) {
    kept.resize(static_cast<std::size_t>(layer.input.info.kv_heads));
    for (auto& head : kept) {
      head.resize(static_cast<std::size_t>(layer.input.k.tokens));
      std::iota(head.begin(), head.end(), 0);
    }
  }
  return kept;
}

TEST(Evictors, RandomKeepsTheEndsAndADrawOfItsOwnPerLayerHeadAndSeed) {
  const std::string text = R"({"random": {"capacity": 90, "first": 3, "last": 20}})";
  Layer layer({.tokens = 300, .q_heads = 4, .kv_heads = 2, .head_dim = 32}, 1, 3);
  layer.input.seed = 7;
  const auto kept = keep(layer, text);
  for (const auto& head : kept) {
    ASSERT_EQ(head.size(), 90u);
    EXPECT_TRUE(std::ranges::is_sorted(head));
    EXPECT_EQ(std::ranges::adjacent_find(head), head.end());
    for (int i = 0; i < 3; ++i) EXPECT_EQ(head[static_cast<std::size_t>(i)], i);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(head[static_cast<std::size_t>(70 + i)], 280 + i);
  }
  EXPECT_NE(kept[0], kept[1]);
  EXPECT_EQ(kept, keep(layer, text));
  layer.input.seed = 8;
  EXPECT_NE(kept, keep(layer, text));
  layer.input.seed = 7;
  layer.input.info.layer = 1;
  EXPECT_NE(kept, keep(layer, text));
  // Kv head 1 alone on a second rank draws what it draws beside kv head 0.
  layer.input.info.layer = 0;
  layer.input.info.kv_head_begin = 1;
  EXPECT_EQ(keep(layer, text)[0], kept[1]);
  EXPECT_EQ(keep(layer, R"({"random": {"capacity": 300}})")[0].size(), 300u);  // nothing has to go
}

TEST(Evictors, EqualTheirReferencesOnIntegers) {
  int seed = 0;
  for (const std::int64_t tokens : {1, 40, 133, 200, 391}) {
    for (const int group : {1, 4, 7}) {
      Layer layer({.tokens = tokens, .q_heads = 2 * group, .kv_heads = 2, .head_dim = 32}, ++seed, 3);
      layer.input.info.layer = 2;
      layer.input.info.layers = 5;
      for (const auto& text : kStrategies) {
        const MethodSpec spec = method(text);
        ASSERT_EQ(keep(layer, text), reference::evict(spec.method, spec.params, layer.input))
            << text << " tokens " << tokens;
      }
    }
  }
}

TEST(Evictors, EveryMethodIsTested) {
  for (const auto& info : methods()) {
    if (info.slot != Slot::kEvict || info.name == "random") continue;  // the draw has a test of its own
    EXPECT_TRUE(std::ranges::any_of(kStrategies, [&](const auto& s) {
      return method(s).method == info.name;
    })) << info.name;
  }
}

TEST(Evictors, BudgetsAndForcedTokens) {
  Layer layer({.tokens = 500, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 4);
  for (const auto& head : keep(layer, R"({"snapkv": {"capacity": 200}})")) {
    EXPECT_EQ(head.size(), 200u);
    for (std::int32_t t = 0; t < 4; ++t) EXPECT_EQ(head[static_cast<std::size_t>(t)], t);
    for (std::int32_t t = 372; t < 500; ++t) EXPECT_TRUE(std::ranges::binary_search(head, t));
  }
  // Below the forced tokens, only they stay.
  EXPECT_EQ(keep(layer, R"({"snapkv": {"capacity": 1}})")[0].size(), 132u);
  // Ada-SnapKV spends capacity x heads, unevenly.
  const auto ada = keep(layer, R"({"ada_snapkv": {"capacity": 200}})");
  EXPECT_EQ(ada[0].size() + ada[1].size(), 400u);
  // PyramidKV: the layers' capacities average to the capacity and fall.
  std::size_t total = 0, last = 1000;
  for (int l = 0; l < 5; ++l) {
    layer.input.info.layer = l;
    layer.input.info.layers = 5;
    const auto size = keep(layer, R"({"pyramidkv": {"capacity": 220, "beta": 1.5}})")[0].size();
    EXPECT_LT(size, last);
    last = size;
    total += size;
  }
  EXPECT_EQ(total, 5u * 220u);
}

TEST(Evictors, EqualScoresKeepTheLowerIndex) {
  Layer layer({.tokens = 300, .q_heads = 2, .kv_heads = 2, .head_dim = 64}, 4);
  std::fill(layer.k.begin(), layer.k.end(), 1.0f);
  // One query row, all weights equal; zero padding makes the first 10 positions weaker, 10 .. are all the
  // same.
  const auto kept = keep(layer, R"({"snapkv": {"capacity": 140, "window": 1}})");
  EXPECT_THAT(std::vector(kept[0].begin(), kept[0].begin() + 12),
              testing::ElementsAre(0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17));
}

TEST(Evictors, NanNamesLayerAndHead) {
  for (const auto& text : kStrategies) {
    const std::string name = method(text).method;
    if (name == "none" || name == "streaming" || name == "random") continue;
    Layer layer({.tokens = 230, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 1);
    layer.input.info.layer = 9;
    layer.input.q.row(2, 229)[0] = NAN;
    try {
      keep(layer, text);
      ADD_FAILURE() << text << " accepted NaN";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr("layer 9, query head 2")) << text;
    }
  }
}

TEST(Evictors, BadParametersAreRefused) {
  for (const char* text :
       {R"({"snapkv": {"capacity": 0}})", R"({"snapkv": {"capacity": -5}})", R"({"snapkv": {"kernel": 20}})",
        R"({"ada_snapkv": {"min_share": 1.5}})", R"({"streaming": {"capacity": 4, "sinks": 4}})",
        R"({"snapkv": {"capcity": 100}})", R"({"snpkv": {}})"}) {
    EXPECT_THROW(method(text), Error) << text;
  }
}

}  // namespace
}  // namespace lacuna
