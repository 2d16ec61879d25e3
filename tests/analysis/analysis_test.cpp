// The analyses on results made from known laws: what went in must come out.
#include "analysis/analysis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "analysis/score_overview.h"
#include "core/error.h"
#include "core/file.h"
#include "core/hdf5.h"
#include "tests/analysis/synthetic.h"

namespace lacuna {
namespace {

using synthetic::Law;
using synthetic::Spec;
using ::testing::HasSubstr;

ThreadPool& threads() {
  static ThreadPool pool(2);
  return pool;
}

AnalysisOptions quick() {
  AnalysisOptions o;
  o.resamples = 200;
  return o;
}

std::string notes_of(const Analysis& a) {
  std::string all;
  for (const std::string& n : a.notes) all += n + "\n";
  return all;
}

// --- Scaling law
// ----------------------------------------------------------------------------------------------------

// Every row of the published table, fed back as exact scores.
TEST(ScalingLaw, PublishedRowsComeBack) {
  const Law rows[] = {{-16.92, 1.31, -1.15, -1.00, Law{}.delta}, {-18.10, 1.58, -1.58, -.83, Law{}.delta},
                      {-18.08, 1.51, -1.51, -.73, Law{}.delta},  {-28.82, 1.72, -.97, -.94, Law{}.delta},
                      {-35.57, 2.25, -1.45, -.81, Law{}.delta},  {-26.89, 1.81, -1.38, -.82, Law{}.delta}};
  for (const Law& law : rows) {
    Spec spec;
    spec.exact = true;
    spec.score = [&law](const ResultModel& m, int task, std::int64_t length, const std::string&, double s) {
      return 1 / (1 + std::exp(-law.logit(m.shape.parameters, double(length), 1 / (1 - s), task)));
    };
    const ResultTable table = synthetic::make_table(spec);
    AnalysisOptions options = quick();
    options.clip = 1e-12;
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      for (const FitMethod method : {FitMethod::kLeastSquares, FitMethod::kFractional}) {
        const LawFit fit = fit_law(table, options, phase, method, law_points(table, options, phase));
        const LawCoefficients c = fit.coefficients();
        EXPECT_NEAR(c.eps, law.eps, 1e-4);
        EXPECT_NEAR(c.alpha, law.alpha, 1e-5);
        EXPECT_NEAR(c.beta, law.beta, 1e-5);
        EXPECT_NEAR(c.gamma, law.gamma, 1e-5);
        EXPECT_EQ(fit.reference_task, 0);
        for (int t = 1; t < 9; ++t) {
          EXPECT_NEAR(fit.fit.coefficients(fit.task_term[std::size_t(t)]), law.delta[std::size_t(t)], 1e-4);
        }
      }
    }
  }
}

// 200 draws of cell scores with logit-normal noise: each 95 % interval must hold its coefficient about 190
// times.
TEST(ScalingLaw, IntervalsCoverTheTruth) {
  const Law law;
  Spec spec;
  spec.exact = true;
  spec.methods = {{"vertical_slash", Phase::kPrefill}};
  spec.levels = {.5, .8, .95};
  ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  options.clip = 1e-15;
  const double truth[] = {law.eps, law.alpha, law.beta, law.gamma};
  int covered[4] = {0, 0, 0, 0}, predicted = 0;
  constexpr int kDraws = 200;
  for (int draw = 0; draw < kDraws; ++draw) {
    Rng rng(77, std::uint64_t(draw));
    for (ResultCell& cell : table.cells) {
      const double logit = law.logit(table.models[std::size_t(cell.model)].shape.parameters,
                                     double(cell.length), 1 / (1 - cell.sparsity), cell.task);
      cell.score = {1 / (1 + std::exp(-logit - 0.5 * rng.normal()))};
    }
    table.index();
    const LawFit fit = fit_law(table, options, Phase::kPrefill, FitMethod::kLeastSquares,
                               law_points(table, options, Phase::kPrefill));
    for (int k = 0; k < 4; ++k) covered[k] += fit.fit.interval(k, 0.95).contains(truth[k]) ? 1 : 0;
    // And a new observation beyond the data.
    const double ln_n = std::log(150e9), ln_l = std::log(262144.0), ln_c = std::log(40.0);
    const double seen = law.logit(150e9, 262144, 40, 2) + 0.5 * rng.normal();
    predicted += fit.fit.prediction_interval(fit.row(2, ln_n, ln_l, ln_c), 0.95).contains(seen) ? 1 : 0;
  }
  for (const int count : covered) EXPECT_NEAR(count, 190, 13);  // 4.2 standard deviations of a binomial
  EXPECT_NEAR(predicted, 190, 13);
}

// The default fit on what sweeps really give: means of 100 answers that are right or wrong.
TEST(ScalingLaw, FractionalIntervalsCoverTheTruthOnSampledScores) {
  const Law law;
  Spec spec;
  spec.exact = true;
  spec.methods = {{"vertical_slash", Phase::kPrefill}};
  spec.levels = {.5, .8, .95};
  ResultTable table = synthetic::make_table(spec);
  const double truth[] = {law.eps, law.alpha, law.beta, law.gamma};
  int covered[4] = {0, 0, 0, 0};
  constexpr int kDraws = 200;
  for (int draw = 0; draw < kDraws; ++draw) {
    Rng rng(78, std::uint64_t(draw));
    for (ResultCell& cell : table.cells) {
      const double logit = law.logit(table.models[std::size_t(cell.model)].shape.parameters,
                                     double(cell.length), 1 / (1 - cell.sparsity), cell.task);
      const double p = 1 / (1 + std::exp(-logit));
      int right = 0;
      for (int i = 0; i < 100; ++i) right += rng.uniform() < p ? 1 : 0;
      cell.score = {right / 100.0};
    }
    table.index();
    const LawFit fit = fit_law(table, quick(), Phase::kPrefill, FitMethod::kFractional,
                               law_points(table, quick(), Phase::kPrefill));
    for (int k = 0; k < 4; ++k) covered[k] += fit.fit.interval(k, 0.95).contains(truth[k]) ? 1 : 0;
  }
  for (const int count : covered) EXPECT_NEAR(count, 190, 13);
}

TEST(ScalingLaw, SampledScoresGiveTheLawBack) {
  Spec spec;
  spec.samples = 100;
  const ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  options.fit = FitMethod::kFractional;
  options.predict = {parse_predict("model=72B,length=256K,compression=20"),
                     parse_predict("model=Qwen2.5-7B,length=16K,sparsity=0.5")};
  const ScalingAnalysis scaling = analyze_scaling(table, options);
  const Law law;
  const LawCoefficients c = scaling.fits.front().coefficients();
  EXPECT_NEAR(c.alpha, law.alpha, 0.05);
  EXPECT_NEAR(c.beta, law.beta, 0.05);
  EXPECT_NEAR(c.gamma, law.gamma, 0.05);
  ASSERT_EQ(scaling.hold_outs.size(), 6u);
  for (const HoldOut& h : scaling.hold_outs) {
    EXPECT_TRUE(h.impossible.empty()) << h.impossible;
    EXPECT_GT(h.r_squared, 0.95) << h.axis;
    EXPECT_LT(h.mae, 0.04) << h.axis;
    EXPECT_GT(h.spearman, 0.95) << h.axis;
    EXPECT_FALSE(h.tasks.empty());
  }
  bool warned = false, mean = false;
  for (const Prediction& p : scaling.predictions) {
    EXPECT_EQ(p.warning.empty(), p.request.length == 16384) << p.warning;
    EXPECT_TRUE(p.mean.contains(p.score));
    if (!p.warning.empty()) {
      warned = true;
      EXPECT_THAT(p.warning, HasSubstr("length is 2 times the largest measured"));
      EXPECT_THAT(p.warning, ::testing::Not(HasSubstr("compression is")));
    }
    if (p.task == 3 && p.request.length == 16384 && p.phase == Phase::kPrefill) {
      EXPECT_NEAR(p.score, 1 / (1 + std::exp(-law.logit(7.616e9, 16384, 2, 3))), 0.02);
    }
    mean |= p.task < 0;
  }
  EXPECT_TRUE(warned);
  EXPECT_TRUE(mean);
}

TEST(ScalingLaw, LinksInvert) {
  for (const Link link : {Link::kLogit, Link::kLog, Link::kIdentity}) {
    for (const double score : {0.1, 0.5, 0.9})
      EXPECT_NEAR(invert_link(link, apply_link(link, score, 0.01)), score, 1e-12);
  }
  EXPECT_NEAR(invert_link(Link::kLogit, apply_link(Link::kLogit, 0, 0.01)), 0.01, 1e-12);
  EXPECT_NEAR(invert_link(Link::kLogit, apply_link(Link::kLogit, 1, 0.01)), 0.99, 1e-12);
}

TEST(ScalingLaw, SaysWhatItCannotEstimate) {
  Spec spec;
  spec.models = {"Qwen2.5-7B"};
  spec.lengths = {16384};
  spec.samples = 30;
  spec.score = [](const ResultModel&, int task, std::int64_t, const std::string&, double s) {
    return task == 4 ? 1.0 : task == 5 ? 0.0 : 0.8 - 0.5 * s * s;
  };
  const ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  options.predict = {parse_predict("model=72B,length=16K,compression=2")};
  const Analysis a = analyze(table, options, threads());
  const std::string notes = notes_of(a);
  EXPECT_THAT(notes, HasSubstr("alpha (model size) cannot be estimated"));
  EXPECT_THAT(notes, HasSubstr("beta (length) cannot be estimated"));
  EXPECT_THAT(notes, HasSubstr("ruler_niah is left out: every score is 1"));
  EXPECT_THAT(notes, HasSubstr("ruler_vt is left out: every score is 0"));
  EXPECT_THAT(notes, HasSubstr("hold-out of size: needs at least three"));
  EXPECT_THAT(notes, HasSubstr("needs at least two models"));
  EXPECT_THAT(notes, HasSubstr("only one length"));
  for (const Prediction& p : a.scaling.predictions)
    EXPECT_THAT(p.warning, HasSubstr("effect of size was not estimated"));
  EXPECT_TRUE(std::isnan(a.scaling.fits.front().coefficients().alpha));
  EXPECT_FALSE(std::isnan(a.scaling.fits.front().coefficients().gamma));
}

// --- Largest sparsity
// -----------------------------------------------------------------------------------------------

/// Flat to 0.8, then a fall of 0.3: the true largest sparsity is 0.8.
Spec cliff(std::uint64_t seed) {
  Spec spec;
  spec.models = {"Qwen2.5-7B"};
  spec.lengths = {16384, 32768};
  spec.methods = {{"quest", Phase::kDecode}};
  spec.seed = seed;
  spec.score = [](const ResultModel&, int, std::int64_t, const std::string&, double s) {
    return s > 0.81 ? 0.4 : 0.7;
  };
  return spec;
}

TEST(LargestSparsity, TheTrueOneIsFoundAtTheStatedErrorRate) {
  for (const LossTest test :
       {LossTest::kPairedT, LossTest::kPermutation, LossTest::kBootstrap, LossTest::kWelch}) {
    AnalysisOptions options = quick();
    options.test = test;
    options.resamples = 499;
    int curves = 0, found = 0, too_high = 0;
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
      const ResultTable table = synthetic::make_table(cliff(seed));
      const SignificanceAnalysis a = analyze_significance(table, options, threads());
      for (const LargestSparsity& c : a.curves) {
        ++curves;
        found += c.largest_sparsity() == 0.8 ? 1 : 0;
        too_high += c.largest_sparsity() > 0.81 ? 1 : 0;
        EXPECT_EQ(c.levels.size(), 9u);
      }
    }
    ASSERT_EQ(curves, 6 * 9 * 2);
    // Holm keeps the chance of any false alarm on a curve at 5 %; a loss of 0.3 on 100 samples is never
    // missed.
    EXPECT_GE(found, 0.95 * curves - 4 * std::sqrt(0.05 * 0.95 * curves)) << name_of(test);
    EXPECT_EQ(too_high, 0) << name_of(test);
  }
}

