#include "analysis/frontier.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "analysis/statistics.h"
#include "core/error.h"
#include "core/rng.h"

namespace lacuna {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double density(double sparsity) { return std::isnan(sparsity) ? kNaN : 1 - std::clamp(sparsity, 0.0, 1.0); }

double element_bytes(const ResultModel& model) {
  return model.dtype == "float32" || model.dtype == "f32" ? 4 : 2;
}

double paper_cost(const ModelShape& shape, const ResultCell& cell, Phase phase, PaperCost version) {
  const double tokens = double(cell.length);
  const double prefill = density(cell.sparsity_prefill), decode = density(cell.sparsity_decode);
  if (std::isnan(prefill) || std::isnan(decode)) return kNaN;
  if (phase == Phase::kPrefill) return paper_prefill_flops(shape, tokens, prefill, version).total();
  if (phase == Phase::kDecode) return paper_decode_cost(shape, tokens, decode, version).total();
  return paper_prefill_flops(shape, tokens, prefill, version).total() +
         cell.output_tokens * paper_decode_cost(shape, tokens, decode, PaperCost::kV1).total();
}

double causal_cost(const ResultModel& model, const ResultCell& cell, Phase phase) {
  const double tokens = cell.input_tokens > 0 ? cell.input_tokens : double(cell.length);
  const double prefill = density(cell.sparsity_prefill), decode = density(cell.sparsity_decode);
  if (std::isnan(prefill) || std::isnan(decode)) return kNaN;
  const double prefill_flops = causal_prefill_flops(model.shape, tokens, 1 - prefill).total();
  if (phase == Phase::kPrefill) return prefill_flops;
  const DecodeCost step = causal_decode_step(model.shape, tokens, 1 - decode, 1, element_bytes(model));
  return phase == Phase::kDecode ? step.bytes.total()
                                 : prefill_flops + cell.output_tokens * step.flops.total();
}

double measured_cost(const ResultModel& model, const ResultCell& cell, Phase phase) {
  if (phase != Phase::kDecode) return cell.flops;
  if (!(cell.output_tokens > 0)) return kNaN;
  const double index = std::isnan(cell.index_bytes_read) ? 0 : cell.index_bytes_read;
  return model.shape.weight_elements() * element_bytes(model) +
         (cell.kv_bytes_read + index) / cell.output_tokens;
}

double seconds_cost(const ResultCell& cell, Phase phase) {
  if (phase == Phase::kPrefill) return cell.prefill_s;
  if (phase == Phase::kBoth) return cell.prefill_s + cell.decode_s;
  return cell.output_tokens > 0 ? cell.decode_s / cell.output_tokens : kNaN;
}

bool chosen(const AnalysisOptions& options, const std::string& method) {
  return options.methods.empty() ||
         std::find(options.methods.begin(), options.methods.end(), method) != options.methods.end();
}

/// Cells of one length and phase by configuration, and in each by task.
using Key = std::pair<int, std::pair<int, double>>;  // model, strategy, nominal (NaN as -1)
using ByConfiguration = std::map<Key, std::map<int, const ResultCell*>>;

ByConfiguration collect(const ResultTable& table, const AnalysisOptions& options, std::int64_t length,
                        Phase phase) {
  ByConfiguration found;
  for (const ResultCell& cell : table.cells) {
    if (cell.length != length || cell.ok == 0) continue;
    const Phase own = table.phase(cell);
    if (own != Phase::kDense && own != phase) continue;
    if (own != Phase::kDense && !chosen(options, table.methods[std::size_t(table.method(cell))])) continue;
    found[{cell.model, {cell.strategy, std::isnan(cell.nominal) ? -1 : cell.nominal}}].emplace(cell.task,
                                                                                               &cell);
  }
  return found;
}

Configuration average(const ResultTable& table, const AnalysisOptions& options,
                      const std::map<int, const ResultCell*>& cells, const std::vector<int>& tasks,
                      Phase phase) {
  Configuration point;
  double variance = 0;
  const double n = double(tasks.size());
  for (const int task : tasks) {
    const ResultCell& cell = *cells.at(task);
    point.cells.push_back(&cell);
    point.cost += cell_cost(table, cell, phase, options.cost) / n;
    point.score += cell.score_mean / n;
    point.sparsity += cell.sparsity / n;
    variance += cell.score_sem * cell.score_sem / (n * n);
  }
  const ResultCell& first = *point.cells.front();
  point.model = first.model;
  point.strategy = first.strategy;
  point.method = table.method(first);
  point.nominal = first.nominal;
  point.dense = table.phase(first) == Phase::kDense;
  point.sem = std::sqrt(variance);
  return point;
}

/// The tasks that every model with any dense result has dense results for, else all tasks seen.
std::vector<int> shared_tasks(const ResultTable& table, std::int64_t length) {
  std::vector<int> shared;
  std::vector<bool> counted(table.models.size(), false);
  for (int m = 0; m < int(table.models.size()); ++m) {
    for (int t = 0; t < int(table.tasks.size()); ++t) {
      if (table.dense(m, t, length) != nullptr) counted[std::size_t(m)] = true;
    }
  }
  for (int t = 0; t < int(table.tasks.size()); ++t) {
    bool all = true, any = false;
    for (int m = 0; m < int(table.models.size()); ++m) {
      if (!counted[std::size_t(m)]) continue;
      any = true;
      all = all && table.dense(m, t, length) != nullptr;
    }
    if (any && all) shared.push_back(t);
  }
  return shared;
}

void make_panel(const ResultTable& table, const AnalysisOptions& options, std::int64_t length, Phase phase,
                FrontierAnalysis& out) {
  const ByConfiguration configurations = collect(table, options, length, phase);
  const bool any_sparse = std::any_of(configurations.begin(), configurations.end(), [&](const auto& c) {
    return table.phase(*c.second.begin()->second) == phase;
  });
  if (!any_sparse) return;
  CostPanel panel;
  panel.length = length;
  panel.phase = phase;
  panel.unit = cost_unit(phase, options.cost);
  panel.tasks = shared_tasks(table, length);
  const std::string name = fmt::format("isoCost at {} tokens, {}", length, name_of(phase));
  if (panel.tasks.empty()) {
    out.notes.push_back(
        name + ": left out, no task has dense results for every model, so averages would not compare");
    return;
  }
  int incomplete = 0, without_cost = 0;
  for (const auto& [key, cells] : configurations) {
    const bool complete = std::all_of(panel.tasks.begin(), panel.tasks.end(),
                                      [&have = cells](int task) { return have.count(task) > 0; });
    if (!complete) {
      ++incomplete;
      continue;
    }
    Configuration point = average(table, options, cells, panel.tasks, phase);
    if (std::isfinite(point.cost) && point.cost > 0) {
      panel.points.push_back(std::move(point));
    } else {
      ++without_cost;
    }
  }
  if (incomplete > 0) {
    out.notes.push_back(fmt::format(
        "{}: {} configurations lack some of the {} tasks that the dense models share and are left out", name,
        incomplete, panel.tasks.size()));
  }
  if (without_cost > 0) {
    out.notes.push_back(fmt::format(
        "{}: {} configurations have no cost '{}' (model shape or measurement unknown) and are left out", name,
        without_cost, name_of(options.cost)));
  }
  if (panel.points.empty()) return;
  mark_pareto(panel.points);
  out.panels.push_back(std::move(panel));
}

int best_within(const CostPanel& panel, double budget) {
  int best = -1;
  for (int i = 0; i < int(panel.points.size()); ++i) {
    const Configuration& p = panel.points[std::size_t(i)];
    if (p.cost > budget * (1 + 1e-12)) continue;
    if (best < 0) {
      best = i;
      continue;
    }
    const Configuration& b = panel.points[std::size_t(best)];
    if (p.score > b.score || (p.score == b.score && p.cost < b.cost)) best = i;
  }
  return best;
}

void choose_for_budgets(const ResultTable& table, const AnalysisOptions& options, FrontierAnalysis& out) {
  for (std::size_t k = 0; k < out.panels.size(); ++k) {
    const CostPanel& panel = out.panels[k];
    for (int i = 0; i < int(panel.points.size()); ++i) {
      const Configuration& p = panel.points[std::size_t(i)];
      if (!p.dense) continue;
      out.choices.push_back({k, "cost of dense " + table.models[std::size_t(p.model)].name, p.cost,
                             best_within(panel, p.cost), i});
    }
    if (options.budget)
      out.choices.push_back({k, "--budget", *options.budget, best_within(panel, *options.budget), -1});
  }
}

// --- Crossover
// ------------------------------------------------------------------------------------------------------

/// Draws samples anew, the same for every strategy and model of one task and length: their prompts are the
/// same.
class Resampler {
 public:
  explicit Resampler(const CostPanel& panel) : panel_(panel), ids_(panel.tasks.size()) {
    for (const Configuration& p : panel.points) {
      for (std::size_t t = 0; t < p.cells.size(); ++t) {
        ids_[t].insert(ids_[t].end(), p.cells[t]->sample.begin(), p.cells[t]->sample.end());
      }
    }
    for (auto& ids : ids_) {
      std::sort(ids.begin(), ids.end());
      ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    }
    for (const Configuration& p : panel.points) {
      for (std::size_t t = 0; t < p.cells.size(); ++t) {
        const auto& sample = p.cells[t]->sample;
        std::vector<int> slots;
        if (sample.size() != ids_[t].size()) {
          for (const int id : sample) {
            slots.push_back(int(std::lower_bound(ids_[t].begin(), ids_[t].end(), id) - ids_[t].begin()));
          }
        }
        slots_.push_back(std::move(slots));  // empty: the cell has every sample
      }
    }
  }

