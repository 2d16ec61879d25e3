#include "analysis/significance.h"

#include <algorithm>
#include <boost/math/distributions/binomial.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "core/error.h"

namespace lacuna {

namespace {

using stats::Alternative;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
/// Comparisons that cannot see a loss of this size are counted and reported.
constexpr double kBlindLoss = 0.1;

double run_test(const AnalysisOptions& options, const Pairs& pairs, const ResultCell& dense,
                const ResultCell& sparse, Alternative alternative, double shift, std::uint64_t stream) {
  switch (options.test) {
    case LossTest::kWelch:
      return stats::welch_t(dense.score, sparse.score, alternative, shift).p;
    case LossTest::kPairedT:
      return stats::paired_t(pairs.difference, alternative, shift).p;
    case LossTest::kBootstrap:
      return stats::paired_bootstrap(pairs.difference, alternative, shift, options.resamples,
                                     Rng(options.seed, stream))
          .p;
    case LossTest::kPermutation:
      return stats::sign_flip(pairs.difference, alternative, shift, options.resamples,
                              Rng(options.seed, stream))
          .p;
  }
  throw_internal("unknown test");
}

stats::Interval loss_interval(const std::vector<double>& difference, double confidence) {
  if (difference.size() < 2) return {kNaN, kNaN};
  const double center = stats::mean(difference), error = stats::standard_error(difference);
  const double half =
      error == 0 ? 0 : stats::t_quantile((1 + confidence) / 2, double(difference.size() - 1)) * error;
  return {center - half, center + half};
}

void test_level(const AnalysisOptions& options, LevelTest& level, std::uint64_t stream) {
  const Pairs pairs = common_samples(*level.dense, *level.cell);
  level.pairs = int(pairs.difference.size());
  const bool paired = options.test != LossTest::kWelch;
  level.loss = paired ? stats::mean(pairs.difference) : level.dense->score_mean - level.cell->score_mean;
  level.interval = loss_interval(pairs.difference, options.confidence);
  const double error = paired ? stats::standard_error(pairs.difference)
                              : std::hypot(level.dense->score_sem, level.cell->score_sem);
  level.detectable = (stats::normal_quantile(options.two_sided ? 1 - options.alpha / 2 : 1 - options.alpha) +
                      stats::normal_quantile(0.8)) *
                     error;
  // A loss in fewer samples than this share is missed entirely one time in five: nothing then differs to be
  // seen.
  if (level.pairs > 0) level.detectable = std::max(level.detectable, 1 - std::pow(0.2, 1.0 / level.pairs));
  if (options.margin > 0) {  // H0: the loss is at least the margin
    level.p = run_test(options, pairs, *level.dense, *level.cell, Alternative::kLess, options.margin, stream);
  } else {  // H0: no loss
    const auto alternative = options.two_sided ? Alternative::kTwoSided : Alternative::kGreater;
    level.p = run_test(options, pairs, *level.dense, *level.cell, alternative, 0, stream);
  }
  level.p_better = run_test(options, pairs, *level.dense, *level.cell, Alternative::kLess, 0, stream + 1);
}

void judge_curve(const AnalysisOptions& options, LargestSparsity& curve) {
  std::vector<double> p, better;
  for (const LevelTest& level : curve.levels) {
    p.push_back(level.p);
    better.push_back(level.p_better);
  }
  const auto adjusted = options.holm ? stats::holm(p) : p;
  const auto adjusted_better = options.holm ? stats::holm(better) : better;
  bool unbroken = true;
  for (std::size_t i = 0; i < curve.levels.size(); ++i) {
    LevelTest& level = curve.levels[i];
    level.p_adjusted = adjusted[i];
    level.p_better = adjusted_better[i];
    if (std::isnan(level.p_adjusted)) {
      level.keeps = false;
    } else if (options.margin > 0) {
      level.keeps = level.p_adjusted < options.alpha;
    } else {
      // Two-sided tests also reject gains; a gain is no loss.
      level.keeps = level.p_adjusted >= options.alpha || level.loss < 0;
    }
    level.beats_dense = level.p_better < options.alpha;
    unbroken = unbroken && level.keeps;
    if (level.keeps) curve.largest = int(i);
    if (unbroken) curve.unbroken = int(i);
  }
}

std::vector<LargestSparsity> collect_curves(const ResultTable& table, const AnalysisOptions& options,
                                            SignificanceAnalysis& out) {
  std::map<std::tuple<int, int, std::int64_t, int>, LargestSparsity> curves;
  int without_dense = 0, too_few = 0;
  for (const ResultCell& cell : table.cells) {
    if (table.phase(cell) == Phase::kDense || cell.ok == 0) continue;
    const int method = table.method(cell);
    const std::string& name = table.methods[std::size_t(method)];
    if (!options.methods.empty() &&
        std::find(options.methods.begin(), options.methods.end(), name) == options.methods.end()) {
      continue;
    }
    const ResultCell* dense = table.dense(cell.model, cell.task, cell.length);
    if (dense == nullptr) {
      ++without_dense;
      continue;
    }
    if (cell.ok < 2 || dense->ok < 2) ++too_few;
    LargestSparsity& curve = curves[{cell.model, cell.task, cell.length, method}];
    curve.model = cell.model;
    curve.task = cell.task;
    curve.length = cell.length;
    curve.method = method;
    LevelTest level;
    level.cell = &cell;
    level.dense = dense;
    level.method = method;
    curve.levels.push_back(level);
  }
  if (without_dense > 0) {
    out.notes.push_back(
        fmt::format("Significance: {} sparse cells have no dense results to compare with and are left out",
                    without_dense));
  }
  if (too_few > 0) {
    out.notes.push_back(
        fmt::format("Significance: {} cells have fewer than two samples (theirs or dense); they cannot be "
                    "tested and count as not keeping accuracy",
                    too_few));
  }
  std::vector<LargestSparsity> list;
  for (auto& [key, curve] : curves) {
    std::stable_sort(curve.levels.begin(), curve.levels.end(), [](const LevelTest& a, const LevelTest& b) {
      return a.cell->sparsity < b.cell->sparsity;
    });
    list.push_back(std::move(curve));
  }
  return list;
}

LargestSummary summarize(const std::vector<const LargestSparsity*>& curves, int model, int method) {
  LargestSummary s;
  s.model = model;
  s.method = method;
  s.curves = int(curves.size());
  std::vector<double> largest;
  for (const LargestSparsity* c : curves) {
    largest.push_back(c->largest_sparsity());
    s.mean_unbroken += c->unbroken_sparsity() / double(curves.size());
  }
  std::sort(largest.begin(), largest.end());
  s.mean = stats::mean(largest);
  s.median = stats::quantile(largest, 0.5);
  s.minimum = largest.front();
  return s;
}

/// A few curves of many beat dense by chance; more than that is a sign of a spoiled baseline.
void report_beaten(const ResultTable& table, const AnalysisOptions& options, int beaten,
                   const LevelTest& worst, SignificanceAnalysis& out) {
  const double curves = double(out.curves.size());
  const double chance = boost::math::cdf(
      boost::math::complement(boost::math::binomial(curves, options.alpha), double(beaten) - 1));
  const ResultCell& c = *worst.cell;
  const std::string text = fmt::format(
      "Sparse beats dense significantly on {} of {} curves, where chance alone gives about {:.1f} (most: {} "
      "on {}, {} tokens, {} at sparsity "
      "{:.2f}: {:+.3f})",
      beaten, out.curves.size(), options.alpha * curves, table.models[std::size_t(c.model)].name,
      table.tasks[std::size_t(c.task)].name, c.length, table.methods[std::size_t(worst.method)], c.sparsity,
      -worst.loss);
  if (chance < 0.05) {
    out.warnings.push_back(
        text +
        ". Check that dense saw the prompt it was meant to see: a doubled BOS token, missing RoPE "
        "scaling or a wrong chat frame make dense look worse than it is");
  } else {
    out.notes.push_back(text + "; that is within chance");
  }
}

}  // namespace

std::string describe_test(const AnalysisOptions& o) {
  static constexpr const char* kNames[] = {"Welch's t test", "paired t test", "paired bootstrap",
                                           "sign-flip permutation test"};
  std::string text = kNames[static_cast<int>(o.test)];
  text += o.two_sided ? ", two-sided" : ", one-sided";
  text += fmt::format(", alpha {}", o.alpha);
  if (o.margin > 0) text += fmt::format(", non-inferiority margin {}", o.margin);
  return text + (o.holm ? ", Holm over the levels of a curve" : ", no correction");
}

SignificanceAnalysis analyze_significance(const ResultTable& table, const AnalysisOptions& options,
                                          ThreadPool& threads) {
  SignificanceAnalysis out;
  out.curves = collect_curves(table, options, out);
  if (out.curves.empty()) {
    out.notes.push_back("Significance: nothing to test (no sparse cell with a dense cell beside it)");
    return out;
  }
  threads.parallel_for(std::int64_t(out.curves.size()), [&](std::int64_t i) {
    LargestSparsity& curve = out.curves[std::size_t(i)];
    for (std::size_t k = 0; k < curve.levels.size(); ++k) {
      test_level(options, curve.levels[k], stream_id("significance", std::uint64_t(i), k));
    }
    judge_curve(options, curve);
  });

  std::map<std::pair<int, int>, std::vector<const LargestSparsity*>> groups;  // method, model
  int beaten = 0, levels = 0, blind = 0;
  const LevelTest* worst = nullptr;
  for (const LargestSparsity& curve : out.curves) {
    groups[{curve.method, -1}].push_back(&curve);
    groups[{curve.method, curve.model}].push_back(&curve);
    bool any = false;
    for (const LevelTest& level : curve.levels) {
      ++levels;
      blind += level.detectable > kBlindLoss || std::isnan(level.detectable) ? 1 : 0;
      if (!level.beats_dense) continue;
      any = true;
      if (worst == nullptr || level.loss < worst->loss) worst = &level;
    }
    beaten += any ? 1 : 0;
  }
  for (const auto& [key, curves] : groups) out.summaries.push_back(summarize(curves, key.second, key.first));
  if (blind > 0) {
    out.notes.push_back(
        fmt::format("Significance: in {} of {} comparisons the samples would miss a loss of {} more than one "
                    "time in five; 'no significant loss' says little there",
                    blind, levels, kBlindLoss));
  }
  if (beaten > 0) report_beaten(table, options, beaten, *worst, out);
  return out;
}

}  // namespace lacuna
