// Decode: the kernel against plain loops over ragged pages, and every selector's pages against its reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "attention/kernels.h"
#include "attention/reference/reference.h"
#include "attention/strategy.h"
#include "core/error.h"
#include "tests/attention/compare.h"
#include "tests/attention/fixture.h"
#include "tests/attention/paged_cache.h"

namespace lacuna {
namespace {

using test::Layer;
using test::PagedCache;

const std::vector<std::string> kStrategies = {
    R"({"dense": {}})",
    R"({"quest": {"budget": 64}})",
    R"({"quest": {"budget": 95, "share_pages": false}})",
    R"({"quest": {"budget": 100000}})",
    R"({"oracle_top_k": {"budget": 48}})",
    R"({"oracle_top_p": {"top_p": 0.5}})",
    R"({"twilight": {"budget": 96, "top_p": 0.6}})",
    R"({"streaming": {"window": 40, "sinks": 17}})",
    R"({"streaming": {"window": 1, "sinks": 0}})",
};

MethodSpec method(const std::string& text) {
  return parse_strategy(Json{{"decode", Json::parse(text)}}, "test").decode;
}

/// Query vectors of the last token, [q_heads, head_dim].
std::vector<float> last_queries(const Layer& layer) {
  std::vector<float> q;
  for (int h = 0; h < layer.input.info.q_heads; ++h) {
    const float* row = layer.input.q.row(h, layer.input.q.tokens - 1);
    q.insert(q.end(), row, row + layer.input.info.head_dim);
  }
  return q;
}

std::vector<PageList> select(const DecodeInput& input, const DecodeSelector& selector, DecodeState* state) {
  std::vector<PageList> lists;
  AttentionCounts counts;
  selector.select(input, state, lists, counts);
  return lists;
}

/// Kernel output and accounting for one sequence against plain loops.
void check_kernel(const Layer& layer, const PagedCache& cache, const std::vector<PageList>& lists,
                  const std::string& what) {
  const LayerInfo& info = layer.input.info;
  const std::vector<float> q = last_queries(layer);
  std::vector<float> out(q.size()), want;
  ThreadPool threads(2);
  AttentionCounts counts;
  const DecodeWork work{.q = q.data(), .out = out.data(), .heads = cache.heads(), .lists = lists};
  attention_decode({&work, 1}, cache.pool(), cache.page_elements(), info, threads, {&counts, 1});
  double cells = 0;
  for (int h = 0; h < info.q_heads; ++h) {
    const int kv = info.kv_head_of(h);
    const PagedHead& head = cache.heads()[static_cast<std::size_t>(kv)];
    std::vector<std::int64_t> tokens;
    for (std::int64_t t = 0; t < head.tokens; ++t) {
      const bool per_kv = std::ssize(lists) == info.kv_heads;
      const bool listed =
          lists.empty() || std::ranges::binary_search(lists[static_cast<std::size_t>(per_kv ? kv : h)],
                                                      static_cast<std::int32_t>(t / kPageTokens));
      if (listed && (info.window == 0 || t >= head.tokens - info.window)) tokens.push_back(t);
    }
    cells += static_cast<double>(tokens.size());
    const auto row = reference::decode_attention(q.data() + h * info.head_dim, head, tokens, cache.pool(),
                                                 cache.page_elements(), info);
    want.insert(want.end(), row.begin(), row.end());
  }
  const float scores =
      info.scale * test::largest(q) * test::largest(layer.k) * std::sqrt(static_cast<float>(info.head_dim));
  test::expect_near(out, want, test::largest(layer.v), scores, what);
  EXPECT_EQ(counts.visited_cells, cells) << what;
}

TEST(DecodeKernel, DenseMatchesReferenceInAllSizes) {
  for (const int head_dim : {8, 64, 72, 80, 96, 128, 256}) {
    for (const std::int64_t tokens : {1, 15, 16, 17, 130, 2100}) {
      for (const int group : {1, 7}) {
        Layer layer({.tokens = tokens, .q_heads = group, .kv_heads = 1, .head_dim = head_dim}, 3);
        const PagedCache cache(layer.input);
        check_kernel(layer, cache, {},
                     fmt::format("head_dim {} tokens {} group {}", head_dim, tokens, group));
      }
    }
  }
}

TEST(DecodeKernel, WindowAndSoftCap) {
  for (const int window : {1, 16, 50, 1000}) {
    Layer layer({.tokens = 333, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 3);
    layer.input.info.window = window;
    layer.input.info.softcap = window == 50 ? 15.0f : 0.0f;
    const PagedCache cache(layer.input);
    check_kernel(layer, cache, {}, fmt::format("window {}", window));
    check_kernel(layer, cache, {{0, 3, 20}, {5}}, fmt::format("window {} lists", window));
  }
}

TEST(DecodeKernel, RaggedHeadsAndBatches) {
  Layer layer({.tokens = 300, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 9);
  std::vector<std::vector<std::int32_t>> kept(2);
  for (std::int32_t t = 0; t < 300; ++t) {
    if (t % 3 == 0) kept[0].push_back(t);
    if (t > 290) kept[1].push_back(t);
  }
  const PagedCache ragged(layer.input, kept);
  check_kernel(layer, ragged, {}, "ragged");
  check_kernel(layer, ragged, {{2, 6}, {}}, "an empty list gives zeros");

  // One sequence alone and within a batch: the same bits; and with 1, 2 and 8 threads.
  const PagedCache full(layer.input, {}, 2);
  const std::vector<float> q = last_queries(layer);
  const auto step = [&](int count, int threads) {
    std::vector<float> out(q.size() * static_cast<std::size_t>(count));
    std::vector<DecodeWork> batch;
    for (int i = 0; i < count; ++i) {
      batch.push_back({.q = q.data(),
                       .out = out.data() + static_cast<std::size_t>(i) * q.size(),
                       .heads = i % 2 == 0 ? full.heads() : full.heads()});
    }
    ThreadPool pool(threads);
    std::vector<AttentionCounts> counts(batch.size());
    attention_decode(batch, full.pool(), full.page_elements(), layer.input.info, pool, counts);
    out.resize(q.size());
    return out;
  };
  EXPECT_EQ(step(1, 1), step(3, 1));
  EXPECT_EQ(step(1, 1), step(3, 2));
  EXPECT_EQ(step(1, 1), step(2, 8));
}

TEST(DecodeKernel, CountsBytesAndContext) {
  Layer layer({.tokens = 100, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 9);
  const PagedCache cache(layer.input);
  const std::vector<float> q = last_queries(layer);
  std::vector<float> out(q.size());
  ThreadPool pool(1);
  const std::vector<PageList> lists = {{0, 6}, {1}};  // page 6 holds 4 tokens
  AttentionCounts counts;
  const DecodeWork work{
      .q = q.data(), .out = out.data(), .heads = cache.heads(), .lists = lists, .context_tokens = 500};
  attention_decode({&work, 1}, cache.pool(), cache.page_elements(), layer.input.info, pool, {&counts, 1});
  EXPECT_EQ(counts.visited_cells, 2 * (20 + 16));
  EXPECT_EQ(counts.causal_cells, 4 * 500);
  EXPECT_EQ(counts.kv_bytes_read, (20 + 16) * 2 * 64 * 4);
  EXPECT_EQ(counts.computed_cells, 2 * (32 + 16));
  EXPECT_EQ(counts.flops, 4.0 * 64 * counts.computed_cells);
}

TEST(DecodeSelectors, EqualTheirReferencesOnIntegers) {
  int seed = 0;
  for (const std::int64_t tokens : {1, 16, 17, 200, 401}) {
    for (const int group : {1, 4, 7}) {
      Layer layer({.tokens = tokens, .q_heads = 2 * group, .kv_heads = 2, .head_dim = 64}, ++seed, 3);
      const PagedCache cache(layer.input);
      const std::vector<float> q = last_queries(layer);
      reference::Step step{.q = q.data(), .keys = {}, .info = layer.input.info};
      for (int kv = 0; kv < 2; ++kv)
        step.keys.emplace_back(layer.input.k.row(kv, 0), layer.input.k.row(kv, 0) + tokens * 64);
      for (const auto& text : kStrategies) {
        const MethodSpec spec = method(text);
        const auto selector = make_decode_selector(spec);
        const auto state = selector->make_state(layer.input.info);
        const auto lists = select(cache.input(q.data(), layer.input.info, *layer.input.communicator),
                                  *selector, state.get());
        ASSERT_EQ(lists, reference::decode_pages(spec.method, spec.params, step))
            << text << " tokens " << tokens;
        check_kernel(layer, cache, lists, text);
      }
    }
  }
}

TEST(DecodeSelectors, EveryMethodIsTested) {
  for (const auto& info : methods()) {
    if (info.slot != Slot::kDecode) continue;
    EXPECT_TRUE(std::ranges::any_of(kStrategies, [&](const auto& s) {
      return method(s).method == info.name;
    })) << info.name;
  }
}

TEST(DecodeSelectors, StateGrowsTokenByTokenAsIfSeenAtOnce) {
  Layer layer({.tokens = 100, .q_heads = 2, .kv_heads = 2, .head_dim = 64}, 2);
  const PagedCache cache(layer.input);
  const std::vector<float> q = last_queries(layer);
  for (const auto& text : kStrategies) {
    const auto selector = make_decode_selector(method(text));
    const auto grown = selector->make_state(layer.input.info);
    for (std::int64_t tokens = 30; tokens <= 100; tokens += tokens % 7 + 1) {
      const auto heads = cache.prefix(tokens);
      DecodeInput input = cache.input(q.data(), layer.input.info, *layer.input.communicator);
      input.heads = heads;
      const auto fresh = selector->make_state(layer.input.info);
      const auto fork = grown ? grown->clone() : nullptr;
      const auto want = select(input, *selector, fresh.get());
      EXPECT_EQ(select(input, *selector, grown.get()), want) << text << " at " << tokens;
      EXPECT_EQ(select(input, *selector, fork.get()), want) << text << " forked at " << tokens;
      if (fresh) {
        EXPECT_EQ(grown->bytes(), static_cast<std::size_t>((tokens + 15) / 16) * 2 * 2 * 64 * 4);
      }
    }
  }
}

TEST(DecodeSelectors, NanNamesLayerAndHead) {
  for (const auto& text : kStrategies) {
    const std::string name = method(text).method;
    if (name == "dense" || name == "streaming") continue;
    Layer layer({.tokens = 60, .q_heads = 4, .kv_heads = 2, .head_dim = 64}, 1);
    layer.input.info.layer = 7;
    layer.input.k.row(1, 30)[3] = NAN;
    const PagedCache cache(layer.input);
    const std::vector<float> q = last_queries(layer);
    const auto selector = make_decode_selector(method(text));
    const auto state = selector->make_state(layer.input.info);
    try {
      select(cache.input(q.data(), layer.input.info, *layer.input.communicator), *selector, state.get());
      ADD_FAILURE() << text << " accepted NaN";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr("layer 7, query head 2")) << text;
    }
  }
}

}  // namespace
}  // namespace lacuna