TEST(LargestSparsity, MarginTurnsTheBurdenOfProof) {
  Spec spec = cliff(3);
  spec.samples = 10;
  const ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  const auto passed = [&] {
    int n = 0;
    for (const LargestSparsity& c : analyze_significance(table, options, threads()).curves)
      n += c.largest >= 0 ? 1 : 0;
    return n;
  };
  const int without_evidence_of_loss = passed();
  options.margin = 0.05;
  EXPECT_LT(passed(), without_evidence_of_loss);  // 10 samples cannot show that a loss is below 0.05
}

TEST(LargestSparsity, NonInferiorityKeepsItsLevel) {
  Spec spec = cliff(4);
  spec.models = {"Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-32B", "Qwen2.5-72B"};
  spec.lengths = {16384, 32768, 65536, 131072};
  spec.levels = {0.9};
  spec.score = [](const ResultModel&, int, std::int64_t, const std::string&, double s) {
    return s > 0 ? 0.55 : 0.7;
  };
  AnalysisOptions options = quick();
  options.margin = 0.15;  // exactly the true loss: passing is an error
  int curves = 0, passed = 0;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    spec.seed = seed;
    const ResultTable table = synthetic::make_table(spec);
    for (const LargestSparsity& c : analyze_significance(table, options, threads()).curves) {
      ++curves;
      passed += c.largest >= 0 ? 1 : 0;
    }
  }
  EXPECT_NEAR(double(passed) / curves, 0.05, 4 * std::sqrt(0.05 * 0.95 / curves));
}

