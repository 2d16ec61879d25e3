// The decode selectors on the GPU against those of the CPU: rows of different lengths, budgets and page
// tables in one call, steps with appended tokens, ties, NaN. Sets must be equal where scores are exact
// (integers); elsewhere a chosen page may be worse than one left out by rounding alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "attention/cuda/decode_methods.h"
#include "attention/cuda/page_choice.h"
#include "core/communicator.h"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using nlohmann::json;
using testing::DeviceVector;

enum class Values { kIntegers, kFew, kNormal };

struct Case {
  int head_dim = 128, group = 4, kv_heads = 2;
  std::vector<std::vector<std::int64_t>> tokens = {{100, 40}};  ///< [rows][head % size]
  std::string method = "quest";
  std::vector<json> params = {json::object()};  ///< row i: params[i % size]
  Values values = Values::kIntegers;
  float scale = 0.05f, softcap = 0.0f;
  int steps = 3, appended = 1;  ///< tokens appended between steps
  std::int64_t spare_tokens = 100;
};

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }
std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Sequences with paged caches on both sides, the same values, in pages of shuffled order; what no token owns
/// is NaN.
class Batch {
 public:
  Batch(const Case& c, std::uint64_t seed)
      : case_(c), rng_(seed), page_elements_(2 * kPageTokens * c.head_dim + 16) {
    info.q_heads = info.q_heads_total = c.group * c.kv_heads;
    info.kv_heads = info.kv_heads_total = c.kv_heads;
    info.head_dim = c.head_dim;
    info.scale = c.scale;
    info.softcap = c.softcap;
    rows = static_cast<int>(c.tokens.size());
    for (int i = 0; i < rows * c.kv_heads; ++i) {
      const auto& lengths = c.tokens[at(i / c.kv_heads)];
      tokens.push_back(lengths[at(i % c.kv_heads) % lengths.size()]);
    }
    max_tokens = *std::max_element(tokens.begin(), tokens.end()) + c.spare_tokens;
    const std::int64_t per_head = pages_of(max_tokens);
    ids_.resize(tokens.size() * at(per_head) + 3);
    std::iota(ids_.begin(), ids_.end(), 0);
    rng_.shuffle(ids_);
    pool.assign(ids_.size() * at(page_elements_), BFloat16{0xFFFF});
    for (std::size_t h = 0; h < tokens.size(); ++h)
      for (std::int64_t t = 0; t < tokens[h]; ++t) write(h, t);
    device_ids_ = DeviceVector<std::int32_t>(ids_);
    upload();
  }
  /// One more token for every head.
  void append() {
    for (std::size_t h = 0; h < tokens.size(); ++h) write(h, tokens[h]++);
    upload();
  }
  void upload() {
    device_pool = DeviceVector<BFloat16>(pool);
    float_pool.resize(pool.size());
    for (std::size_t i = 0; i < pool.size(); ++i) float_pool[i] = to_float(pool[i]);
    std::vector<DevicePagedHead> on_device;
    heads.clear();
    for (std::size_t h = 0; h < tokens.size(); ++h) {
      const std::size_t first = h * at(pages_of(max_tokens));
      on_device.push_back({device_ids_.data() + first, tokens[h]});
      heads.push_back({std::span(ids_).subspan(first, at(pages_of(tokens[h]))), tokens[h]});
    }
    device_heads = DeviceVector<DevicePagedHead>(on_device);
    q.resize(at(rows * info.q_heads) * at(info.head_dim));
    for (BFloat16& x : q) x = draw();
    device_q = DeviceVector<BFloat16>(q);
    float_q.resize(q.size());
    for (std::size_t i = 0; i < q.size(); ++i) float_q[i] = to_float(q[i]);
  }
  BFloat16& key(std::size_t head, std::int64_t token, int channel) {
    const auto page = at(ids_[head * at(pages_of(max_tokens)) + at(token / kPageTokens)]);
    return pool[page * at(page_elements_) + at(token % kPageTokens * info.head_dim + channel)];
  }
  DecodeInput input(int row, Communicator& communicator) const {
    return {.q = float_q.data() + row * info.q_heads * info.head_dim,
            .heads = std::span(heads).subspan(at(row * info.kv_heads), at(info.kv_heads)),
            .pool = float_pool.data(),
            .page_elements = page_elements_,
            .info = info,
            .communicator = &communicator};
  }
  DecodeChoice choice() const {
    return {.q = device_q.data(),
            .pool = device_pool.data(),
            .page_elements = page_elements_,
            .heads = device_heads.data(),
            .rows = rows,
            .info = info,
            .max_tokens = max_tokens};
  }

