#include "runner/status.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>

#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string bar(const RunState::Counts& c) {
  constexpr int kWidth = 20;
  if (c.total == 0) return std::string(kWidth, '.');
  const auto part = [&](std::int64_t n) { return static_cast<int>(n * kWidth / c.total); };
  const int ok = part(c.ok), failed = c.failed > 0 ? std::max(1, part(c.failed)) : 0;
  const int filled = std::min(kWidth, ok + failed);
  return std::string(static_cast<std::size_t>(filled - failed), '#') +
         std::string(static_cast<std::size_t>(failed), 'x') +
         std::string(static_cast<std::size_t>(kWidth - filled), '.');
}

std::string percent(const RunState::Counts& c) {
  return fmt::format(
      "{:5.1f} %",
      c.total > 0 ? 100.0 * static_cast<double>(c.ok + c.failed) / static_cast<double>(c.total) : 100);
}

}  // namespace

StatusReader::StatusReader(const std::string& folder)
    : paths_(folder),
      sweep_(load_run_sweep(paths_)),
      grid_(expand(sweep_)),
      state_(real_file_system(), grid_, {folder}) {}

Status StatusReader::read() {
  constexpr double kWindow = 600;
  state_.poll([&](int, const RecordHead& head) {
    if (head.status == schema::kOk) finished_.push_back(head.finished);
  });
  Status s;
  s.folder = paths_.out;
  s.sweep = sweep_.name;
  s.cells = static_cast<int>(grid_.cells.size());
  s.complete = std::filesystem::exists(paths_.complete());
  std::map<std::pair<int, int>, RunState::Counts> lines;  // (axis, index)
  std::map<std::string, FailureReason> reasons;
  for (int i = 0; i < s.cells; ++i) {
    const Cell& cell = grid_.cells[static_cast<std::size_t>(i)];
    const auto counts = state_.counts(i);
    s.total += counts;
    if (counts.pending() == 0) ++(counts.ok == 0 ? s.cells_failed : s.cells_done);
    for (const auto& [axis, index] : {std::pair(0, cell.model), std::pair(1, cell.task),
                                      std::pair(2, cell.length_index), std::pair(3, cell.strategy)}) {
      lines[{axis, index}] += counts;
    }
    if (counts.failed == 0) continue;
    FailureReason& reason = reasons[state_.reason(i)];
    if (reason.cells++ == 0) reason.example = cell_name(sweep_, grid_, cell);
  }
  for (const auto& [key, counts] : lines) {
    const auto index = static_cast<std::size_t>(key.second);
    if (key.first == 0) s.axes.push_back({"model", sweep_.models[index].name, counts});
    if (key.first == 1) s.axes.push_back({"task", sweep_.tasks[index].name, counts});
    if (key.first == 2) s.axes.push_back({"length", std::to_string(sweep_.lengths[index]), counts});
    if (key.first == 3) s.axes.push_back({"strategy", grid_.strategies[index].name, counts});
  }
  for (auto& [reason, entry] : reasons) {
    entry.reason = reason;
    s.failures.push_back(entry);
  }
  std::ranges::sort(s.failures, [](const auto& a, const auto& b) { return a.cells > b.cells; });

  const double newest = state_.last_finished();
  s.idle_seconds = newest > 0 ? std::max(0.0, now_seconds() - newest) : 0;
  std::erase_if(finished_, [&](double time) { return time < newest - kWindow; });
  if (finished_.size() >= 2) {
    const double span = newest - *std::ranges::min_element(finished_);
    if (span > 0) s.per_minute = static_cast<double>(finished_.size() - 1) / span * 60;
  }
  if (s.per_minute > 0) s.eta_seconds = static_cast<double>(s.total.pending()) / s.per_minute * 60;
  s.duplicates = state_.duplicates();
  s.foreign = state_.foreign();
  s.bad_lines = state_.issue_count();
  s.issues = state_.issues();
  if (s.issues.size() > 10) s.issues.resize(10);
  s.conflicts = state_.conflicts();
  return s;
}