TEST(LargestSparsity, SpoiledBaselineIsReported) {
  Spec spec = cliff(5);
  spec.score = [](const ResultModel&, int, std::int64_t, const std::string&, double s) {
    return s > 0 ? 0.8 : 0.6;
  };
  const Analysis a = analyze(synthetic::make_table(spec), quick(), threads());
  ASSERT_EQ(a.warnings.size(), 1u);
  EXPECT_THAT(a.warnings[0], HasSubstr("Sparse beats dense significantly on 18 of 18 curves"));
  EXPECT_THAT(a.warnings[0], HasSubstr("BOS"));
  EXPECT_TRUE(analyze(synthetic::make_table(cliff(6)), quick(), threads()).warnings.empty());
}

// --- isoCost
// --------------------------------------------------------------------------------------------------------

TEST(Frontier, ParetoByHand) {
  std::vector<Configuration> points(5);
  const std::pair<double, double> values[] = {{3, 0.5}, {1, 0.2}, {2, 0.5}, {4, 0.4}, {1, 0.3}};
  for (std::size_t i = 0; i < 5; ++i) {
    points[i].cost = values[i].first;
    points[i].score = values[i].second;
  }
  mark_pareto(points);
  EXPECT_FALSE(points[0].frontier);  // 2 has the same score for less
  EXPECT_FALSE(points[1].frontier);
  EXPECT_TRUE(points[2].frontier);
  EXPECT_FALSE(points[3].frontier);
  EXPECT_TRUE(points[4].frontier);
}