  LayerInfo info;
  int rows;
  std::int64_t max_tokens;
  std::vector<std::int64_t> tokens;  ///< [rows * kv_heads]
  std::vector<PagedHead> heads;
  std::vector<BFloat16> pool, q;
  std::vector<float> float_pool, float_q;
  DeviceVector<BFloat16> device_pool, device_q;
  DeviceVector<DevicePagedHead> device_heads;

 private:
  BFloat16 draw() {
    if (case_.values == Values::kIntegers) return to_bfloat16(static_cast<float>(rng_.below(7)) - 3.0f);
    if (case_.values == Values::kFew) return to_bfloat16(rng_.below(40) == 0 ? 1.0f : 0.0f);
    return to_bfloat16(static_cast<float>(rng_.normal()));
  }
  void write(std::size_t head, std::int64_t token) {
    for (int c = 0; c < info.head_dim; ++c) key(head, token, c) = draw();
  }

  Case case_;
  Rng rng_;
  std::int64_t page_elements_;
  std::vector<std::int32_t> ids_;
  DeviceVector<std::int32_t> device_ids_;
};

/// Per page of a head: the bound of Quest, in double, for query heads [begin, end), and what rounding may
/// change.
std::vector<double> bounds_of(Batch& batch, int row, int kv, int begin, int end, double& slack) {
  const std::size_t head = at(row * batch.info.kv_heads + kv);
  std::vector<double> bounds;
  slack = 0;
  for (std::int64_t first = 0; first < batch.tokens[head]; first += kPageTokens) {
    double sum = 0, size = 0;
    for (int c = 0; c < batch.info.head_dim; ++c) {
      float low = INFINITY, high = -INFINITY;
      for (std::int64_t t = first; t < std::min(first + kPageTokens, batch.tokens[head]); ++t) {
        low = std::min(low, to_float(batch.key(head, t, c)));
        high = std::max(high, to_float(batch.key(head, t, c)));
      }
      for (int h = begin; h < end; ++h) {
        const float x = batch.float_q[at((row * batch.info.q_heads + h) * batch.info.head_dim + c)];
        const double term = std::max(static_cast<double>(x) * low, static_cast<double>(x) * high);
        sum += term, size += std::abs(term);
      }
    }
    bounds.push_back(sum);
    slack = std::max(slack, 1e-5 * size);
  }
  return bounds;
}

/// Mean over the query heads of kv of the softmax weights of the pages' tokens.
std::vector<double> weights_of(Batch& batch, int row, int kv, const PageList& pages) {
  const std::size_t head = at(row * batch.info.kv_heads + kv);
  const int group = batch.info.q_heads / batch.info.kv_heads;
  std::vector<double> weights(pages.size());
  for (int h = kv * group; h < (kv + 1) * group; ++h) {
    std::vector<double> sums(pages.size()), scores;
    const float* q = batch.float_q.data() + (row * batch.info.q_heads + h) * batch.info.head_dim;
    for (const auto p : pages)
      for (std::int64_t t = p * kPageTokens;
           t < std::min((p + std::int64_t{1}) * kPageTokens, batch.tokens[head]); ++t) {
        double s = 0;
        for (int c = 0; c < batch.info.head_dim; ++c)
          s += static_cast<double>(q[c]) * to_float(batch.key(head, t, c));
        s *= batch.info.scale;
        if (batch.info.softcap > 0) s = batch.info.softcap * std::tanh(s / batch.info.softcap);
        scores.push_back(s);
      }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    std::size_t next = 0;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      const std::int64_t end = std::min((pages[i] + std::int64_t{1}) * kPageTokens, batch.tokens[head]);
      for (std::int64_t t = pages[i] * kPageTokens; t < end; ++t) sums[i] += std::exp(scores[next++] - top);
      total += sums[i];
    }
    for (std::size_t i = 0; i < pages.size(); ++i) weights[i] += sums[i] / total / group;
  }
  return weights;
}