std::string to_text(const Status& s) {
  std::string text = fmt::format("{}  ({})\n{} {}  {}/{} samples", s.sweep, s.folder, bar(s.total),
                                 percent(s.total), s.total.ok + s.total.failed, s.total.total);
  if (s.total.failed > 0) text += fmt::format(", {} failed", s.total.failed);
  text += fmt::format("; {}/{} cells\n", s.cells_done + s.cells_failed, s.cells);
  if (s.total.pending() == 0) {
    text += s.total.failed > 0 ? "complete, with failures\n" : "complete\n";
  } else if (s.per_minute > 0) {
    text += fmt::format("{:.1f} samples/min, {} left", s.per_minute, format_seconds(s.eta_seconds));
    if (s.idle_seconds > 600) text += fmt::format("; nothing new for {}", format_seconds(s.idle_seconds));
    text += "\n";
  }
  std::size_t width = 8;
  for (const auto& line : s.axes) width = std::max(width, line.name.size());
  std::string axis;
  for (const auto& line : s.axes) {
    if (line.axis != axis) {
      axis = line.axis;
      text += fmt::format("\n{:<{}}  {:>20}  {:>8}  {:>8}  {:>8}  {:>8}\n", axis, width + 2, "", "", "done",
                          "failed", "pending");
    }
    text += fmt::format("  {:<{}}  {}  {}  {:>8}  {:>8}  {:>8}\n", line.name, width, bar(line.counts),
                        percent(line.counts), line.counts.ok, line.counts.failed, line.counts.pending());
  }
  if (!s.failures.empty()) text += "\nfailures\n";
  for (const auto& failure : s.failures) {
    text += fmt::format("  {} cell{}, for instance {}: {}\n", failure.cells, failure.cells == 1 ? "" : "s",
                        failure.example, failure.reason);
  }
  if (s.bad_lines + static_cast<std::uint64_t>(s.duplicates + s.foreign) > 0 || !s.conflicts.empty()) {
    text += fmt::format(
        "\njournal: {} bad lines, {} duplicates, {} records of cells that this sweep does not have\n",
        s.bad_lines, s.duplicates, s.foreign);
    for (const auto& issue : s.issues)
      text += fmt::format("  {}:{}: {}\n", issue.file, issue.line, issue.what);
    for (const auto& conflict : s.conflicts) text += fmt::format("  two results: {}\n", conflict);
  }
  return text;
}

Json to_json(const Status& s) {
  const auto counts = [](const RunState::Counts& c) {
    return Json{{"total", c.total}, {"done", c.ok}, {"failed", c.failed}, {"pending", c.pending()}};
  };
  Json axes = Json::object();
  for (const auto& line : s.axes) axes[line.axis][line.name] = counts(line.counts);
  Json failures = Json::array(), issues = Json::array();
  for (const auto& f : s.failures)
    failures.push_back({{"reason", f.reason}, {"cells", f.cells}, {"example", f.example}});
  for (const auto& i : s.issues) issues.push_back({{"file", i.file}, {"line", i.line}, {"what", i.what}});
  return {{"folder", s.folder},
          {"sweep", s.sweep},
          {"samples", counts(s.total)},
          {"cells", {{"total", s.cells}, {"done", s.cells_done}, {"failed", s.cells_failed}}},
          {"axes", axes},
          {"per_minute", s.per_minute},
          {"eta_seconds", s.eta_seconds < 0 ? Json() : Json(s.eta_seconds)},
          {"idle_seconds", s.idle_seconds},
          {"complete", s.complete},
          {"failures", failures},
          {"journal",
           {{"bad_lines", s.bad_lines},
            {"duplicates", s.duplicates},
            {"foreign", s.foreign},
            {"issues", issues},
            {"conflicts", s.conflicts}}}};
}

}  // namespace lacuna
