#include "analysis/score_overview.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace lacuna {

namespace {

struct Mean {
  double sum = 0;
  int count = 0;
  void add(double value) {
    sum += value;
    ++count;
  }
};

struct Line {
  std::vector<Mean> score;  ///< [models]
  Mean sparsity;
};

}  // namespace

std::string score_overview(const ResultTable& table) {
  // Strategies in the sweep's order, then by requested sparsity; own parameters (NaN) stand first.
  std::map<std::pair<int, double>, Line> lines;
  for (const auto& cell : table.cells) {
    if (cell.ok == 0) continue;
    auto& line = lines[{cell.strategy, std::isnan(cell.nominal) ? -1.0 : cell.nominal}];
    line.score.resize(table.models.size());
    line.score[static_cast<std::size_t>(cell.model)].add(cell.score_mean);
    line.sparsity.add(cell.sparsity);
  }
  std::size_t width = std::string_view("strategy").size();
  for (const auto& [key, line] : lines) {
    width = std::max(width, table.strategies[static_cast<std::size_t>(key.first)].name.size());
  }
  std::string text = fmt::format("{:<{}}  sparsity", "strategy", width);
  for (const auto& model : table.models) text += fmt::format("  {:>8}", model.name);
  text += "\n";
  for (const auto& [key, line] : lines) {
    text += fmt::format("{:<{}}  {:8.2f}", table.strategies[static_cast<std::size_t>(key.first)].name, width,
                        line.sparsity.sum / line.sparsity.count);
    for (std::size_t m = 0; m < table.models.size(); ++m) {
      const Mean& mean = line.score[m];
      text += fmt::format("  {:>8}", mean.count > 0 ? fmt::format("{:.2f}", mean.sum / mean.count) : "-");
    }
    text += "\n";
  }
  return text;
}

}  // namespace lacuna