PageList all_pages_of(std::int64_t tokens) {
  PageList pages(at(pages_of(tokens)));
  std::iota(pages.begin(), pages.end(), 0);
  return pages;
}

std::string show(const PageList& list) {
  std::string text = fmt::format("{} pages:", list.size());
  for (std::size_t i = 0; i < std::min<std::size_t>(list.size(), 40); ++i)
    text += fmt::format(" {}", list[i]);
  return text;
}

/// got may differ from want where scores differ by no more than slack: as many pages, none of them clearly
/// worse than one left out. candidates with scores; the last candidate is the current page and always there.
void expect_best(const PageList& got, const PageList& want, const PageList& candidates,
                 const std::vector<double>& scores, double slack) {
  ASSERT_EQ(got.size(), want.size());
  ASSERT_TRUE(std::is_sorted(got.begin(), got.end()));
  ASSERT_EQ(got.back(), candidates.back());
  double worst = INFINITY, best_left_out = -INFINITY;
  std::size_t found = 0;
  for (std::size_t i = 0; i + 1 < candidates.size(); ++i) {
    const bool chosen = std::binary_search(got.begin(), got.end(), candidates[i]);
    found += chosen ? 1 : 0;
    if (chosen) worst = std::min(worst, scores[i]);
    if (!chosen) best_left_out = std::max(best_left_out, scores[i]);
  }
  ASSERT_EQ(found + 1, got.size()) << "pages that are no candidates, or repeated ones";
  EXPECT_GE(worst, best_left_out - slack) << "got " << show(got) << "\nwant " << show(want);
}

/// got holds `mass` of the weights and no fewer pages would, up to slack.
void expect_mass(const PageList& got, const PageList& want, const PageList& candidates,
                 const std::vector<double>& weights, double mass, double slack) {
  ASSERT_FALSE(got.empty());
  ASSERT_TRUE(std::is_sorted(got.begin(), got.end()));
  ASSERT_EQ(std::adjacent_find(got.begin(), got.end()), got.end());
  ASSERT_EQ(got.back(), candidates.back());
  double sum = 0, worst = INFINITY, best_left_out = -INFINITY;
  std::size_t found = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const bool chosen = std::binary_search(got.begin(), got.end(), candidates[i]);
    found += chosen ? 1 : 0;
    if (chosen) sum += weights[i];
    if (chosen && i + 1 < candidates.size()) worst = std::min(worst, weights[i]);
    if (!chosen) best_left_out = std::max(best_left_out, weights[i]);
  }
  ASSERT_EQ(found, got.size()) << "pages that are no candidates";
  const std::string lists = "got " + show(got) + "\nwant " + show(want);
  EXPECT_GE(sum, mass - slack) << lists;
  if (got.size() < 2) return;
  EXPECT_GE(worst, best_left_out - slack) << lists;
  // Without its worst page, and without a current page that was not needed, the mass is not reached.
  const double current = weights.back();
  const double needed = current >= worst ? sum - worst : sum - worst - current;
  EXPECT_LT(needed, mass + slack) << lists;
}