  /// Mean score of every point under one redraw.
  std::vector<double> scores(Rng rng) const {
    std::vector<std::vector<double>> weights;
    for (const auto& ids : ids_) {
      std::vector<double> w(ids.size(), 0.0);
      for (std::size_t i = 0; i < ids.size(); ++i) w[rng.below(ids.size())] += 1;
      weights.push_back(std::move(w));
    }
    std::vector<double> out;
    std::size_t c = 0;
    for (const Configuration& p : panel_.points) {
      double score = 0;
      for (std::size_t t = 0; t < p.cells.size(); ++t, ++c) {
        score += weighted_mean(p.cells[t]->score, weights[t], slots_[c]) / double(p.cells.size());
      }
      out.push_back(score);
    }
    return out;
  }

 private:
  static double weighted_mean(const std::vector<double>& score, const std::vector<double>& weight,
                              const std::vector<int>& slots) {
    double sum = 0, total = 0;
    for (std::size_t i = 0; i < score.size(); ++i) {
      const double w = weight[slots.empty() ? i : std::size_t(slots[i])];
      sum += w * score[i];
      total += w;
    }
    return total > 0 ? sum / total : kNaN;
  }

  const CostPanel& panel_;
  std::vector<std::vector<int>> ids_;    // [tasks] sample numbers
  std::vector<std::vector<int>> slots_;  // [points * tasks] into ids_
};

/// The advantage of the best affordable sparse `large` over dense `small`, given the points' scores.
double advantage(const CostPanel& panel, const std::vector<double>& scores, int small, int large, int* best) {
  double dense_cost = kNaN, dense_score = kNaN;
  for (std::size_t i = 0; i < panel.points.size(); ++i) {
    if (panel.points[i].dense && panel.points[i].model == small) {
      dense_cost = panel.points[i].cost;
      dense_score = scores[i];
    }
  }
  double top = kNaN;
  if (best != nullptr) *best = -1;
  for (std::size_t i = 0; i < panel.points.size(); ++i) {
    const Configuration& p = panel.points[i];
    if (p.dense || p.model != large || !(p.cost <= dense_cost * (1 + 1e-12))) continue;
    if (std::isnan(top) || scores[i] > top) {
      top = scores[i];
      if (best != nullptr) *best = int(i);
    }
  }
  return top - dense_score;
}

void find_crossovers(const ResultTable& table, const AnalysisOptions& options, Phase phase,
                     ThreadPool& threads, FrontierAnalysis& out) {
  std::vector<const CostPanel*> panels;
  for (const CostPanel& panel : out.panels) {
    if (panel.phase == phase) panels.push_back(&panel);
  }
  if (panels.empty()) return;
  std::vector<int> models;
  for (int m = 0; m < int(table.models.size()); ++m) {
    if (table.models[std::size_t(m)].shape.parameters > 0) models.push_back(m);
  }
  const auto size = [&](int m) { return table.models[std::size_t(m)].shape.parameters; };
  std::stable_sort(models.begin(), models.end(), [&](int a, int b) { return size(a) < size(b); });
  if (models.size() < 2) {
    out.notes.push_back(fmt::format("Crossover, {}: needs at least two models of known size, found {}",
                                    name_of(phase), models.size()));
    return;
  }
  if (panels.size() < 2) {
    out.notes.push_back(fmt::format(
        "Crossover, {}: only one length, so there is an advantage at that length but no crossover length",
        name_of(phase)));
  }
  std::vector<Crossover> pairs;
  for (std::size_t a = 0; a < models.size(); ++a) {
    for (std::size_t b = a + 1; b < models.size(); ++b) {
      if (size(models[b]) > size(models[a])) {
        pairs.push_back({.phase = phase,
                         .small = models[a],
                         .large = models[b],
                         .lengths = {},
                         .length = 0,
                         .interval = {}});
      }
    }
  }
  std::vector<std::int64_t> lengths;
  for (const CostPanel* panel : panels) lengths.push_back(panel->length);
  for (Crossover& pair : pairs) {
    std::vector<double> values;
    for (const CostPanel* panel : panels) {
      std::vector<double> scores;
      for (const Configuration& p : panel->points) scores.push_back(p.score);
      Crossover::AtLength at;
      at.length = panel->length;
      at.advantage = advantage(*panel, scores, pair.small, pair.large, &at.best);
      values.push_back(at.advantage);
      pair.lengths.push_back(at);
    }
    pair.length = crossing_length(lengths, values);
  }

  // [redraw][pair][length]
  const auto redraws = std::size_t(options.resamples);
  std::vector<double> drawn(redraws * pairs.size() * panels.size());
  std::vector<Resampler> resamplers;
  resamplers.reserve(panels.size());
  for (const CostPanel* panel : panels) resamplers.emplace_back(*panel);
  threads.parallel_for(std::int64_t(redraws), [&](std::int64_t r) {
    for (std::size_t l = 0; l < panels.size(); ++l) {
      const auto scores = resamplers[l].scores(
          Rng(options.seed, stream_id("crossover", std::uint64_t(r), std::uint64_t(panels[l]->length))));
      for (std::size_t k = 0; k < pairs.size(); ++k) {
        drawn[(std::size_t(r) * pairs.size() + k) * panels.size() + l] =
            advantage(*panels[l], scores, pairs[k].small, pairs[k].large, nullptr);
      }
    }
  });
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    std::vector<double> crossings;
    std::vector<std::vector<double>> at(panels.size());
    for (std::size_t r = 0; r < redraws; ++r) {
      const double* values = &drawn[(r * pairs.size() + k) * panels.size()];
      crossings.push_back(crossing_length(lengths, {values, values + panels.size()}));
      for (std::size_t l = 0; l < panels.size(); ++l) at[l].push_back(values[l]);
    }
    pairs[k].interval = stats::percentile_interval(crossings, options.confidence);
    for (std::size_t l = 0; l < panels.size(); ++l) {
      pairs[k].lengths[l].interval = stats::percentile_interval(at[l], options.confidence);
    }
    out.crossovers.push_back(std::move(pairs[k]));
  }
}

}  // namespace

