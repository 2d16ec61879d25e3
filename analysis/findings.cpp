// What the analyses say, in sentences.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "analysis/analysis.h"
#include "core/error.h"
#include "core/text.h"

namespace lacuna {

namespace {

std::string join(const std::vector<std::string>& parts, const char* separator) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : separator) + part;
  return out;
}

std::string plural(std::size_t n, const char* noun) {
  return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

class Writer {
 public:
  Writer(const ResultTable& table, const Analysis& analysis) : table_(table), a_(analysis) {}

  std::vector<Finding> all() {
    overview();
    frontier();
    crossover();
    largest();
    law();
    predictions();
    tolerance();
    growth();
    failures();
    return std::move(out_);
  }

 private:
  const std::string& model(int i) const { return table_.models[std::size_t(i)].name; }
  const std::string& method(int i) const { return table_.methods[std::size_t(i)]; }

  void overview() {
    std::int64_t asked = 0, ok = 0;
    std::size_t done = 0;
    for (const ResultCell& c : table_.cells) {
      asked += c.asked;
      ok += c.ok;
      done += c.ok + c.failed >= c.asked ? 1 : 0;
    }
    out_.push_back({"Data",
                    fmt::format("{}, {}, {} and {} with {} of {} samples measured",
                                plural(table_.models.size(), "model"), plural(table_.tasks.size(), "task"),
                                plural(table_.lengths.size(), "length"),
                                plural(sparse_methods(), "sparse method"), ok, asked),
                    fmt::format("{} of {} cells are finished.", done, table_.cells.size())});
  }

  void frontier() {
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kBoth}) {
      const CostPanel* panel = nullptr;  // the longest length says most
      for (const CostPanel& p : a_.frontier.panels) {
        if (p.phase == phase) panel = &p;
      }
      if (panel == nullptr) continue;
      std::size_t on = 0, sparse = 0;
      for (const Configuration& p : panel->points) {
        on += p.frontier ? 1 : 0;
        sparse += p.frontier && !p.dense ? 1 : 0;
      }
      std::vector<std::string> choices;
      for (const BudgetChoice& c : a_.frontier.choices) {
        if (&a_.frontier.panels[c.panel] != panel || c.best < 0) continue;
        const Configuration& best = panel->points[std::size_t(c.best)];
        std::string text = fmt::format("For the {} ({} {}) the best is {} {}, score {:.3f} ± {:.3f}",
                                       c.budget_name, format_count(c.budget), panel->unit, model(best.model),
                                       configuration_label(table_, best), best.score, best.sem);
        if (c.reference >= 0 && c.reference != c.best) {
          text += fmt::format(" against {:.3f}", panel->points[std::size_t(c.reference)].score);
        }
        choices.push_back(text + ".");
      }
      out_.push_back(
          {fmt::format("Cost ({})", name_of(phase)),
           on == 1
               ? fmt::format("At {} tokens, the {} frontier is one configuration, and it is {}",
                             length_label(panel->length), name_of(phase), sparse == 1 ? "sparse" : "dense")
               : fmt::format("At {} tokens, {} of the {} configurations on the {} frontier {} sparse",
                             length_label(panel->length), sparse == on ? "all" : std::to_string(sparse), on,
                             name_of(phase), sparse == 1 ? "is" : "are"),
           join(choices, " ")});
    }
  }

  void crossover() {
    std::vector<std::string> reached, missed;
    for (const Crossover& c : a_.frontier.crossovers) {
      const std::string pair =
          fmt::format("{} over dense {} ({})", model(c.large), model(c.small), name_of(c.phase));
      if (std::isinf(c.length)) {
        missed.push_back(pair);
        continue;
      }
      const auto end = [](double v) {
        return std::isinf(v) ? std::string("beyond the longest") : length_label(std::llround(v));
      };
      reached.push_back(fmt::format("{}: {}{} [{}, {}]", pair, where_it_starts(c), end(c.length),
                                    end(c.interval.low), end(c.interval.high)));
    }
    if (reached.empty() && missed.empty()) return;
    out_.push_back(
        {"Crossover",
         fmt::format(
             "In {} of {} pairs a larger sparse model beats a smaller dense one at no more than its cost",
             reached.size(), reached.size() + missed.size()),
         (reached.empty() ? ""
                          : "From these lengths on, with " + percent(a_.options.confidence) +
                                " bootstrap intervals: " + join(reached, "; ") + ". ") +
             (missed.empty() ? ""
                             : fmt::format("Not reached in the other {}.", plural(missed.size(), "pair")))});
  }

  /// A crossover at a measured length says less when the reason is that nothing was affordable (or measured)
  /// below.
  static const char* where_it_starts(const Crossover& c) {
    if (c.length <= double(c.lengths.front().length)) return "at or below ";
    for (std::size_t i = 1; i < c.lengths.size(); ++i) {
      if (double(c.lengths[i].length) == c.length && std::isnan(c.lengths[i - 1].advantage))
        return "affordable first at ";
    }
    return "";
  }

  void largest() {
    std::vector<const LargestSummary*> all;
    for (const LargestSummary& s : a_.significance.summaries) {
      if (s.model < 0) all.push_back(&s);
    }
    if (all.empty()) return;
    std::stable_sort(all.begin(), all.end(), [](const auto* a, const auto* b) { return a->mean > b->mean; });
    std::vector<std::string> parts;
    for (const LargestSummary* s : all) {
      parts.push_back(fmt::format("{} ({}) {:.2f} on average, {:.2f} at worst over {}", method(s->method),
                                  name_of(table_.method_phase[std::size_t(s->method)]), s->mean, s->minimum,
                                  plural(std::size_t(s->curves), "curve")));
    }
    std::size_t levels = 0, blind = 0;  // comparisons, and those that would often miss a loss of 0.1
    for (const LargestSparsity& curve : a_.significance.curves) {
      for (const LevelTest& level : curve.levels) {
        ++levels;
        blind += level.detectable <= 0.1 ? 0 : 1;
      }
    }
    const char* caution =
        a_.options.margin == 0 && 2 * blind > levels ? "On too few samples to be sure, " : "";
    out_.push_back({"Accuracy",
                    fmt::format("{}{} keeps accuracy up to the highest sparsity: {:.0f} % on average",
                                caution, method(all[0]->method), 100 * all[0]->mean),
                    "Largest sparsity without a significant loss (" + describe_test(a_.options) +
                        "): " + join(parts, "; ") + "."});
  }

  void law() {
    for (const LawFit& fit : a_.scaling.fits) {
      if (fit.method != a_.options.fit) continue;
      const LawCoefficients c = fit.coefficients();
      std::vector<std::string> parts;
      const auto term = [&](const char* name, const char* symbol) {
        for (std::size_t i = 0; i < fit.terms.size(); ++i) {
          if (fit.terms[i] != name) continue;
          const auto k = Eigen::Index(i);
          const auto interval = fit.fit.interval(k, a_.options.confidence);
          parts.push_back(fmt::format("{} {:.2f} [{:.2f}, {:.2f}]", symbol, fit.fit.coefficients(k),
                                      interval.low, interval.high));
        }
      };
      term("alpha", "size");
      term("beta", "length");
      term("gamma", "compression");
      std::vector<std::string> held;
      for (const HoldOut& h : a_.scaling.hold_outs) {
        if (h.phase == fit.phase && h.method == fit.method && h.impossible.empty()) {
          held.push_back(fmt::format("{} {:.2f}", h.axis, h.r_squared));
        }
      }
      std::string headline = fmt::format("The {} law explains {:.0f} % of the variance of the scores",
                                         name_of(fit.phase), 100 * fit.r_squared);
      if (c.gamma < 0 && c.alpha > 0) {
        headline += fmt::format("; 10x compression costs as much as a model {:.1f} times smaller",
                                std::exp(-c.gamma * std::log(10.0) / c.alpha));
      }
      out_.push_back({fmt::format("Scaling law ({})", name_of(fit.phase)), headline,
                      fmt::format("{} of the {}, {} fit over {}: {}. {}", "Coefficients", name_of(fit.link),
                                  name_of(fit.method), plural(fit.points.size(), "cell"), join(parts, ", "),
                                  held.empty() ? "" : "R² on held-out maxima: " + join(held, ", ") + ".")});
    }
  }

  void predictions() {
    for (const Prediction& p : a_.scaling.predictions) {
      const bool only = !p.request.task.empty();
      if (p.task >= 0 && !only && count_of_tasks(p) > 1) continue;  // the mean follows
      out_.push_back({"Prediction",
                      fmt::format("{} at {} tokens and {:g}x compression ({}): score {:.3f} [{:.3f}, {:.3f}]",
                                  p.request.model, length_label(std::llround(p.request.length)),
                                  p.request.compression, name_of(p.phase), p.score, p.mean.low, p.mean.high),
                      fmt::format("A measured cell would lie in [{:.3f}, {:.3f}]. ", p.observation.low,
                                  p.observation.high) +
                          (p.warning.empty() ? "" : "Careful, it " + p.warning + ".")});
    }
  }

  std::size_t count_of_tasks(const Prediction& p) const {
    std::size_t n = 0;
    for (const Prediction& other : a_.scaling.predictions) {
      n += other.task >= 0 && other.phase == p.phase && other.request.model == p.request.model &&
                   other.request.length == p.request.length &&
                   other.request.compression == p.request.compression
               ? 1
               : 0;
    }
    return n;
  }

  void tolerance() {
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kBoth}) {
      std::vector<const GridMean*> lengths;
      for (const GridMean& m : a_.tolerance.by_length) {
        if (m.phase == phase && m.method < 0) lengths.push_back(&m);
      }
      if (lengths.empty()) continue;
      const auto& grid = paper_sparsity_grid();
      std::size_t g = grid.size() - 1;  // the highest level that every length has
      const auto everywhere = [&](std::size_t level) {
        return std::all_of(lengths.begin(), lengths.end(),
                           [&](const GridMean* m) { return m->curves[level] > 0; });
      };
      while (g > 0 && !everywhere(g)) --g;
      if (g == 0) continue;
      std::vector<std::string> parts;
      for (const GridMean* m : lengths) {
        parts.push_back(fmt::format("{:.0f} % ± {:.0f} at {}", 100 * m->error[g],
                                    std::isnan(m->error_sem[g]) ? 0 : 100 * m->error_sem[g],
                                    length_label(m->length)));
      }
      std::string headline = fmt::format("At {:.0f} % sparsity {} loses {:.0f} % of the dense score",
                                         100 * grid[g], name_of(phase), 100 * lengths.back()->error[g]);
      if (lengths.size() > 1) {
        headline += fmt::format(" at {} tokens and {:.0f} % at {}", length_label(lengths.back()->length),
                                100 * lengths.front()->error[g], length_label(lengths.front()->length));
      }
      out_.push_back({fmt::format("Length ({})", name_of(phase)), headline,
                      "Mean relative error over models, tasks and methods: " + join(parts, ", ") + "."});
    }
  }

  void growth() {
    std::vector<std::string> parts;
    for (const BudgetGrowth& g : a_.tolerance.growth) {
      parts.push_back(std::isnan(g.interval.low) ? fmt::format("{} {:.2f}", method(g.method), g.exponent)
                                                 : fmt::format("{} {:.2f} [{:.2f}, {:.2f}]", method(g.method),
                                                               g.exponent, g.interval.low, g.interval.high));
    }
    if (parts.empty()) return;
    out_.push_back(
        {"Budget",
         fmt::format(
             "The tokens needed for {:.0f} % relative error grow with the length to the power {:.2f} ({})",
             100 * a_.options.target_error, a_.tolerance.growth.front().exponent,
             method(a_.tolerance.growth.front().method)),
         "Exponents (0: a fixed number of tokens is enough, 1: a fixed share): " + join(parts, ", ") + "."});
  }

  void failures() {
    std::int64_t failed = 0, none = 0, cut = 0, ok = 0;
    std::string reason;
    for (const ResultCell& c : table_.cells) {
      failed += c.failed;
      none += c.no_answer;
      cut += c.cut;
      ok += c.ok;
      if (reason.empty() && c.failed > 0) reason = c.reason;
    }
    const double share = ok > 0 ? 100.0 / double(ok) : 0;
    out_.push_back(
        {"Failures",
         failed == 0 ? fmt::format("No sample failed; {:.1f} % gave no answer", share * double(none))
                     : fmt::format("{} failed; {:.1f} % of the others gave no answer",
                                   plural(std::size_t(failed), "sample"), share * double(none)),
         fmt::format("{} outputs held no answer (they score 0), {} were cut at the output limit.{}", none,
                     cut, reason.empty() ? "" : " First failure: " + reason)});
  }

  std::size_t sparse_methods() const {
    return std::size_t(std::count_if(table_.method_phase.begin(), table_.method_phase.end(),
                                     [](Phase phase) { return phase != Phase::kDense; }));
  }

  static std::string percent(double share) { return fmt::format("{:.0f} %", 100 * share); }

  const ResultTable& table_;
  const Analysis& a_;
  std::vector<Finding> out_;
};

}  // namespace

std::string length_label(std::int64_t tokens) {
  if (tokens >= 1024 && tokens % 1024 == 0) return fmt::format("{}K", tokens / 1024);
  if (tokens >= 100000 && tokens % 1000 == 0) return fmt::format("{}k", tokens / 1000);
  return fmt::format("{}", tokens);
}

std::string configuration_label(const ResultTable& table, const Configuration& point) {
  if (point.dense) return "dense";
  return fmt::format("{} at {:.2f}", table.strategies[std::size_t(point.strategy)].name, point.sparsity);
}

std::vector<Finding> make_findings(const ResultTable& table, const Analysis& analysis) {
  return Writer(table, analysis).all();
}

}  // namespace lacuna