void check(const Case& c) {
  SCOPED_TRACE(fmt::format("{} {} head_dim {} group {} kv_heads {} rows {} tokens {} scale {} softcap {}",
                           c.method, json(c.params).dump(), c.head_dim, c.group, c.kv_heads, c.tokens.size(),
                           json(c.tokens).dump(), c.scale, c.softcap));
  Batch batch(c, 7);
  const LayerInfo& info = batch.info;
  SelfCommunicator communicator;
  std::vector<MethodSpec> specs;
  std::vector<std::unique_ptr<CudaDecodeSelector>> selectors;
  std::vector<std::unique_ptr<DecodeSelector>> expected;
  std::vector<std::unique_ptr<DecodeState>> expected_states;
  std::vector<DecodeBudget> budgets;
  std::vector<DeviceVector<std::uint8_t>> state_memory;
  std::vector<void*> states;
  for (int row = 0; row < batch.rows; ++row) {
    const json strategy{{"decode", {{c.method, c.params[at(row) % c.params.size()]}}}};
    specs.push_back(parse_strategy(strategy, "test").decode);
    selectors.push_back(make_cuda_decode_selector(specs.back()));
    expected.push_back(make_decode_selector(specs.back()));
    expected_states.push_back(expected.back()->make_state(info));
    ASSERT_EQ(selectors.back()->group_key(), selectors.front()->group_key());
    budgets.push_back(selectors.back()->budget());
    // Every sequence has a state of its own size.
    std::int64_t longest = 1;
    for (int kv = 0; kv < info.kv_heads; ++kv)
      longest = std::max(longest, batch.tokens[at(row * info.kv_heads + kv)]);
    state_memory.emplace_back(selectors.back()->state_bytes(info, longest + c.spare_tokens));
    states.push_back(state_memory.back().data());
  }
  const bool per_q_head = selectors.front()->lists_per_q_head();
  const int lists_per_row = per_q_head ? info.q_heads : info.kv_heads;
  const int total = batch.rows * lists_per_row;
  const DeviceVector<DecodeBudget> device_budgets(budgets);
  const DeviceVector<void*> device_states(states);
  const DeviceVector<int> not_finite(std::vector<int>(at(batch.rows), 0));
  DecodeChoice choice = batch.choice();
  choice.states = device_states.data();
  choice.budgets = device_budgets.data();
  choice.not_finite = not_finite.data();
  choice.list_stride = pages_of(choice.max_tokens) + 1;
  const DeviceVector<std::uint8_t> workspace(selectors.front()->workspace_bytes(choice));
  selectors.front()->prepare(choice, {workspace.data(), workspace.size()}, nullptr);

  for (int step = 0; step < c.steps; ++step) {
    SCOPED_TRACE(fmt::format("step {}", step));
    choice = batch.choice();
    choice.states = device_states.data();
    choice.budgets = device_budgets.data();
    choice.not_finite = not_finite.data();
    choice.list_stride = pages_of(choice.max_tokens) + 1;
    const DeviceVector<DecodeCounters> counters(std::vector<DecodeCounters>(at(batch.rows)));
    choice.counters = counters.data();
    choice.first_reader = per_q_head ? 0 : 1;  // else another rank has the first query head
    choice.end_reader = info.q_heads;
    std::vector<PageList> results[2];
    for (auto& result : results) {
      const DeviceVector<std::int32_t> lists(at(total * choice.list_stride)), counts(at(total));
      choice.lists = lists.data();
      choice.counts = counts.data();
      selectors.front()->choose(choice, {workspace.data(), workspace.size()}, nullptr);
      const auto got = lists.download(), got_counts = counts.download();
      for (int i = 0; i < total; ++i) {
        const std::int32_t count = got_counts[at(i)];
        ASSERT_GE(count, 1) << "list " << i;
        ASSERT_LT(count, choice.list_stride) << "list " << i;
        const auto begin = got.begin() + i * choice.list_stride;
        result.emplace_back(begin, begin + count);
      }
    }
    ASSERT_EQ(results[0], results[1]) << "two runs differ";
    for (const int flag : not_finite.download()) ASSERT_EQ(flag, 0) << "a score counts as not finite";

    const auto counted = counters.download();
    for (int row = 0; row < batch.rows; ++row) {
      DecodeCounters sums{};  // of two runs
      for (int i = 0; i < lists_per_row; ++i) {
        const int kv = per_q_head ? info.kv_head_of(i) : i,
                  readers = per_q_head ? 1 : c.group - (i == 0 ? 1 : 0);
        const auto tokens = batch.tokens[at(row * info.kv_heads + kv)];
        unsigned long long read = 0, whole = 0;
        for (const std::int32_t page : results[0][at(row * lists_per_row + i)]) {
          read += static_cast<unsigned long long>(
              std::min<std::int64_t>(kPageTokens, tokens - page * std::int64_t{kPageTokens}));
          whole += kPageTokens;
        }
        sums.visited_cells += 2 * read * static_cast<unsigned long long>(readers);
        sums.computed_cells += 2 * whole * static_cast<unsigned long long>(readers);
        sums.read_tokens += 2 * read;
      }
      EXPECT_EQ(counted[at(row)].visited_cells, sums.visited_cells) << "row " << row;
      EXPECT_EQ(counted[at(row)].computed_cells, sums.computed_cells) << "row " << row;
      EXPECT_EQ(counted[at(row)].read_tokens, sums.read_tokens) << "row " << row;
    }

    for (int row = 0; row < batch.rows; ++row) {
      const MethodSpec& spec = specs[at(row)];
      std::vector<PageList> want;
      AttentionCounts want_counts, counts;
      expected[at(row)]->select(batch.input(row, communicator), expected_states[at(row)].get(), want,
                                want_counts);
      ASSERT_EQ(std::ssize(want), lists_per_row);
      const auto head_tokens = std::span(batch.tokens).subspan(at(row * info.kv_heads), at(info.kv_heads));
      selectors[at(row)]->add_cost(info, head_tokens, counts);
      EXPECT_DOUBLE_EQ(counts.index_flops, want_counts.index_flops) << "row " << row;
      EXPECT_DOUBLE_EQ(counts.index_bytes_read, want_counts.index_bytes_read / 2) << "row " << row;
      for (int i = 0; i < lists_per_row; ++i) {
        const PageList& got = results[0][at(row * lists_per_row + i)];
        const int kv = per_q_head ? info.kv_head_of(i) : i;
        SCOPED_TRACE(fmt::format("row {} list {} tokens {}", row, i, head_tokens[at(kv)]));
        if (got == want[at(i)]) continue;
        const PageList all = all_pages_of(head_tokens[at(kv)]);
        if (c.method == "quest" && c.values == Values::kNormal) {
          double slack;
          const auto bounds = bounds_of(batch, row, kv, per_q_head ? i : kv * c.group,
                                        per_q_head ? i + 1 : (kv + 1) * c.group, slack);
          expect_best(got, want[at(i)], all, bounds, slack);
        } else if (c.method == "oracle_top_k" && c.scale > 0) {
          expect_best(got, want[at(i)], all, weights_of(batch, row, kv, all), 2e-6);
        } else if (c.method == "oracle_top_p") {
          // Equal weights: sums of doubles on the CPU may end one page off, but the pages are the first ones.
          if (c.scale == 0) {
            ASSERT_TRUE(std::equal(got.begin(), got.end() - 1, all.begin())) << show(got);
          }
          expect_mass(got, want[at(i)], all, weights_of(batch, row, kv, all), spec.params.get_double("top_p"),
                      c.scale > 0 ? 1e-5 : 1e-12);
        } else if (c.method == "twilight" && c.scale > 0) {
          // Integers: what Quest proposes is exact, and quest itself is checked.
          PageList proposed;
          const auto quest = make_decode_selector(
              parse_strategy({{"decode", {{"quest", {{"budget", spec.params.get_int("budget")}}}}}}, "test")
                  .decode);
          std::vector<PageList> lists;
          AttentionCounts unused;
          quest->select(batch.input(row, communicator), quest->make_state(info).get(), lists, unused);
          proposed = lists[at(i)];
          expect_mass(got, want[at(i)], proposed, weights_of(batch, row, kv, proposed),
                      spec.params.get_double("top_p"), 1e-5);
        } else {
          FAIL() << "got " << show(got) << "\nwant " << show(want[at(i)]);
        }
        if (::testing::Test::HasFailure()) return;
      }
    }
    for (int i = 0; i < c.appended; ++i) batch.append();
  }
}

