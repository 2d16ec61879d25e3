#include "analysis/tolerance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "analysis/regression.h"
#include "core/error.h"

namespace lacuna {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
/// Below this dense score a relative error is noise over noise.
constexpr double kMinDense = 0.05;
/// A curve whose highest measured sparsity falls short of a grid level by no more than this still has that
/// level: methods keep whole pages and tiles, so 0.95 is asked and 0.948 measured.
constexpr double kGridSlack = 0.015;

std::vector<GridCurve> make_curves(const ResultTable& table, const AnalysisOptions& options,
                                   ToleranceAnalysis& out) {
  std::map<std::tuple<int, int, std::int64_t, int>, std::vector<const ResultCell*>> groups;
  for (const ResultCell& cell : table.cells) {
    if (cell.ok == 0 || table.phase(cell) == Phase::kDense || std::isnan(cell.sparsity)) continue;
    const std::string& name = table.methods[std::size_t(table.method(cell))];
    if (!options.methods.empty() &&
        std::find(options.methods.begin(), options.methods.end(), name) == options.methods.end()) {
      continue;
    }
    groups[{cell.model, cell.task, cell.length, table.method(cell)}].push_back(&cell);
  }
  std::vector<GridCurve> curves;
  int without_dense = 0;
  for (auto& [key, cells] : groups) {
    GridCurve curve;
    std::tie(curve.model, curve.task, curve.length, curve.method) = key;
    const ResultCell* dense = table.dense(curve.model, curve.task, curve.length);
    if (dense == nullptr) {
      ++without_dense;
      continue;
    }
    curve.dense = dense->score_mean;
    std::stable_sort(cells.begin(), cells.end(),
                     [](const ResultCell* a, const ResultCell* b) { return a->sparsity < b->sparsity; });
    std::vector<double> x{0}, y{dense->score_mean}, error{dense->score_sem};
    for (const ResultCell* cell : cells) {
      x.push_back(std::max(0.0, cell->sparsity));
      y.push_back(cell->score_mean);
      error.push_back(cell->score_sem);
    }
    for (const double g : paper_sparsity_grid()) {
      const double at = g > x.back() && g <= x.back() + kGridSlack ? x.back() : g;
      curve.score.push_back(interpolate(x, y, at));
      curve.sem.push_back(interpolate(x, error, at));
    }
    curves.push_back(std::move(curve));
  }
  if (without_dense > 0) {
    out.notes.push_back(
        fmt::format("Tolerance: {} curves have no dense results and are left out", without_dense));
  }
  return curves;
}

GridMean mean_of(const std::vector<const GridCurve*>& curves) {
  GridMean mean;
  for (std::size_t g = 0; g < paper_sparsity_grid().size(); ++g) {
    std::vector<double> scores, errors;
    for (const GridCurve* curve : curves) {
      if (!std::isnan(curve->score[g])) scores.push_back(curve->score[g]);
      if (const double e = curve->relative_error(g); !std::isnan(e)) errors.push_back(e);
    }
    mean.score.push_back(stats::mean(scores));
    mean.score_sem.push_back(stats::standard_error(scores));
    mean.error.push_back(stats::mean(errors));
    mean.error_sem.push_back(stats::standard_error(errors));
    mean.curves.push_back(int(errors.size()));
  }
  return mean;
}

/// Follows the mean error up the grid to the first crossing of the target.
BudgetNeed budget_need(const GridMean& mean, double target) {
  const auto& grid = paper_sparsity_grid();
  BudgetNeed need;
  need.method = mean.method;
  need.length = mean.length;
  need.sparsity = kNaN;
  need.bound = true;
  for (std::size_t g = 1; g < grid.size(); ++g) {
    // Levels that fewer curves reach are means over other curves: not comparable.
    if (std::isnan(mean.error[g]) || mean.curves[g] < mean.curves[0]) break;
    if (mean.error[g] > target) {
      const double before = g == 1 ? 0 : mean.error[g - 1];
      const double share = before >= target ? 0 : (target - before) / (mean.error[g] - before);
      need.sparsity = grid[g - 1] + share * (grid[g] - grid[g - 1]);
      need.bound = false;
      break;
    }
    need.sparsity = grid[g];
  }
  need.tokens = (1 - need.sparsity) * double(mean.length);
  return need;
}

void find_growth(const ResultTable& table, const AnalysisOptions& options, ToleranceAnalysis& out) {
  for (int m = 0; m < int(table.methods.size()); ++m) {
    std::vector<double> x, y;
    bool any = false;
    for (const BudgetNeed& need : out.needs) {
      if (need.method != m) continue;
      any = true;
      if (need.bound || std::isnan(need.tokens) || need.tokens <= 0) continue;
      x.push_back(std::log(double(need.length)));
      y.push_back(std::log(need.tokens));
    }
    if (!any) continue;
    if (x.size() < 2) {
      out.notes.push_back(
          fmt::format("Budget growth, {}: the needed budget is known at {} length{}, a trend needs two",
                      table.methods[std::size_t(m)], x.size(), x.size() == 1 ? "" : "s"));
      continue;
    }
    BudgetGrowth growth;
    growth.method = m;
    growth.lengths = int(x.size());
    if (x.size() == 2) {
      growth.exponent = (y[1] - y[0]) / (x[1] - x[0]);
      growth.interval = {kNaN, kNaN};
    } else {
      Eigen::MatrixXd X(Eigen::Index(x.size()), 2);
      Eigen::VectorXd Y(Eigen::Index(x.size()));
      for (std::size_t i = 0; i < x.size(); ++i) {
        X(Eigen::Index(i), 0) = 1;
        X(Eigen::Index(i), 1) = x[i];
        Y(Eigen::Index(i)) = y[i];
      }
      const stats::Fit fit = stats::least_squares(X, Y);
      growth.exponent = fit.coefficients(1);
      growth.interval = fit.interval(1, options.confidence);
    }
    out.growth.push_back(growth);
  }
}

}  // namespace