TEST(Frontier, CrossingByHand) {
  EXPECT_DOUBLE_EQ(crossing_length({1000, 4000}, {-0.1, 0.1}), 2000);  // half way in ln(length)
  EXPECT_EQ(crossing_length({1000, 4000}, {0.1, 0.1}), 1000);
  EXPECT_EQ(crossing_length({1000, 4000}, {NAN, 0.1}), 4000);
  EXPECT_TRUE(std::isinf(crossing_length({1000, 4000}, {0.1, -0.1})));
  EXPECT_TRUE(std::isinf(crossing_length({1000, 4000}, {0.1, NAN})));
}

TEST(Frontier, KnownCrossoverIsFound) {
  // Decode of 14B at sparsity .95 becomes affordable for the budget of dense 7B as its cache grows; its score
  // is better than that of dense 7B by 0.4 ln(L / 50000) from then on.
  Spec spec;
  spec.models = {"Qwen2.5-7B", "Qwen2.5-14B"};
  spec.lengths = {16384, 32768, 65536, 131072};
  spec.methods = {{"vertical_slash", Phase::kPrefill}};
  spec.levels = {.95};
  spec.samples = 400;
  spec.score = [](const ResultModel& m, int, std::int64_t length, const std::string&, double s) {
    return m.name == "Qwen2.5-7B" || s == 0 ? 0.5 : 0.5 + 0.2 * std::log(double(length) / 50000.0);
  };
  const ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  options.cost = CostAxis::kSeconds;
  ResultTable cheap = table;
  for (ResultCell& c : cheap.cells) {
    if (cheap.phase(c) != Phase::kDense) c.prefill_s *= 0.1;  // affordable at every length
  }
  const FrontierAnalysis a = analyze_frontier(cheap, options, threads());
  ASSERT_EQ(a.crossovers.size(), 1u);
  const Crossover& c = a.crossovers[0];
  EXPECT_EQ(c.large, 1);
  EXPECT_TRUE(c.interval.contains(50000)) << c.interval.low << " " << c.interval.high;
  EXPECT_NEAR(c.length, 50000, 4000);
  EXPECT_LT(c.interval.high - c.interval.low, 20000);
  EXPECT_GT(c.interval.high - c.interval.low, 100);
}