const std::vector<std::vector<std::int64_t>> kLengths{{1, 2}, {300, 17}, {16, 700}, {1003, 1003}};

TEST(DecodeMethodsCuda, QuestIntegers) {
  const std::vector<json> budgets{{{"budget", 16}}, {{"budget", 160}}, {{"budget", 2048}}};
  for (const int dim : {64, 96, 128, 256}) check({.head_dim = dim, .tokens = kLengths, .params = budgets});
  for (const int group : {1, 7, 16}) check({.group = group, .tokens = kLengths, .params = budgets});
}
TEST(DecodeMethodsCuda, QuestPerQueryHead) {
  const std::vector<json> budgets{{{"budget", 48}, {"share_pages", false}},
                                  {{"budget", 320}, {"share_pages", false}}};
  for (const int dim : {64, 96, 128, 256})
    check({.head_dim = dim, .group = 3, .tokens = {{300, 17}, {16, 700}}, .params = budgets});
  for (const int group : {1, 7}) check({.group = group, .tokens = {{300, 17}}, .params = budgets});
}
TEST(DecodeMethodsCuda, QuestNormal) {
  check({.group = 7,
         .tokens = kLengths,
         .params = {{{"budget", 160}}, {{"budget", 512}}},
         .values = Values::kNormal});
  check({.group = 7,
         .tokens = {{900, 500}},
         .params = {{{"budget", 160}, {"share_pages", false}}},
         .values = Values::kNormal});
}
TEST(DecodeMethodsCuda, QuestEveryLength) {
  for (const std::int64_t n : {15, 16, 31, 32, 33, 1024, 2047, 4000})
    check({.head_dim = 64, .group = 1, .tokens = {{n, n + 1}}, .params = {{{"budget", 256}}}});
}
TEST(DecodeMethodsCuda, QuestManySteps) {
  check({.head_dim = 64,
         .group = 2,
         .tokens = {{1, 30}, {100, 15}},
         .params = {{{"budget", 32}}, {{"budget", 64}}},
         .steps = 40});
}
TEST(DecodeMethodsCuda, QuestTiesGoToTheLowerIndex) {
  check({.head_dim = 64,
         .group = 1,
         .tokens = {{3000, 1500}},
         .params = {{{"budget", 800}}},
         .values = Values::kFew});
}
/// Scores that real heads do not have: the choice alone, beside a stable sort.
TEST(DecodeMethodsCuda, BestOfAnyScores) {
  Rng rng(7);
  const auto wide = [&] {
    return static_cast<float>(std::ldexp(rng.normal(), static_cast<int>(rng.below(200)) - 100));
  };
  const std::vector<std::pair<const char*, std::function<float(std::int64_t)>>> kinds{
      {"normal", [&](std::int64_t) { return static_cast<float>(rng.normal()); }},
      {"of any size", [&](std::int64_t) { return wide(); }},
      {"one far above", [&](std::int64_t i) { return i == 77 ? 1e9f : static_cast<float>(rng.normal()); }},
      {"near each other", [&](std::int64_t) { return 3.0f + static_cast<float>(rng.below(200)) * 0x1p-22f; }},
      {"two values", [&](std::int64_t) { return rng.below(3) == 0 ? -2.0f : 5.0f; }},
      {"all the same", [&](std::int64_t) { return -1.5f; }},
      {"denormal", [&](std::int64_t) { return rng.below(2) == 0 ? 0.0f : 1e-42f; }},
      {"infinite ones",
       [&](std::int64_t) { return rng.below(9) == 0   ? INFINITY
                                  : rng.below(9) == 0 ? -INFINITY
                                                      : wide(); }},
      {"largest", [&](std::int64_t) { return rng.below(2) == 0 ? 3e38f : -3e38f; }},
      {"sorted", [&](std::int64_t i) { return static_cast<float>(i); }}};
  for (const auto& [what, draw] : kinds)
    for (const std::int64_t pages : {2, 40, 2048, 5000, 9000, 17000}) {
      SCOPED_TRACE(fmt::format("{}, {} pages", what, pages));
      DecodeChoice choice;
      choice.rows = 2, choice.max_tokens = pages * kPageTokens, choice.list_stride = pages;
      choice.info.q_heads = choice.info.q_heads_total = choice.info.kv_heads = choice.info.kv_heads_total = 1;
      choice.info.head_dim = 64;
      const std::vector<DevicePagedHead> heads(2, {nullptr, pages * kPageTokens});
      const auto stride = at(page_score_stride(choice.max_tokens));
      std::vector<float> scores(2 * stride, NAN);
      for (std::size_t row = 0; row < 2; ++row)
        for (std::int64_t i = 0; i < pages; ++i) scores[row * stride + at(i)] = draw(i);
      std::vector<DecodeBudget> budgets(2);
      budgets[0].pages = static_cast<std::int32_t>(1 + rng.below(static_cast<std::uint64_t>(pages)));
      budgets[1].pages = static_cast<std::int32_t>(std::min<std::int64_t>(pages / 2, 128));
      const DeviceVector<DevicePagedHead> device_heads(heads);
      const DeviceVector<float> device_scores(scores);
      const DeviceVector<DecodeBudget> device_budgets(budgets);
      const DeviceVector<std::int32_t> lists(2 * at(pages)), counts(2);
      choice.heads = device_heads.data(), choice.budgets = device_budgets.data();
      choose_pages_cuda(choice, PageRule::kBest, 1, device_scores.data(), {}, lists.data(), counts.data(),
                        pages, nullptr);
      const auto chosen = lists.download(), count = counts.download();
      for (std::size_t row = 0; row < 2; ++row) {
        std::vector<std::int32_t> expected(at(pages - 1));
        std::iota(expected.begin(), expected.end(), 0);
        const float* of = scores.data() + row * stride;
        std::stable_sort(expected.begin(), expected.end(),
                         [&](std::int32_t a, std::int32_t b) { return of[a] > of[b]; });
        expected.resize(std::min(expected.size(), at(budgets[row].pages)));
        std::sort(expected.begin(), expected.end());
        expected.push_back(static_cast<std::int32_t>(pages - 1));
        const auto* from = chosen.data() + row * at(pages);
        ASSERT_EQ(std::vector<std::int32_t>(from, from + count[row]), expected) << "row " << row;
      }
    }
}
TEST(DecodeMethodsCuda, OracleTopK) {
  const std::vector<json> budgets{{{"budget", 16}}, {{"budget", 160}}, {{"budget", 2048}}};
  for (const int dim : {64, 96, 128, 256})
    check({.head_dim = dim, .tokens = kLengths, .method = "oracle_top_k", .params = budgets, .steps = 2});
  for (const int group : {1, 7, 16, 20})
    check(
        {.head_dim = 64, .group = group, .tokens = {{300, 17}}, .method = "oracle_top_k", .params = budgets});
  check({.group = 7,
         .tokens = {{300, 1017}},
         .method = "oracle_top_k",
         .params = budgets,
         .values = Values::kNormal,
         .scale = 0.3f,
         .softcap = 20.0f});
}
TEST(DecodeMethodsCuda, OracleTopP) {
  const std::vector<json> masses{{{"top_p", 0.0}}, {{"top_p", 0.5}}, {{"top_p", 0.95}}, {{"top_p", 1.0}}};
  for (const int dim : {64, 96, 128, 256})
    check({.head_dim = dim, .tokens = kLengths, .method = "oracle_top_p", .params = masses, .steps = 2});
  for (const float scale : {0.02f, 0.3f})
    check({.group = 7,
           .tokens = kLengths,
           .method = "oracle_top_p",
           .params = masses,
           .values = Values::kNormal,
           .scale = scale});
}
TEST(DecodeMethodsCuda, EqualWeights) {
  // Scale 0: every token weighs the same, so sets are decided by ties, and prefixes end on exact sums.
  std::vector<json> masses;
  for (int i = 0; i <= 10; ++i) masses.push_back({{"top_p", i / 10.0}});
  for (const std::int64_t n : {16, 128, 160, 1600, 160 + 5}) {
    const std::vector<std::vector<std::int64_t>> lengths(masses.size(), {n, n});
    check({.head_dim = 64,
           .tokens = lengths,
           .method = "oracle_top_p",
           .params = masses,
           .scale = 0,
           .steps = 1});
    check({.head_dim = 64,
           .tokens = {{n, n}},
           .method = "oracle_top_k",
           .params = {{{"budget", 80}}},
           .scale = 0,
           .steps = 1});
  }
}
TEST(DecodeMethodsCuda, Twilight) {
  const std::vector<json> settings{{{"top_p", 0.5}, {"budget", 320}},
                                   {{"top_p", 0.9}, {"budget", 8192}},
                                   {{"top_p", 1.0}, {"budget", 16}}};
  for (const int dim : {64, 96, 128, 256})
    check({.head_dim = dim, .tokens = kLengths, .method = "twilight", .params = settings});
  for (const int group : {1, 7})
    check(
        {.group = group, .tokens = {{300, 1700}}, .method = "twilight", .params = settings, .scale = 0.01f});
}
TEST(DecodeMethodsCuda, Streaming) {
  const std::vector<json> settings{{{"window", 1}, {"sinks", 0}},
                                   {{"window", 100}, {"sinks", 4}},
                                   {{"window", 2048}, {"sinks", 17}},
                                   {{"window", 33}, {"sinks", 4000}}};
  check({.tokens = kLengths, .method = "streaming", .params = settings, .steps = 20});
  check({.group = 1,
         .tokens = {{5000, 48}, {49, 50}, {1, 2}, {16, 4000}},
         .method = "streaming",
         .params = settings});
}
TEST(DecodeMethodsCuda, LongRows) {
  // 1 channel block of keys per page would be slow to make: a few long heads only.
  check({.head_dim = 64,
         .group = 1,
         .kv_heads = 1,
         .tokens = {{40000}},
         .params = {{{"budget", 2048}}},
         .steps = 2});
  check({.head_dim = 64,
         .group = 1,
         .kv_heads = 1,
         .tokens = {{33000}},
         .method = "oracle_top_p",
         .params = {{{"top_p", 0.6}}},
         .steps = 1,
         .spare_tokens = 300000});
}

