// A layer that looks up facts: would a method that keeps the wrong things be caught? The prompt is a list of
// facts (key, value) among filler; its last tokens ask for one key. Dense attention answers; so must every
// method that claims to find what matters, at 80 % sparsity; a small streaming window must not, because the
// fact stands far back.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention/kernels.h"
#include "attention/strategy.h"
#include "tests/attention/fixture.h"
#include "tests/attention/paged_cache.h"

namespace lacuna {
namespace {

constexpr std::int64_t kTokens = 2048;
constexpr int kDim = 64;
constexpr int kFacts = 40;
constexpr int kPrompts = 4;
constexpr std::int64_t kQuestion = 32;  // last tokens, which all ask for the same key

/// One head of associative recall: keys of facts are random unit vectors, filler keys are weak noise, the
/// question's queries are the wanted key, strongly scaled, and a fact's value names it in one-hot form.
class Recall {
 public:
  explicit Recall(std::uint64_t seed)
      : layer({.tokens = kTokens, .q_heads = 2, .kv_heads = 1, .head_dim = kDim}, seed, 0, 0.1f) {
    Rng rng(seed, 77);
    for (int f = 0; f < kFacts; ++f) {
      // Facts stand apart, in the first three quarters of the prompt.
      positions.push_back(20 + f * 38 + static_cast<std::int64_t>(rng.below(20)));
      std::vector<float> key(kDim);
      float norm = 0;
      for (float& x : key) {
        x = static_cast<float>(rng.normal());
        norm += x * x;
      }
      for (int c = 0; c < kDim; ++c) {
        layer.input.k.row(0, positions.back())[c] = key[static_cast<std::size_t>(c)] / std::sqrt(norm);
        layer.input.v.row(0, positions.back())[c] = c == f ? 1.0f : 0.0f;
      }
    }
    wanted = static_cast<int>(rng.below(kFacts / 2));  // from far back
    for (int h = 0; h < 2; ++h) {
      for (std::int64_t t = kTokens - kQuestion; t < kTokens; ++t) {
        for (int c = 0; c < kDim; ++c) {
          layer.input.q.row(h, t)[c] =
              130.0f * layer.input.k.row(0, positions[static_cast<std::size_t>(wanted)])[c];
        }
      }
    }
  }

  /// The fact that an output names.
  static int answer(const float* out) { return static_cast<int>(std::max_element(out, out + kFacts) - out); }

  bool prefill_answers(const std::string& strategy, double least_sparsity) {
    const StrategySpec spec = parse_strategy(Json{{"prefill", Json::parse(strategy)}}, "test");
    TileLists lists;
    AttentionCounts counts;
    ThreadPool pool(1);
    make_prefill_selector(spec.prefill)->select(layer.input, lists, counts);
    attention_prefill(layer.input, lists, layer.output, pool, counts);
    EXPECT_GE(counts.sparsity(), least_sparsity) << strategy;
    return answer(layer.output.row(0, kTokens - 1)) == wanted &&
           answer(layer.output.row(1, kTokens - 1)) == wanted;
  }

  bool decode_answers(const std::string& strategy, double least_sparsity) {
    const StrategySpec spec = parse_strategy(Json::parse(strategy), "test");
    AttentionCounts counts;
    const auto kept = make_evictor(spec.evict)->keep(layer.input, counts);
    const test::PagedCache cache(layer.input, kept);
    std::vector<float> q;
    for (int h = 0; h < 2; ++h)
      q.insert(q.end(), layer.input.q.row(h, kTokens - 1), layer.input.q.row(h, kTokens - 1) + kDim);
    const auto selector = make_decode_selector(spec.decode);
    const auto state = selector->make_state(layer.input.info);
    std::vector<PageList> pages;
    selector->select(cache.input(q.data(), layer.input.info, *layer.input.communicator), state.get(), pages,
                     counts);
    std::vector<float> out(2 * kDim);
    ThreadPool pool(1);
    const DecodeWork work{
        .q = q.data(), .out = out.data(), .heads = cache.heads(), .lists = pages, .context_tokens = kTokens};
    AttentionCounts executed;
    attention_decode({&work, 1}, cache.pool(), cache.page_elements(), layer.input.info, pool, {&executed, 1});
    EXPECT_GE(executed.sparsity(), least_sparsity) << strategy;
    return answer(out.data()) == wanted && answer(out.data() + kDim) == wanted;
  }

  test::Layer layer;
  std::vector<std::int64_t> positions;
  int wanted = 0;
};

int count(const std::function<bool(Recall&)>& answers) {
  int right = 0;
  for (std::uint64_t seed = 0; seed < kPrompts; ++seed) {
    Recall recall(seed);
    right += answers(recall);
  }
  return right;
}

TEST(Retrieval, DenseAnswers) {
  EXPECT_EQ(count([](Recall& r) { return r.prefill_answers(R"({"dense": {}})", 0); }), kPrompts);
  EXPECT_EQ(count([](Recall& r) { return r.decode_answers(R"({})", 0); }), kPrompts);
}

TEST(Retrieval, SmallStreamingWindowFails) {
  EXPECT_EQ(count([](Recall& r) { return r.prefill_answers(R"({"streaming": {"window": 128}})", 0.8); }), 0);
  EXPECT_EQ(
      count([](Recall& r) { return r.prefill_answers(R"({"a_shape": {"sinks": 16, "local": 128}})", 0.8); }),
      0);
  EXPECT_EQ(count([](Recall& r) {
              return r.decode_answers(R"({"evict": {"streaming": {"capacity": 400}}})", 0.8);
            }),
            0);
  EXPECT_EQ(
      count([](Recall& r) { return r.decode_answers(R"({"decode": {"streaming": {"window": 380}}})", 0.8); }),
      0);
}

TEST(Retrieval, MethodsThatLookForWhatMattersAnswerAt80Percent) {
  for (const char* text : {R"({"vertical_slash": {"verticals": 40, "slashes": 64, "window": 32}})",
                           R"({"flexprefill": {"alpha": 0.3, "min_budget": 64, "window": 32}})",
                           R"({"oracle_top_k": {"top_k": 3}})",
                           R"({"tri_shape": {"sinks": 16, "local": 64, "last_queries": 64}})"}) {
    EXPECT_EQ(count([&](Recall& r) { return r.prefill_answers(text, 0.8); }), kPrompts) << text;
  }
  for (const char* text :
       {R"({"evict": {"snapkv": {"capacity": 400, "window": 32}}})",
        R"({"evict": {"ada_snapkv": {"capacity": 400, "window": 32}}})",
        R"({"evict": {"tova": {"capacity": 400}}})",
        R"({"evict": {"expected_attention": {"capacity": 400, "window": 32}}})",
        R"({"decode": {"quest": {"budget": 384}}})",
        R"({"decode": {"quest": {"budget": 384, "share_pages": false}}})",
        R"({"decode": {"oracle_top_k": {"budget": 64}}})",
        R"({"decode": {"twilight": {"budget": 384, "top_p": 0.9}}})",
        R"({"evict": {"snapkv": {"capacity": 400, "window": 32}}, "decode": {"quest": {"budget": 64}}})"}) {
    EXPECT_EQ(count([&](Recall& r) { return r.decode_answers(text, 0.8); }), kPrompts) << text;
  }
}

TEST(Retrieval, RandomBlocksRarelyAnswer) {
  EXPECT_LE(
      count([](Recall& r) { return r.prefill_answers(R"({"random": {"block": 64, "top_k": 3}})", 0.8); }),
      kPrompts / 2);
}

}  // namespace
}  // namespace lacuna