TEST(Frontier, BudgetsAndBest) {
  Spec spec;
  spec.samples = 20;
  const ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  options.budget = 1.0;  // one FLOP buys nothing
  const FrontierAnalysis a = analyze_frontier(table, options, threads());
  ASSERT_EQ(a.panels.size(), 8u);  // 4 lengths x 2 phases
  int nothing = 0;
  for (const BudgetChoice& c : a.choices) {
    const CostPanel& panel = a.panels[c.panel];
    if (c.best < 0) {
      ++nothing;
      continue;
    }
    const Configuration& best = panel.points[std::size_t(c.best)];
    EXPECT_LE(best.cost, c.budget * (1 + 1e-9));
    for (const Configuration& p : panel.points) {
      if (p.cost <= c.budget) {
        EXPECT_LE(p.score, best.score);
      }
    }
    ASSERT_GE(c.reference, 0);
    EXPECT_TRUE(panel.points[std::size_t(c.reference)].dense);
  }
  EXPECT_EQ(nothing, 8);
}

TEST(Frontier, EveryCostAxisHasNumbers) {
  Spec spec;
  spec.samples = 3;
  spec.lengths = {16384};
  const ResultTable table = synthetic::make_table(spec);
  for (const CostAxis axis : {CostAxis::kV1, CostAxis::kV2, CostAxis::kFigures, CostAxis::kCausal,
                              CostAxis::kMeasured, CostAxis::kSeconds}) {
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      for (int m = 0; m < 4; ++m) {
        const double dense = cell_cost(table, *table.dense(m, 0, 16384), phase, axis);
        EXPECT_GT(dense, 0) << name_of(axis) << name_of(phase);
        for (const ResultCell& c : table.cells) {
          if (c.model == m && c.task == 0 && table.phase(c) == phase) {
            EXPECT_LT(cell_cost(table, c, phase, axis), dense);
          }
        }
      }
    }
  }
}