TEST(DecodeMethodsCuda, ReportsNotFinite) {
  for (const std::string method : {"quest", "oracle_top_k", "oracle_top_p", "twilight"}) {
    SCOPED_TRACE(method);
    Case c{.head_dim = 64, .tokens = {{200, 100}, {70, 300}, {90, 90}}, .method = method};
    Batch batch(c, 3);
    batch.key(3, 20, 5) = BFloat16{0x7FC0};  // row 1
    batch.upload();
    const auto selector = make_cuda_decode_selector(parse_strategy({{"decode", method}}, "test").decode);
    const std::size_t bytes = selector->state_bytes(batch.info, batch.max_tokens);
    const DeviceVector<std::uint8_t> memory(3 * bytes);
    const DeviceVector<void*> states(
        std::vector<void*>{memory.data(), memory.data() + bytes, memory.data() + 2 * bytes});
    const DeviceVector<DecodeBudget> budgets(std::vector<DecodeBudget>(3, selector->budget()));
    const DeviceVector<int> not_finite(std::vector<int>{0, 0, 0});
    DecodeChoice choice = batch.choice();
    choice.states = states.data();
    choice.budgets = budgets.data();
    choice.not_finite = not_finite.data();
    choice.list_stride = pages_of(choice.max_tokens);
    const DeviceVector<std::int32_t> lists(at(3 * 2 * choice.list_stride)), counts(std::size_t{6});
    choice.lists = lists.data();
    choice.counts = counts.data();
    const DeviceVector<std::uint8_t> workspace(selector->workspace_bytes(choice));
    selector->prepare(choice, {workspace.data(), workspace.size()}, nullptr);
    selector->choose(choice, {workspace.data(), workspace.size()}, nullptr);
    EXPECT_EQ(not_finite.download(), (std::vector<int>{0, 1, 0}));
    for (const std::int32_t count : counts.download()) {
      EXPECT_GE(count, 0);
      EXPECT_LE(count, choice.list_stride);
    }
  }
}

}  // namespace
}  // namespace lacuna