double GridCurve::relative_error(std::size_t g) const {
  return dense >= kMinDense && !std::isnan(score[g]) ? (dense - score[g]) / dense : kNaN;
}

double interpolate(const std::vector<double>& x, const std::vector<double>& y, double at) {
  LACUNA_CHECK(x.size() == y.size() && !x.empty(), "{} and {} points", x.size(), y.size());
  const auto low = std::lower_bound(x.begin(), x.end(), at), high = std::upper_bound(x.begin(), x.end(), at);
  const auto first = std::size_t(low - x.begin()), last = std::size_t(high - x.begin());
  if (last > first) {  // on measured points
    double sum = 0;
    for (std::size_t i = first; i < last; ++i) sum += y[i];
    return sum / double(last - first);
  }
  if (first == 0 || first == x.size()) return kNaN;
  // Equal neighbours are averaged, on either side.
  double below = 0, above = 0;
  std::size_t n_below = 0, n_above = 0;
  for (std::size_t i = first; i-- > 0 && x[i] == x[first - 1];) {
    below += y[i];
    ++n_below;
  }
  for (std::size_t i = first; i < x.size() && x[i] == x[first]; ++i) {
    above += y[i];
    ++n_above;
  }
  const double share = (at - x[first - 1]) / (x[first] - x[first - 1]);
  return (1 - share) * below / double(n_below) + share * above / double(n_above);
}

ToleranceAnalysis analyze_tolerance(const ResultTable& table, const AnalysisOptions& options) {
  ToleranceAnalysis out;
  out.curves = make_curves(table, options, out);
  std::map<std::tuple<int, int, std::int64_t>, std::vector<const GridCurve*>>
      by_length;  // phase, method (-1), length
  std::map<std::tuple<int, std::string, std::int64_t>, std::vector<const GridCurve*>> by_group;
  std::set<std::pair<int, int>> low;
  for (const GridCurve& curve : out.curves) {
    const int phase = static_cast<int>(table.method_phase[std::size_t(curve.method)]);
    by_length[{phase, -1, curve.length}].push_back(&curve);
    by_length[{phase, curve.method, curve.length}].push_back(&curve);
    by_group[{curve.method, table.tasks[std::size_t(curve.task)].group, curve.length}].push_back(&curve);
    if (curve.dense < kMinDense) low.insert({curve.model, curve.task});
  }
  if (!low.empty()) {
    out.notes.push_back(
        fmt::format("Relative errors: {} (model, task) pairs have dense scores below {} at some length and "
                    "are left out there",
                    low.size(), kMinDense));
  }
  for (const auto& [key, curves] : by_length) {
    GridMean mean = mean_of(curves);
    mean.phase = static_cast<Phase>(std::get<0>(key));
    mean.method = std::get<1>(key);
    mean.length = std::get<2>(key);
    if (mean.method >= 0) out.needs.push_back(budget_need(mean, options.target_error));
    out.by_length.push_back(std::move(mean));
  }
  for (const auto& [key, curves] : by_group) {
    GridMean mean = mean_of(curves);
    std::tie(mean.method, mean.group, mean.length) = key;
    mean.phase = table.method_phase[std::size_t(mean.method)];
    out.by_group.push_back(std::move(mean));
  }
  if (table.lengths.size() < 2 && !out.curves.empty()) {
    out.notes.push_back(
        "Length tolerance: there is only one length, so nothing can be said about how it changes");
  }
  find_growth(table, options, out);
  return out;
}

}  // namespace lacuna