TEST(Frontier, MissingTasksAreLeftOutAloud) {
  Spec spec;
  spec.samples = 5;
  ResultTable table = synthetic::make_table(spec);
  for (ResultCell& c : table.cells) {
    if (c.task == 2 && c.nominal == 0.5) {
      c.score.clear();
      c.sample.clear();
    }
  }
  table.index();
  const Analysis a = analyze(table, quick(), threads());
  EXPECT_THAT(notes_of(a), HasSubstr("configurations lack some of the 9 tasks"));
  for (const CostPanel& panel : a.frontier.panels) {
    for (const Configuration& p : panel.points) EXPECT_NE(p.nominal, 0.5);
  }
}

// --- Tolerance
// ------------------------------------------------------------------------------------------------------

TEST(Tolerance, InterpolationByHand) {
  EXPECT_DOUBLE_EQ(interpolate({0, 0.4, 0.8}, {1, 0.8, 0.2}, 0.6), 0.5);
  EXPECT_DOUBLE_EQ(interpolate({0, 0.4, 0.8}, {1, 0.8, 0.2}, 0.4), 0.8);
  EXPECT_DOUBLE_EQ(interpolate({0, 0.5, 0.5}, {1, 0.8, 0.6}, 0.5), 0.7);
  EXPECT_DOUBLE_EQ(interpolate({0, 0.5, 0.5}, {1, 0.8, 0.6}, 0.25), 0.85);
  EXPECT_TRUE(std::isnan(interpolate({0, 0.4}, {1, 0.8}, 0.5)));
}

TEST(Tolerance, FixedBudgetIsSeenAsOne) {
  // The error is budget_half / tokens kept, so a fixed number of tokens gives a fixed error: exponent 0.
  Spec spec;
  spec.exact = true;
  spec.levels = {.33, .5, .6, .7, .8, .87, .9, .93, .95};
  spec.methods = {{"quest", Phase::kDecode}};
  spec.score = [](const ResultModel&, int, std::int64_t length, const std::string&, double s) {
    return s == 0 ? 0.8 : 0.8 * (1 - 200.0 / ((1 - s) * double(length)));
  };
  const ToleranceAnalysis a = analyze_tolerance(synthetic::make_table(spec), quick());
  ASSERT_EQ(a.needs.size(), 4u);
  ASSERT_EQ(a.growth.size(), 1u);
  EXPECT_EQ(a.needs[0].length, 16384);
  EXPECT_NEAR(a.needs[0].tokens, 4000, 0.1 * 4000);  // 200 / 0.05, but for the grid's coarseness
  const auto& g = a.growth[0];
  EXPECT_TRUE(a.needs[3].bound);  // 4000 of 131072 tokens lie beyond the highest level
  EXPECT_EQ(g.lengths, 3);
  EXPECT_LT(std::abs(g.exponent), 0.1);
}

TEST(Tolerance, ErrorsAndGroups) {
  Spec spec;
  spec.exact = true;
  spec.score = [](const ResultModel&, int task, std::int64_t length, const std::string&, double s) {
    return 0.5 * (1 - (task < 3 ? 0.2 : 0.4) * s * 16384.0 / double(length));
  };
  const ResultTable table = synthetic::make_table(spec);
  const ToleranceAnalysis a = analyze_tolerance(table, quick());
  bool qa = false;
  for (const GridMean& m : a.by_group) {
    if (m.group != "single_qa" || m.length != 32768) continue;
    qa = true;
    EXPECT_NEAR(m.error.back(), 0.2 * 0.95 / 2, 1e-9);
    EXPECT_EQ(m.curves.back(), 3 * 4);
  }
  EXPECT_TRUE(qa);
  for (const GridMean& m : a.by_length) {
    const double mean = (3 * 0.2 + 6 * 0.4) / 9;
    EXPECT_NEAR(m.error.back(), mean * 0.95 * 16384.0 / double(m.length), 1e-9);
  }
}

// --- The whole
// ------------------------------------------------------------------------------------------------------