double cell_cost(const ResultTable& table, const ResultCell& cell, Phase phase, CostAxis axis) {
  const ResultModel& model = table.models[std::size_t(cell.model)];
  if (axis == CostAxis::kSeconds) return seconds_cost(cell, phase);
  if (axis == CostAxis::kMeasured && phase != Phase::kDecode) return cell.flops;
  if (!model.has_shape()) return kNaN;
  switch (axis) {
    case CostAxis::kV1:
      return paper_cost(model.shape, cell, phase, PaperCost::kV1);
    case CostAxis::kV2:
      return paper_cost(model.shape, cell, phase, PaperCost::kV2);
    case CostAxis::kFigures:
      return paper_cost(model.shape, cell, phase, PaperCost::kFigures);
    case CostAxis::kCausal:
      return causal_cost(model, cell, phase);
    default:
      return measured_cost(model, cell, phase);
  }
}

std::string cost_unit(Phase phase, CostAxis axis) {
  if (axis == CostAxis::kSeconds) return phase == Phase::kDecode ? "s per token" : "s";
  if (phase != Phase::kDecode) return "FLOP";
  if (axis == CostAxis::kV1) return "FLOP per token";
  return axis == CostAxis::kV2 || axis == CostAxis::kFigures ? "elements per token" : "B per token";
}

