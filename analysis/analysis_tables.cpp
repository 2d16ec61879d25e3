// The analyses as tables: every number of them, with units and meanings.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "analysis/analysis.h"
#include "core/error.h"

namespace lacuna {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

OutputColumn name_column(const char* name, const char* description) { return {name, "", description, true}; }
OutputColumn number_column(const char* name, const char* unit, const char* description) {
  return {name, unit, description, false};
}

/// Names of things by index.
struct Names {
  const ResultTable& table;
  std::string model(int i) const { return table.models[std::size_t(i)].name; }
  std::string task(int i) const { return table.tasks[std::size_t(i)].name; }
  std::string method(int i) const { return table.methods[std::size_t(i)]; }
  std::string strategy(int i) const { return table.strategies[std::size_t(i)].name; }
  std::string phase(Phase p) const { return std::string(name_of(p)); }
};

OutputTable isocost(const Names& names, const Analysis& a) {
  OutputTable out(
      "isocost", "Score against cost of every configuration, averaged over the tasks all models share",
      {name_column("phase", "Where the configuration is sparse"),
       number_column("length", "tokens", "Target prompt length"), name_column("model", "Model"),
       number_column("parameters", "1", "Its parameters"), name_column("strategy", "Strategy, or dense"),
       number_column("sparsity_nominal", "1", "Requested sparsity"),
       number_column("sparsity", "1", "Measured sparsity, mean over tasks"),
       number_column("cost", "see cost_unit", "Cost, mean over tasks"),
       name_column("cost_unit", "Unit of cost"), number_column("score", "1", "Mean score over tasks"),
       number_column("score_sem", "1", "Its standard error, tasks taken as independent"),
       number_column("tasks", "1", "Tasks averaged"),
       number_column("frontier", "1", "1: on the Pareto frontier of its phase and length")});
  for (const CostPanel& panel : a.frontier.panels) {
    for (const Configuration& p : panel.points) {
      out.add({names.phase(panel.phase), double(panel.length), names.model(p.model),
               names.table.models[std::size_t(p.model)].shape.parameters, names.strategy(p.strategy),
               p.nominal, p.sparsity, p.cost, panel.unit, p.score, p.sem, double(panel.tasks.size()),
               p.frontier ? 1.0 : 0.0});
    }
  }
  return out;
}

OutputTable budgets(const Names& names, const Analysis& a) {
  OutputTable out(
      "best_for_budget", "The best configuration that costs no more than a budget",
      {name_column("phase", "Phase"), number_column("length", "tokens", "Target prompt length"),
       name_column("budget_name", "Where the budget comes from"),
       number_column("budget", "see cost_unit", "The budget"), name_column("cost_unit", "Unit of costs"),
       name_column("model", "Best model; empty: nothing fits"), name_column("strategy", "Its strategy"),
       number_column("sparsity", "1", "Its measured sparsity"),
       number_column("cost", "see cost_unit", "Its cost"), number_column("score", "1", "Its score"),
       number_column("score_sem", "1", "Standard error of that"),
       number_column("gain", "1", "Its score less that of the dense model the budget comes from")});
  for (const BudgetChoice& c : a.frontier.choices) {
    const CostPanel& panel = a.frontier.panels[c.panel];
    if (c.best < 0) {
      out.add({names.phase(panel.phase), double(panel.length), c.budget_name, c.budget, panel.unit,
               std::string(), std::string(), kNaN, kNaN, kNaN, kNaN, kNaN});
      continue;
    }
    const Configuration& p = panel.points[std::size_t(c.best)];
    const double gain = c.reference < 0 ? kNaN : p.score - panel.points[std::size_t(c.reference)].score;
    out.add({names.phase(panel.phase), double(panel.length), c.budget_name, c.budget, panel.unit,
             names.model(p.model), names.strategy(p.strategy), p.sparsity, p.cost, p.score, p.sem, gain});
  }
  return out;
}

OutputTable crossovers(const Names& names, const Analysis& a) {
  OutputTable out(
      "crossover",
      "From which length on a larger sparse model beats a smaller dense one at no more than its cost",
      {name_column("phase", "Phase"), name_column("small_dense", "Smaller model, dense"),
       name_column("large_sparse", "Larger model, best affordable sparse configuration"),
       number_column("length", "tokens",
                     "Crossover length; inf: not reached; the shortest measured: there already"),
       number_column("length_low", "tokens", "Bootstrap interval, low end"),
       number_column("length_high", "tokens", "Bootstrap interval, high end")});
  for (const Crossover& c : a.frontier.crossovers) {
    out.add({names.phase(c.phase), names.model(c.small), names.model(c.large), c.length, c.interval.low,
             c.interval.high});
  }
  return out;
}

OutputTable advantages(const Names& names, const Analysis& a) {
  OutputTable out(
      "advantage",
      "Score of the best affordable sparse larger model less that of the smaller dense one, per length",
      {name_column("phase", "Phase"), name_column("small_dense", "Smaller model, dense"),
       name_column("large_sparse", "Larger model"), number_column("length", "tokens", "Target prompt length"),
       number_column("advantage", "1",
                     "Difference of scores; empty: nothing of the larger model is affordable"),
       number_column("low", "1", "Bootstrap interval, low end"),
       number_column("high", "1", "Bootstrap interval, high end"), name_column("strategy", "Best strategy"),
       number_column("sparsity", "1", "Its measured sparsity")});
  for (const Crossover& c : a.frontier.crossovers) {
    for (const auto& at : c.lengths) {
      const auto panel =
          std::find_if(a.frontier.panels.begin(), a.frontier.panels.end(),
                       [&](const CostPanel& p) { return p.phase == c.phase && p.length == at.length; });
      const Configuration* best = at.best < 0 ? nullptr : &panel->points[std::size_t(at.best)];
      out.add({names.phase(c.phase), names.model(c.small), names.model(c.large), double(at.length),
               at.advantage, at.interval.low, at.interval.high,
               best == nullptr ? std::string() : names.strategy(best->strategy),
               best == nullptr ? kNaN : best->sparsity});
    }
  }
  return out;
}

OutputTable significance(const Names& names, const Analysis& a) {
  OutputTable out(
      "significance", "Every sparse cell against its dense cell: " + describe_test(a.options),
      {name_column("model", "Model"), name_column("task", "Task"),
       number_column("length", "tokens", "Target prompt length"), name_column("method", "Method"),
       name_column("strategy", "Strategy"), number_column("sparsity_nominal", "1", "Requested sparsity"),
       number_column("sparsity", "1", "Measured sparsity"), number_column("pairs", "1", "Samples in common"),
       number_column("dense", "1", "Mean score, dense"), number_column("sparse", "1", "Mean score, sparse"),
       number_column("loss", "1", "Dense less sparse"), number_column("loss_low", "1", "Interval, paired t"),
       number_column("loss_high", "1", "Interval, paired t"), number_column("p", "1", "p-value"),
       number_column("p_adjusted", "1", "After the correction"),
       number_column("detectable_loss", "1", "Loss that this many samples find with 80 % power"),
       number_column("keeps_accuracy", "1", "1: passes"),
       number_column("beats_dense", "1", "1: significantly better than dense")});
  for (const LargestSparsity& curve : a.significance.curves) {
    for (const LevelTest& t : curve.levels) {
      out.add({names.model(curve.model), names.task(curve.task), double(curve.length),
               names.method(curve.method), names.strategy(t.cell->strategy), t.cell->nominal,
               t.cell->sparsity, double(t.pairs), t.dense->score_mean, t.cell->score_mean, t.loss,
               t.interval.low, t.interval.high, t.p, t.p_adjusted, t.detectable, t.keeps ? 1.0 : 0.0,
               t.beats_dense ? 1.0 : 0.0});
    }
  }
  return out;
}

OutputTable largest(const Names& names, const Analysis& a) {
  OutputTable out(
      "largest_sparsity", "The largest sparsity that keeps accuracy: " + describe_test(a.options),
      {name_column("task", "Task"), name_column("model", "Model"),
       number_column("length", "tokens", "Target prompt length"), name_column("method", "Method"),
       name_column("phase", "Phase"), number_column("levels", "1", "Levels tested"),
       number_column("largest", "1", "Highest measured sparsity that passes (published rule); 0: none"),
       number_column("unbroken", "1", "Highest up to which every level passes"),
       number_column("highest_tested", "1", "Highest measured sparsity of the curve")});
  for (const LargestSparsity& c : a.significance.curves) {
    out.add({names.task(c.task), names.model(c.model), double(c.length), names.method(c.method),
             names.phase(names.table.method_phase[std::size_t(c.method)]), double(c.levels.size()),
             c.largest_sparsity(), c.unbroken_sparsity(), c.levels.back().cell->sparsity});
  }
  return out;
}

OutputTable largest_summary(const Names& names, const Analysis& a) {
  OutputTable out(
      "largest_summary", "Largest sparsity that keeps accuracy, over tasks and lengths",
      {name_column("method", "Method"), name_column("phase", "Phase"), name_column("model", "Model, or all"),
       number_column("curves", "1", "Curves (task x length)"), number_column("mean", "1", "Mean"),
       number_column("median", "1", "Median"), number_column("minimum", "1", "The worst task and length"),
       number_column("mean_unbroken", "1", "Mean of the unbroken rule")});
  for (const LargestSummary& s : a.significance.summaries) {
    out.add({names.method(s.method), names.phase(names.table.method_phase[std::size_t(s.method)]),
             s.model < 0 ? std::string("all") : names.model(s.model), double(s.curves), s.mean, s.median,
             s.minimum, s.mean_unbroken});
  }
  return out;
}

OutputTable scaling_fit(const Names& names, const Analysis& a) {
  OutputTable out("scaling_fit", "link(score) = eps + delta_task + alpha ln N + beta ln L + gamma ln C",
                  {name_column("phase", "Phase"), name_column("fit", "ols or fractional (quasi-binomial)"),
                   name_column("link", "Link"), name_column("term", "Coefficient"),
                   number_column("estimate", "1", "Estimate"), number_column("error", "1", "Standard error"),
                   number_column("low", "1", "Confidence interval, low end"),
                   number_column("high", "1", "Confidence interval, high end"),
                   number_column("p", "1", "p-value of zero")});
  for (const LawFit& law : a.scaling.fits) {
    for (std::size_t i = 0; i < law.terms.size(); ++i) {
      const auto k = Eigen::Index(i);
      const stats::Interval interval = law.fit.interval(k, a.options.confidence);
      out.add({names.phase(law.phase), std::string(name_of(law.method)), std::string(name_of(law.link)),
               law.terms[i], law.fit.coefficients(k), law.fit.error(k), interval.low, interval.high,
               law.fit.p(k)});
    }
    out.add({names.phase(law.phase), std::string(name_of(law.method)), std::string(name_of(law.link)),
             "delta " + names.task(law.reference_task) + " (reference)", 0.0, kNaN, kNaN, kNaN, kNaN});
  }
  return out;
}

OutputTable scaling_quality(const Names& names, const Analysis& a) {
  OutputTable out(
      "scaling_validation",
      "How well the law fits, and how well it foretells what it has not seen (on scores)",
      {name_column("phase", "Phase"), name_column("fit", "ols or fractional"),
       name_column("held_out", "Axis whose largest value was held out; none: the whole sample"),
       name_column("value", "That value"), name_column("task", "Task, or all"),
       number_column("training", "1", "Cells fitted"), number_column("tested", "1", "Cells judged"),
       number_column("r_squared", "1", "1 - SSE/SST"), number_column("mae", "1", "Mean absolute error"),
       number_column("spearman", "1", "Rank correlation"), number_column("eps", "1", "Coefficient"),
       number_column("alpha", "1", "Coefficient of ln N"), number_column("beta", "1", "Coefficient of ln L"),
       number_column("gamma", "1", "Coefficient of ln C")});
  for (const LawFit& law : a.scaling.fits) {
    const LawCoefficients c = law.coefficients();
    out.add({names.phase(law.phase), std::string(name_of(law.method)), std::string("none"), std::string(),
             std::string("all"), double(law.points.size()), double(law.points.size()), law.r_squared, law.mae,
             law.spearman, c.eps, c.alpha, c.beta, c.gamma});
  }
  for (const HoldOut& h : a.scaling.hold_outs) {
    if (!h.impossible.empty()) continue;
    const auto& c = h.coefficients;
    out.add({names.phase(h.phase), std::string(name_of(h.method)), h.axis, h.held, std::string("all"),
             double(h.training), double(h.tested), h.r_squared, h.mae, h.spearman, c.eps, c.alpha, c.beta,
             c.gamma});
    for (const HoldOut::PerTask& t : h.tasks) {
      out.add({names.phase(h.phase), std::string(name_of(h.method)), h.axis, h.held, names.task(t.task),
               double(h.training), double(t.tested), t.r_squared, t.mae, t.spearman, kNaN, kNaN, kNaN, kNaN});
    }
  }
  return out;
}

OutputTable scaling_points(const Names& names, const Analysis& a) {
  OutputTable out(
      "scaling_points", "Observed and fitted scores of every cell of the fits",
      {name_column("phase", "Phase"), name_column("fit", "ols or fractional"), name_column("model", "Model"),
       name_column("task", "Task"), name_column("method", "Method"),
       number_column("length", "tokens", "Target prompt length"),
       number_column("compression", "1", "1 / (1 - measured sparsity)"),
       number_column("observed", "1", "Mean score"), number_column("fitted", "1", "Score by the law")});
  for (const LawFit& law : a.scaling.fits) {
    if (law.method != a.options.fit) continue;
    for (std::size_t i = 0; i < law.points.size(); ++i) {
      const LawPoint& p = law.points[i];
      out.add({names.phase(law.phase), std::string(name_of(law.method)), names.model(p.model),
               names.task(p.task), p.method < 0 ? std::string("dense") : names.method(p.method),
               std::round(std::exp(p.ln_length)), std::exp(p.ln_compression), p.score, law.fitted[i]});
    }
  }
  return out;
}

OutputTable predictions(const Names& names, const Analysis& a) {
  OutputTable out(
      "predictions", "Scores of settings that nobody measured, by the scaling law",
      {name_column("phase", "Phase"), name_column("model", "As asked"),
       number_column("parameters", "1", "Parameters"), number_column("length", "tokens", "Prompt length"),
       number_column("compression", "1", "1 / (1 - sparsity)"), name_column("task", "Task, or mean"),
       number_column("score", "1", "Expected score"),
       number_column("low", "1", "Interval of the expected score"),
       number_column("high", "1", "Interval of the expected score"),
       number_column("cell_low", "1", "Interval of a cell that would be measured"),
       number_column("cell_high", "1", "Interval of a cell that would be measured"),
       name_column("warning", "Not empty: it extrapolates")});
  for (const Prediction& p : a.scaling.predictions) {
    out.add({names.phase(p.phase), p.request.model, p.parameters, p.request.length, p.request.compression,
             p.task < 0 ? std::string("mean") : names.task(p.task), p.score, p.mean.low, p.mean.high,
             p.observation.low, p.observation.high, p.warning});
  }
  return out;
}

OutputTable grid(const Names& names, const Analysis& a) {
  OutputTable out(
      "grid", "Scores on the paper's sparsity grid, interpolated over measured sparsity",
      {name_column("model", "Model"), name_column("task", "Task"),
       number_column("length", "tokens", "Target prompt length"), name_column("method", "Method"),
       number_column("sparsity", "1", "Grid level"), number_column("score", "1", "Score; empty: not reached"),
       number_column("score_sem", "1", "Standard error"),
       number_column("relative_error", "1", "(dense - sparse) / dense")});
  for (const GridCurve& c : a.tolerance.curves) {
    for (std::size_t g = 0; g < c.score.size(); ++g) {
      out.add({names.model(c.model), names.task(c.task), double(c.length), names.method(c.method),
               paper_sparsity_grid()[g], c.score[g], c.sem[g], c.relative_error(g)});
    }
  }
  return out;
}

OutputTable grid_means(const Names& names, const std::vector<GridMean>& means, const char* name,
                       const char* description) {
  OutputTable out(
      name, description,
      {name_column("phase", "Phase"), name_column("method", "Method, or all"),
       name_column("group", "Group of tasks, or all"),
       number_column("length", "tokens", "Target prompt length"),
       number_column("sparsity", "1", "Grid level"), number_column("score", "1", "Mean score over curves"),
       number_column("score_sem", "1", "Standard error between curves"),
       number_column("relative_error", "1", "Mean of (dense - sparse) / dense"),
       number_column("relative_error_sem", "1", "Standard error between curves"),
       number_column("curves", "1", "Curves (model x task) behind it")});
  for (const GridMean& m : means) {
    for (std::size_t g = 0; g < m.score.size(); ++g) {
      out.add({names.phase(m.phase), m.method < 0 ? std::string("all") : names.method(m.method),
               m.group.empty() ? std::string("all") : m.group, double(m.length), paper_sparsity_grid()[g],
               m.score[g], m.score_sem[g], m.error[g], m.error_sem[g], double(m.curves[g])});
    }
  }
  return out;
}

OutputTable budget_needs(const Names& names, const Analysis& a) {
  OutputTable out(
      "budget_need", fmt::format("Budget that keeps the mean relative error at {}", a.options.target_error),
      {name_column("method", "Method"), number_column("length", "tokens", "Target prompt length"),
       number_column("sparsity", "1", "Highest tolerated sparsity"),
       number_column("tokens", "tokens", "Budget: (1 - sparsity) x length"),
       number_column("upper_bound", "1", "1: the target holds as far as was measured"),
       number_column("exponent", "1", "tokens ~ length^exponent, per method: 0 fixed budget, 1 fixed share"),
       number_column("exponent_low", "1", "Interval (three lengths or more)"),
       number_column("exponent_high", "1", "Interval (three lengths or more)")});
  for (const BudgetNeed& n : a.tolerance.needs) {
    double exponent = kNaN, low = kNaN, high = kNaN;
    for (const BudgetGrowth& g : a.tolerance.growth) {
      if (g.method != n.method) continue;
      exponent = g.exponent;
      low = g.interval.low;
      high = g.interval.high;
    }
    out.add({names.method(n.method), double(n.length), n.sparsity, n.tokens, n.bound ? 1.0 : 0.0, exponent,
             low, high});
  }
  return out;
}

/// Wall-clock beside FLOPs and bytes, tasks averaged.
OutputTable costs(const Names& names) {
  const ResultTable& table = names.table;
  OutputTable out(
      "cost",
      "What every configuration costs: measured time beside measured and modelled work, means over tasks",
      {name_column("model", "Model"), number_column("length", "tokens", "Target prompt length"),
       name_column("strategy", "Strategy"), number_column("sparsity_nominal", "1", "Requested"),
       number_column("sparsity_computed", "1", "1 - visited/causal cells"),
       number_column("sparsity_bytes", "1", "1 - cache bytes read / those of a full cache"),
       number_column("sparsity_resident", "1", "1 - resident cache bytes / those of the prompt"),
       number_column("prefill_s", "s", "Wall time of the prefill"),
       number_column("prefill_speedup", "1", "Dense time / this time"),
       number_column("decode_s_per_token", "s", "Wall time of decoding per output token"),
       number_column("decode_speedup", "1", "Dense time / this time"),
       number_column("flops", "FLOP", "Measured: prefill and decode attention as executed"),
       number_column("paper_prefill_flops", "FLOP", "Formula of the paper, v2"),
       number_column("causal_prefill_flops", "FLOP", "Cost model of the kernels"),
       number_column("kv_bytes_read_per_token", "B", "K and V read per output token"),
       number_column("paper_decode_elements", "elements", "Formula of the paper, v2")});
  using Key = std::tuple<int, std::int64_t, int, double>;
  std::map<Key, std::vector<const ResultCell*>> groups;
  for (const ResultCell& c : table.cells) {
    if (c.ok > 0)
      groups[{c.model, c.length, c.strategy, std::isnan(c.nominal) ? -1 : c.nominal}].push_back(&c);
  }
  for (const auto& [key, cells] : groups) {
    const auto average = [&, &group = cells](auto&& value) {
      std::vector<double> values;
      for (const ResultCell* c : group) values.push_back(value(*c));
      std::erase_if(values, [](double v) { return std::isnan(v); });
      return stats::mean(values);
    };
    // Speed-ups are ratios of sums over the same tasks.
    const auto speedup = [&, &group = cells](Phase phase) {
      double dense = 0, own = 0;
      for (const ResultCell* c : group) {
        const ResultCell* d = table.dense(c->model, c->task, c->length);
        if (d == nullptr) continue;
        dense += cell_cost(table, *d, phase, CostAxis::kSeconds);
        own += cell_cost(table, *c, phase, CostAxis::kSeconds);
      }
      return own > 0 ? dense / own : kNaN;
    };
    const ResultCell& first = *cells.front();
    const auto cost = [&](Phase phase, CostAxis axis) {
      return average([&](const ResultCell& c) { return cell_cost(table, c, phase, axis); });
    };
    out.add({names.model(first.model), double(first.length), names.strategy(first.strategy), first.nominal,
             average([](const ResultCell& c) { return c.sparsity; }),
             average([](const ResultCell& c) { return c.sparsity_bytes; }),
             average([](const ResultCell& c) { return c.sparsity_resident; }),
             cost(Phase::kPrefill, CostAxis::kSeconds), speedup(Phase::kPrefill),
             cost(Phase::kDecode, CostAxis::kSeconds), speedup(Phase::kDecode),
             average([](const ResultCell& c) { return c.flops; }), cost(Phase::kPrefill, CostAxis::kV2),
             cost(Phase::kPrefill, CostAxis::kCausal), average([](const ResultCell& c) {
               return c.output_tokens > 0 ? c.kv_bytes_read / c.output_tokens : kNaN;
             }),
             cost(Phase::kDecode, CostAxis::kV2)});
  }
  return out;
}

OutputTable counts(const Names& names) {
  OutputTable out(
      "counts", "Samples done, failed, without an answer, cut at the output limit",
      {name_column("model", "Model"), name_column("task", "Task"),
       number_column("length", "tokens", "Target prompt length"), name_column("strategy", "Strategy"),
       number_column("sparsity_nominal", "1", "Requested sparsity"),
       number_column("asked", "1", "Samples asked for"), number_column("ok", "1", "Done"),
       number_column("failed", "1", "Failed"),
       number_column("no_answer", "1", "Done, but the output held no answer (score 0)"),
       number_column("cut", "1", "Done, but stopped by the output limit"),
       number_column("score", "1", "Mean score"), number_column("score_sem", "1", "Standard error"),
       name_column("reason", "First failure")});
  for (const ResultCell& c : names.table.cells) {
    out.add({names.model(c.model), names.task(c.task), double(c.length), names.strategy(c.strategy),
             c.nominal, double(c.asked), double(c.ok), double(c.failed), double(c.no_answer), double(c.cut),
             c.score_mean, c.score_sem, c.reason});
  }
  return out;
}

}  // namespace

std::vector<OutputTable> make_tables(const ResultTable& table, const Analysis& a) {
  const Names names{table};
  return {largest_summary(names, a),
          largest(names, a),
          budgets(names, a),
          crossovers(names, a),
          advantages(names, a),
          scaling_fit(names, a),
          scaling_quality(names, a),
          predictions(names, a),
          grid_means(names, a.tolerance.by_length, "length_tolerance",
                     "Scores and relative errors on the paper's grid, per length, over models and tasks"),
          grid_means(names, a.tolerance.by_group, "groups", "The same by group of tasks"),
          budget_needs(names, a),
          costs(names),
          isocost(names, a),
          significance(names, a),
          grid(names, a),
          scaling_points(names, a),
          counts(names)};
}

}  // namespace lacuna