TEST(Analysis, SameBytesOnAnyNumberOfThreads) {
  Spec spec;
  spec.samples = 10;
  spec.lengths = {16384, 65536};
  const ResultTable table = synthetic::make_table(spec);
  AnalysisOptions options = quick();
  options.test = LossTest::kPermutation;
  ThreadPool one(1), three(3);
  const Analysis a = analyze(table, options, one), b = analyze(table, options, three);
  ASSERT_EQ(a.tables.size(), b.tables.size());
  for (std::size_t i = 0; i < a.tables.size(); ++i)
    EXPECT_EQ(a.tables[i].csv(), b.tables[i].csv()) << a.tables[i].name();
  EXPECT_EQ(summary_text(table, a), summary_text(table, b));
}

TEST(Analysis, SurvivesEveryThinTable) {
  const auto run = [](const std::function<void(ResultTable&)>& spoil, Spec spec = {}) {
    spec.samples = 3;
    spec.lengths = {16384, 32768};
    ResultTable table = synthetic::make_table(spec);
    spoil(table);
    table.index();
    const Analysis a = analyze(table, quick(), threads());
    EXPECT_FALSE(summary_text(table, a).empty());
    return notes_of(a);
  };
  EXPECT_THAT(run([](ResultTable& t) { t.cells.clear(); }), HasSubstr("nothing to test"));
  EXPECT_THAT(run([](ResultTable& t) {
                std::erase_if(t.cells, [&](const ResultCell& c) { return t.phase(c) == Phase::kDense; });
              }),
              HasSubstr("no dense results"));
  EXPECT_THAT(run([](ResultTable& t) {
                std::erase_if(t.cells, [&](const ResultCell& c) { return t.phase(c) != Phase::kDense; });
              }),
              HasSubstr("nothing to fit"));
  EXPECT_THAT(run([](ResultTable& t) {
                for (ResultCell& c : t.cells) {
                  c.score.resize(1);
                  c.sample.resize(1);
                }
              }),
              HasSubstr("fewer than two samples"));
  EXPECT_THAT(run([](ResultTable& t) {
                for (ResultCell& c : t.cells) std::fill(c.score.begin(), c.score.end(), 1.0);
              }),
              HasSubstr("every score is 0 or 1"));
  EXPECT_THAT(run([](ResultTable& t) {
                for (ResultModel& m : t.models) m.shape = {};
              }),
              HasSubstr("have no cost"));
  EXPECT_THAT(run([](ResultTable& t) {
                for (ResultCell& c : t.cells) c.sparsity = NAN;
              }),
              ::testing::_);
  EXPECT_THAT(run([](ResultTable& t) {
                for (ResultCell& c : t.cells) {
                  if (t.phase(c) != Phase::kDense) c.nominal = NAN;
                }
              }),
              ::testing::_);
}