void mark_pareto(std::vector<Configuration>& points) {
  std::vector<std::size_t> order(points.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return points[a].cost != points[b].cost ? points[a].cost < points[b].cost
                                            : points[a].score > points[b].score;
  });
  double best = -kInfinity;
  for (const std::size_t i : order) {
    points[i].frontier = points[i].score > best;
    best = std::max(best, points[i].score);
  }
}

double crossing_length(const std::vector<std::int64_t>& lengths, const std::vector<double>& advantage) {
  LACUNA_CHECK(lengths.size() == advantage.size() && !lengths.empty(), "{} lengths, {} values",
               lengths.size(), advantage.size());
  std::size_t first = lengths.size();
  while (first > 0 && advantage[first - 1] > 0) --first;
  if (first == lengths.size()) return kInfinity;
  if (first == 0 || std::isnan(advantage[first - 1])) return double(lengths[first]);
  const double before = advantage[first - 1], after = advantage[first];
  const double low = std::log(double(lengths[first - 1])), high = std::log(double(lengths[first]));
  return std::exp(low + (high - low) * (-before) / (after - before));
}

FrontierAnalysis analyze_frontier(const ResultTable& table, const AnalysisOptions& options,
                                  ThreadPool& threads) {
  FrontierAnalysis out;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kBoth}) {
    for (const std::int64_t length : table.lengths) make_panel(table, options, length, phase, out);
  }
  if (out.panels.empty())
    out.notes.push_back("isoCost: no sparse configuration has results beside dense ones");
  choose_for_budgets(table, options, out);
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kBoth}) {
    find_crossovers(table, options, phase, threads, out);
  }
  return out;
}

}  // namespace lacuna
