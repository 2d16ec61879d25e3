#include "analysis/result_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "analysis/statistics.h"
#include "core/error.h"
#include "core/text.h"

namespace lacuna {

namespace {

/// "quest budget=1024" -> "quest": the name a strategy gets when it carries its own parameters.
std::string method_name(const std::string& strategy) {
  const std::size_t space = strategy.find(' ');
  return space != std::string::npos && strategy.find('=', space) != std::string::npos
             ? strategy.substr(0, space)
             : strategy;
}

void sort_samples(ResultCell& cell) {
  std::vector<std::size_t> order(cell.sample.size());
  std::iota(order.begin(), order.end(), 0);
  if (std::is_sorted(cell.sample.begin(), cell.sample.end())) return;
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return cell.sample[a] < cell.sample[b]; });
  std::vector<int> sample;
  std::vector<double> score;
  for (const std::size_t i : order) {
    sample.push_back(cell.sample[i]);
    score.push_back(cell.score[i]);
  }
  cell.sample = std::move(sample);
  cell.score = std::move(score);
}

}  // namespace

std::string_view name_of(Phase phase) {
  switch (phase) {
    case Phase::kDense:
      return "dense";
    case Phase::kPrefill:
      return "prefill";
    case Phase::kDecode:
      return "decode";
    case Phase::kBoth:
      return "both";
  }
  throw_internal("unknown phase {}", static_cast<int>(phase));
}

Phase parse_phase(std::string_view name, const std::string& where) {
  static const std::vector<std::string> names{"dense", "prefill", "decode", "both"};
  const auto it = std::find(names.begin(), names.end(), name);
  LACUNA_REQUIRE(it != names.end(), "{}: {}", where, unknown_name_message("phase", name, names));
  return static_cast<Phase>(it - names.begin());
}

void ResultTable::index() {
  const auto check = [](int i, std::size_t n, const char* what) {
    LACUNA_REQUIRE(i >= 0 && std::size_t(i) < n, "results: a cell refers to {} {} of {}", what, i, n);
  };
  lengths.clear();
  for (ResultCell& cell : cells) {
    check(cell.model, models.size(), "model");
    check(cell.task, tasks.size(), "task");
    check(cell.strategy, strategies.size(), "strategy");
    LACUNA_REQUIRE(cell.sample.size() == cell.score.size(), "results: a cell has {} samples and {} scores",
                   cell.sample.size(), cell.score.size());
    lengths.push_back(cell.length);
    if (std::isnan(cell.sparsity))
      cell.sparsity = std::isnan(cell.nominal) ? 0 : cell.nominal;  // never measured
    sort_samples(cell);
    cell.ok = int(cell.score.size());
    cell.score_mean = stats::mean(cell.score);
    cell.score_sem = stats::standard_error(cell.score);
  }
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());

  methods.clear();
  method_phase.clear();
  method_of.clear();
  for (const ResultStrategy& s : strategies) {
    const std::string name = method_name(s.name);
    std::size_t m = 0;
    while (m < methods.size() && !(methods[m] == name && method_phase[m] == s.phase)) ++m;
    if (m == methods.size()) {
      methods.push_back(name);
      method_phase.push_back(s.phase);
    }
    method_of.push_back(int(m));
  }

  dense_.assign(models.size() * tasks.size() * lengths.size(), -1);
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const ResultCell& cell = cells[i];
    if (phase(cell) != Phase::kDense || cell.ok == 0) continue;
    const auto l =
        std::size_t(std::lower_bound(lengths.begin(), lengths.end(), cell.length) - lengths.begin());
    int& slot =
        dense_[(std::size_t(cell.model) * tasks.size() + std::size_t(cell.task)) * lengths.size() + l];
    if (slot < 0) slot = int(i);
  }
}

const ResultCell* ResultTable::dense(int model, int task, std::int64_t length) const {
  const auto it = std::lower_bound(lengths.begin(), lengths.end(), length);
  if (it == lengths.end() || *it != length) return nullptr;
  const int i = dense_[(std::size_t(model) * tasks.size() + std::size_t(task)) * lengths.size() +
                       std::size_t(it - lengths.begin())];
  return i < 0 ? nullptr : &cells[std::size_t(i)];
}

Pairs common_samples(const ResultCell& a, const ResultCell& b) {
  Pairs pairs;
  for (std::size_t i = 0, j = 0; i < a.sample.size() && j < b.sample.size();) {
    if (a.sample[i] < b.sample[j]) {
      ++i;
    } else if (b.sample[j] < a.sample[i]) {
      ++j;
    } else {
      pairs.a.push_back(a.score[i]);
      pairs.b.push_back(b.score[j]);
      pairs.difference.push_back(a.score[i++] - b.score[j++]);
    }
  }
  return pairs;
}

}  // namespace lacuna