TEST(Analysis, ReadsWritesAndReplaces) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(::testing::TempDir()) / "lacuna_analysis_test";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const std::string file = (folder / "results.h5").string();
  Spec spec;
  spec.samples = 12;
  spec.lengths = {16384, 65536};
  ResultTable made = synthetic::make_table(spec);
  made.cells[5].failed = 2;
  made.cells[5].asked = 14;
  synthetic::write_results(made, file);
  const ResultTable table = read_results(folder.string());
  ASSERT_EQ(table.cells.size(), made.cells.size());
  for (std::size_t i = 0; i < table.cells.size(); ++i) {
    EXPECT_EQ(table.cells[i].score, made.cells[i].score);
    EXPECT_EQ(table.cells[i].no_answer, made.cells[i].no_answer);
    EXPECT_EQ(table.cells[i].sparsity, made.cells[i].sparsity);
  }
  EXPECT_EQ(table.cells[5].failed, 2);
  const Analysis a = analyze(table, quick(), threads());
  write_analysis_hdf5(a, file);
  const auto size = fs::file_size(file);
  write_analysis_hdf5(a, file);  // again: replaced, not added
  EXPECT_LE(fs::file_size(file), size + size / 10);
  const hdf5::File stored = hdf5::File::open(file);
  const OutputTable& isocost = a.table("isocost");
  const auto scores = stored.read<double>("/analysis/isocost/score");
  ASSERT_EQ(scores.size(), isocost.rows());
  EXPECT_EQ(scores[3], isocost.number(3, isocost.column("score")));
  EXPECT_EQ(stored.read_strings("/analysis/isocost/model")[3], isocost.text(3, isocost.column("model")));
  EXPECT_EQ(stored.read_string_attribute("/analysis/isocost/cost", "unit"), "see cost_unit");
  EXPECT_EQ(read_results(file).cells.size(), made.cells.size());  // the rest is untouched
  write_csv_files(table, a, (folder / "analysis").string());
  EXPECT_THAT(read_file((folder / "analysis" / "largest_sparsity.csv").string()),
              HasSubstr("task,model,length,method"));
  for (const auto& entry : fs::directory_iterator(folder))
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos);
  fs::remove_all(folder);
}

TEST(Analysis, BadInputIsRefusedByName) {
  EXPECT_THROW(read_results("/nowhere/at/all"), Error);
  EXPECT_THROW(read_results("tests/analysis/synthetic.h"), Error);
  EXPECT_THROW(parse_predict("model=72B"), Error);
  EXPECT_THROW(parse_predict("model=72B,length=1K,compression=0.5"), Error);
  EXPECT_THROW(parse_predict("modle=72B,length=1K,compression=2"), Error);
  EXPECT_THROW(parse_test("t", "--test"), Error);
  AnalysisOptions options;
  options.alpha = 0;
  EXPECT_THROW(options.check(), Error);
  options = {};
  options.methods = {"qest"};
  Spec spec;
  spec.samples = 2;
  spec.lengths = {16384};
  const ResultTable table = synthetic::make_table(spec);
  try {
    analyze(table, options, threads());
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("did you mean 'quest'"));
  }
  options = {};
  options.predict = {parse_predict("model=Qwen2.5-8X,length=1K,compression=2")};
  EXPECT_THROW(analyze(table, options, threads()), Error);
}

TEST(OutputTable, CsvIsQuoted) {
  OutputTable t("t", "", {{"name", "", "", true}, {"value", "1", "", false}});
  t.add({std::string("a,\"b\"\nc"), 0.1});
  t.add({std::string("plain"), NAN});
  EXPECT_EQ(t.csv(), "name,value\n\"a,\"\"b\"\"\nc\",0.1\nplain,\n");
}

TEST(ScoreOverview, MeansOverTasksAndLengthsPerModelAndSparsity) {
  ResultTable table;
  table.models.resize(2);
  table.models[0].name = "small";
  table.models[1].name = "large";
  table.tasks.resize(2);
  table.strategies.resize(2);
  table.strategies[0].name = "dense";
  table.strategies[1].name = "quest";
  const auto add = [&](int model, int task, int strategy, double nominal, double measured, double score) {
    ResultCell cell;
    cell.model = model;
    cell.task = task;
    cell.strategy = strategy;
    cell.nominal = nominal;
    cell.ok = 1;
    cell.score_mean = score;
    cell.sparsity = measured;
    table.cells.push_back(cell);
  };
  add(0, 0, 0, 0, 0, 1);
  add(0, 1, 0, 0, 0, 0.5);
  add(0, 0, 1, 0.9, 0.85, 0.25);
  add(1, 0, 1, 0.9, 0.87, 0.75);
  table.cells.emplace_back().model = 1;  // nothing measured: no share in the mean
  EXPECT_EQ(score_overview(table),
            "strategy  sparsity     small     large\n"
            "dense         0.00      0.75         -\n"
            "quest         0.86      0.25      0.75\n");
}

}  // namespace
}  // namespace lacuna
