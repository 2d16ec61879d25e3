// Parsing, combinations, budgets, `attend` as a library, and the generated docs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/accounting.h"
#include "attention/attend.h"
#include "attention/budget.h"
#include "attention/calibrate.h"
#include "attention/catalogue.h"
#include "core/error.h"
#include "core/file.h"
#include "sweeps/document.h"
#include "tests/attention/fixture.h"

namespace lacuna {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

StrategySpec parse(const std::string& text) { return parse_strategy(Json::parse(text), "sweep.yaml:3"); }
Json paper() { return Document::parse(paper_calibration_yaml(), "calibration").root(); }

TEST(Strategy, ParsesAndRoundTrips) {
  const StrategySpec spec =
      parse(R"({"prefill": {"vertical_slash": {"verticals": 1024}}, "evict": "snapkv", "decode": null})");
  EXPECT_EQ(spec.prefill.params.get_int("verticals"), 1024);
  EXPECT_EQ(spec.prefill.params.get_int("slashes"), 512);
  EXPECT_EQ(spec.evict.params.get_int("capacity"), 4096);
  EXPECT_EQ(spec.decode.method, "dense");
  EXPECT_EQ(parse_strategy(to_json(spec), "again"), spec);
  EXPECT_EQ(parse_strategy(nullptr, "nothing"), parse("{}"));
}

TEST(Strategy, SaysWhatIsWrongAndWhere) {
  const auto message = [](const char* text, const char* part) {
    EXPECT_THAT([&] { parse(text); },
                ThrowsMessage<Error>(testing::AllOf(HasSubstr("sweep.yaml:3"), HasSubstr(part))))
        << text;
  };
  message(R"({"decode": "qest"})", "did you mean 'quest'");
  message(R"({"prefil": "dense"})", "did you mean 'prefill'");
  message(R"({"prefill": {"vertical_slash": {"vertical": 3}}})", "did you mean 'verticals'");
  message(R"({"prefill": {"vertical_slash": {"verticals": 0}}})", "verticals: 0 is not valid");
  message(R"({"prefill": {"vertical_slash": {"verticals": -1}}})", "verticals: -1 is not valid");
  message(R"({"prefill": {"vertical_slash": {"verticals": "many"}}})", "an integer");
  message(R"({"prefill": {"block_sparse": {"chunk_size": 48}}})", "one of 16, 32, 64, 128");
  message(R"({"prefill": {"dense": {}, "random": {}}})", "one method");
  message(R"({"prefill": ["dense"]})", "expected a method name");
  message(R"(["dense"])", "expected a strategy");
  message(R"({"decode": {"quest": {"budget": 15}}})", "of at least 16");
  message(R"({"prefill": {"xattention": {"threshold": 1.1}}})", "from 0 to 1");
}

TEST(Strategy, RefusesAMethodInAnotherSlot) {
  StrategySpec spec = parse("{}");
  spec.evict = spec.prefill;
  EXPECT_THAT([&] { check_combination(spec, "here"); },
              ThrowsMessage<Error>(HasSubstr("here.evict: unknown evict method 'dense'")));
  EXPECT_THAT([] { parse(R"({"evict": {"streaming": {"capacity": 4, "sinks": 8}}})"); },
              ThrowsMessage<Error>(HasSubstr("newest token")));
}

/// Small settings that every method accepts on a prompt of 200 tokens.
Json small(const MethodInfo& info) {
  Json params = Json::object();
  if (info.budget_param.empty()) return params;
  for (const ParamSpec& p : info.params) {
    if (p.name == info.budget_param && std::holds_alternative<std::int64_t>(p.default_value)) {
      params[p.name] = p.unit == "blocks" ? 2 : 48;
    }
  }
  return params;
}

TEST(Strategy, EveryCombinationRuns) {
  test::Layer layer({.tokens = 200, .q_heads = 4, .kv_heads = 2, .head_dim = 32}, 3);
  const auto view = [](std::vector<float>& x, std::int64_t heads, std::int64_t tokens) {
    return TensorView{x.data(), DType::kF32, Device::kCpu, {heads, tokens, 32}};
  };
  std::vector<float> last;
  for (int h = 0; h < 4; ++h)
    last.insert(last.end(), layer.input.q.row(h, 199), layer.input.q.row(h, 199) + 32);
  ThreadPool threads(2);
  int combinations = 0;
  for (const MethodInfo& prefill : methods()) {
    for (const MethodInfo& evict : methods()) {
      if (prefill.slot != Slot::kPrefill || evict.slot != Slot::kEvict) continue;
      const StrategySpec spec = parse_strategy(
          Json{{"prefill", {{prefill.name, small(prefill)}}}, {"evict", {{evict.name, small(evict)}}}}, "x");
      const auto r =
          attend({.q = view(layer.q, 4, 200), .k = view(layer.k, 2, 200), .v = view(layer.v, 2, 200)}, spec,
                 threads);
      EXPECT_TRUE(std::ranges::all_of(std::span(r.out.as<float>(), layer.q.size()),
                                      [](float x) { return std::isfinite(x); }));
      EXPECT_GT(r.counts.visited_cells, 0);
      EXPECT_LE(r.kv_bytes_resident, r.kv_bytes_full);
      EXPECT_EQ(evict.name == "none", r.kept.empty());
      ++combinations;
    }
  }
  for (const MethodInfo& decode : methods()) {
    if (decode.slot != Slot::kDecode) continue;
    const StrategySpec spec = parse_strategy(Json{{"decode", {{decode.name, small(decode)}}}}, "x");
    const auto r = attend({.q = view(last, 4, 1), .k = view(layer.k, 2, 200), .v = view(layer.v, 2, 200)},
                          spec, threads);
    EXPECT_TRUE(r.decode);
    EXPECT_GT(r.counts.kv_bytes_read, 0);
    ++combinations;
  }
  EXPECT_EQ(combinations, 11 * 8 + 6);
}

TEST(Attend, RefusesWhatDoesNotFit) {
  std::vector<float> x(4 * 32 * 8, 1.0f);
  ThreadPool threads(1);
  const auto run = [&](const Shape& q, const Shape& k, const Shape& v, const char* strategy = "{}",
                       DType dtype = DType::kF32) {
    attend({.q = {x.data(), dtype, Device::kCpu, q},
            .k = {x.data(), DType::kF32, Device::kCpu, k},
            .v = {x.data(), DType::kF32, Device::kCpu, v}},
           parse(strategy), threads);
  };
  EXPECT_NO_THROW(run({4, 32, 8}, {2, 32, 8}, {2, 32, 8}));
  EXPECT_NO_THROW(run({1, 1, 8}, {1, 1, 8}, {1, 1, 8}));
  EXPECT_THAT(
      [&] {
        run({4, 32, 8}, {3, 32, 8}, {3, 32, 8});
      },
      ThrowsMessage<Error>(HasSubstr("kv heads must divide")));
  EXPECT_THAT([&] { run({4, 32, 8}, {2, 32, 8}, {2, 16, 8}); }, ThrowsMessage<Error>(HasSubstr("one shape")));
  EXPECT_THAT(
      [&] {
        run({4, 16, 8}, {2, 32, 8}, {2, 32, 8});
      },
      ThrowsMessage<Error>(HasSubstr("16 queries")));
  EXPECT_THAT([&] { run({4, 8, 4}, {2, 8, 4}, {2, 8, 4}); }, ThrowsMessage<Error>(HasSubstr("head_dim 4")));
  EXPECT_THAT(
      [&] {
        run({4, 8}, {2, 8, 4}, {2, 8, 4});
      },
      ThrowsMessage<Error>(HasSubstr("Q: expected [heads")));
  EXPECT_THAT([&] { run({4, 1, 8}, {2, 0, 8}, {2, 0, 8}); }, ThrowsMessage<Error>(HasSubstr("empty")));
  EXPECT_THAT(
      [&] {
        run({4, 32, 8}, {2, 32, 8}, {2, 32, 8}, R"({"decode": "quest"})");
      },
      ThrowsMessage<Error>(HasSubstr("which is a prompt")));
  EXPECT_THAT(
      [&] {
        run({4, 1, 8}, {2, 32, 8}, {2, 32, 8}, R"({"evict": "snapkv"})");
      },
      ThrowsMessage<Error>(HasSubstr("decode step")));
  EXPECT_THAT(
      [&] {
        run({4, 32, 8}, {2, 32, 8}, {2, 32, 8}, "{}", DType::kI32);
      },
      ThrowsMessage<Error>(HasSubstr("int32")));
  x[5] = NAN;
  EXPECT_THAT(
      [&] {
        run({4, 32, 8}, {2, 32, 8}, {2, 32, 8});
      },
      ThrowsMessage<Error>(HasSubstr("element [0, 0, 5] is nan")));
}

StrategySpec at(const std::string& text, Budget budget, std::int64_t length) {
  return with_budget(parse(text), budget, length, paper(), "sweep.yaml:3");
}
Budget sparsity(double s) { return {Budget::Kind::kSparsity, s}; }

TEST(Budgets, ThePapersPointsAreHitExactly) {
  const auto vs = at(R"({"prefill": "vertical_slash"})", sparsity(0.9), 32768).prefill.params;
  EXPECT_EQ(vs.get_int("verticals"), 448);
  EXPECT_EQ(vs.get_int("slashes"), 448);
  const auto flex = at(R"({"prefill": "flexprefill"})", sparsity(0.8), 16384).prefill.params;
  EXPECT_EQ(flex.get_double("alpha"), 0.55);
  EXPECT_EQ(flex.get_int("min_budget"), 512);
  // The published block counts of 16384 tokens come out of the formula that found them.
  const std::vector<std::pair<double, int>> published = {{1 / 20.0, 26}, {1 / 15.0, 35}, {1 / 10.0, 53},
                                                         {1 / 7.5, 71},  {1 / 5.0, 108}, {1 / 3.0, 188},
                                                         {1 / 2.0, 300}};
  for (const auto& [density, chunks] : published) {
    const auto k = at(R"({"prefill": {"block_sparse": {"chunk_size": 16}}})", sparsity(1 - density), 16384)
                       .prefill.params.get_int("top_chunks");
    EXPECT_NEAR(static_cast<double>(k), chunks, 1) << density;
  }
  EXPECT_EQ(at(R"({"evict": "snapkv"})", sparsity(0.9), 16384).evict.params.get_int("capacity"), 1638);
  EXPECT_EQ(at(R"({"decode": "quest"})", sparsity(0.9), 16384).decode.params.get_int("budget"), 1632);
}

TEST(Budgets, BetweenAndBeyondThePoints) {
  // Half way between the densities 0.2 (448) and 0.3 (576), and half way between 16384 and 32768 in the
  // logarithm.
  EXPECT_EQ(at(R"({"prefill": "vertical_slash"})", sparsity(0.75), 16384).prefill.params.get_int("verticals"),
            512);
  const auto middle =
      at(R"({"prefill": "vertical_slash"})", sparsity(0.9), 23170).prefill.params.get_int("verticals");
  EXPECT_NEAR(static_cast<double>(middle), (315 + 448) / 2.0, 1);
  EXPECT_EQ(at(R"({"prefill": "vertical_slash"})", sparsity(0), 16384).prefill.params.get_int("verticals"),
            16384);
  EXPECT_THAT([] { at(R"({"prefill": "vertical_slash"})", sparsity(0.99), 16384); },
              ThrowsMessage<Error>(HasSubstr("down to a density")));
  EXPECT_THAT([] { at(R"({"prefill": "vertical_slash"})", sparsity(0.9), 4096); },
              ThrowsMessage<Error>(HasSubstr("lacuna calibrate")));
  EXPECT_THAT([] { at(R"({"prefill": "xattention"})", sparsity(0.9), 16384); },
              ThrowsMessage<Error>(HasSubstr("lacuna calibrate")));
  EXPECT_THAT([] { at(R"({"decode": "oracle_top_p"})", sparsity(0.9), 16384); },
              ThrowsMessage<Error>(HasSubstr("probability")));
}

TEST(Budgets, DataIndependentMethodsComputeWhatWasAsked) {
  for (const char* text :
       {R"({"prefill": "streaming"})", R"({"prefill": "a_shape"})", R"({"prefill": "tri_shape"})",
        R"({"prefill": {"block_sparse": {"chunk_size": 64}}})", R"({"prefill": "random"})",
        R"({"prefill": "oracle_top_k"})"}) {
    for (const double s : {0.5, 0.8}) {
      const StrategySpec spec = at(text, sparsity(s), 8192);
      const double density = *fixed_density(spec.prefill, 8192);
      EXPECT_LE(density, 1 - s + 1e-9) << text;
      EXPECT_GE(density, 1 - s - 0.02) << text;
      EXPECT_DOUBLE_EQ(*nominal_sparsity(Slot::kPrefill, spec.prefill, 8192), 1 - density);
    }
  }
  // The formula equals what the kernel would be given.
  test::Layer layer({.tokens = 300, .q_heads = 1, .kv_heads = 1, .head_dim = 32}, 1);
  for (const char* text : {R"({"prefill": {"block_sparse": {"chunk_size": 16, "top_chunks": 5}}})",
                           R"({"prefill": {"random": {"block": 32, "top_k": 3}}})",
                           R"({"prefill": {"oracle_top_k": {"block": 64, "top_k": 2}}})"}) {
    TileLists lists;
    AttentionCounts counts;
    const StrategySpec spec = parse(text);
    make_prefill_selector(spec.prefill)->select(layer.input, lists, counts);
    EXPECT_DOUBLE_EQ(*fixed_density(spec.prefill, 300), density_of_head(lists, 0, 0)) << text;
  }
}

TEST(Budgets, Tokens) {
  const Budget tokens{Budget::Kind::kTokens, 2048};
  const auto spec =
      at(R"({"prefill": "vertical_slash", "evict": "snapkv", "decode": "quest"})", tokens, 16384);
  EXPECT_EQ(spec.prefill.params.get_int("verticals"), 2048);
  EXPECT_EQ(spec.prefill.params.get_int("slashes"), 2048);
  EXPECT_EQ(spec.evict.params.get_int("capacity"), 2048);
  EXPECT_EQ(spec.decode.params.get_int("budget"), 2048);
  EXPECT_EQ(at(R"({"prefill": {"block_sparse": {"chunk_size": 64}}})", {Budget::Kind::kTokens, 100}, 16384)
                .prefill.params.get_int("top_chunks"),
            2);
  EXPECT_THAT([&] { at(R"({"prefill": "xattention"})", tokens, 16384); },
              ThrowsMessage<Error>(HasSubstr("probability")));
  EXPECT_THAT(
      [&] {
        at(R"({"decode": "quest"})", {Budget::Kind::kTokens, 0}, 100);
      },
      ThrowsMessage<Error>(HasSubstr("keeps nothing")));
  EXPECT_EQ(at(R"({"decode": "quest"})", {}, 100), parse(R"({"decode": "quest"})"));
  EXPECT_DOUBLE_EQ(*nominal_sparsity(Slot::kDecode, spec.decode, 16384), 0.875);
}

TEST(Calibration, ReachesEveryTargetInFewRunsAndResolvesBack) {
  test::Layer layer({.tokens = 512, .q_heads = 2, .kv_heads = 1, .head_dim = 32}, 21, 0, 3.0f);
  for (const char* text :
       {R"({"prefill": "vertical_slash"})", R"({"prefill": {"flexprefill": {"min_budget": 64}}})",
        R"({"prefill": {"xattention": {"block": 32}}})", R"({"prefill": {"oracle_top_p": {"block": 16}}})"}) {
    const StrategySpec base = parse(text);
    ASSERT_TRUE(needs_calibration(base.prefill));
    int runs = 0;
    const auto measure = [&](const MethodSpec& spec) {
      ++runs;
      TileLists lists;
      AttentionCounts counts;
      make_prefill_selector(spec)->select(layer.input, lists, counts);
      return 1 - count_prefill(lists, layer.input.info).sparsity();
    };
    const std::vector<double> targets = {0.5, 0.7};
    const auto points = calibrate_method(base.prefill, targets, 512, measure, 0.02, 8);
    EXPECT_LE(runs, 2 + 2 * 8) << text;
    const Json file = {{"prefill", {{base.prefill.method, Json::array({calibration_entry(points, 512)})}}}};
    for (const double target : targets) {
      const auto spec = with_budget(base, {Budget::Kind::kSparsity, 1 - target}, 512, file, "sweep");
      EXPECT_NEAR(measure(spec.prefill), target, 0.08) << text << spec.prefill.params.to_json();
    }
    EXPECT_THROW(calibrate_method(base.prefill, std::vector<double>{0.0001}, 512, measure), Error) << text;
  }
  EXPECT_FALSE(needs_calibration(parse(R"({"prefill": "streaming"})").prefill));
}

TEST(Docs, StrategiesPageIsUpToDate) {
  EXPECT_EQ(strategies_markdown(), read_file("docs/strategies.md"))
      << "run: build/release/lacuna strategies --markdown > docs/strategies.md";
}

}  // namespace
}  // namespace lacuna
