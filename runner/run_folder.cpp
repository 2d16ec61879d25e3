#include "runner/run_folder.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"

namespace lacuna {

namespace {

/// One line per value that is not the same in both, by its path. Lists are compared as a whole.
void differences(const Json& before, const Json& now, const std::string& path,
                 std::vector<std::string>& out) {
  if (before == now) return;
  if (before.is_object() && now.is_object()) {
    for (const auto& [key, value] : before.items()) {
      differences(value, now.contains(key) ? now[key] : Json(), join_path(path, key), out);
    }
    for (const auto& [key, value] : now.items()) {
      if (!before.contains(key)) differences(Json(), value, join_path(path, key), out);
    }
    return;
  }
  out.push_back(fmt::format("{}: {} -> {}", path, before.is_null() ? "(none)" : before.dump(),
                            now.is_null() ? "(none)" : now.dump()));
}

/// What a cell is called in both sweeps, whatever its settings.
std::map<std::string, const Cell*> by_name(const Sweep& sweep, const Grid& grid) {
  std::map<std::string, const Cell*> cells;
  for (const auto& cell : grid.cells) cells[cell_name(sweep, grid, cell)] = &cell;
  return cells;
}

}  // namespace

std::vector<std::string> incompatible_changes(const Sweep& before, const Sweep& now) {
  const Grid old_grid = expand(before), new_grid = expand(now);
  std::unordered_map<std::uint64_t, const Cell*> kept;
  for (const auto& cell : new_grid.cells) kept[cell.key] = &cell;
  const auto named = by_name(now, new_grid);
  std::vector<std::string> changes, gone;
  std::map<std::string, int> settings;  // a change shared by many cells is told once
  for (const auto& cell : old_grid.cells) {
    const std::string name = cell_name(before, old_grid, cell);
    if (const auto it = kept.find(cell.key); it != kept.end()) {
      if (it->second->samples < cell.samples)
        ++settings[fmt::format("samples: {} -> {}", cell.samples, it->second->samples)];
      continue;
    }
    const auto it = named.find(name);
    if (it == named.end()) {
      gone.push_back(name);
      continue;
    }
    std::vector<std::string> lines;
    differences(cell_settings(before, old_grid, cell), cell_settings(now, new_grid, *it->second), "", lines);
    for (const auto& line : lines) ++settings[line];
  }
  for (const auto& [line, cells] : settings) changes.push_back(fmt::format("{}  ({} cells)", line, cells));
  constexpr std::size_t kShown = 8;
  for (std::size_t i = 0; i < std::min(gone.size(), kShown); ++i)
    changes.push_back("no longer there: " + gone[i]);
  if (gone.size() > kShown)
    changes.push_back(fmt::format("no longer there: {} more cells", gone.size() - kShown));
  return changes;
}

Sweep load_run_sweep(const RunPaths& paths) {
  LACUNA_REQUIRE(std::filesystem::is_directory(paths.out), "{}: no such folder", paths.out);
  LACUNA_REQUIRE(std::filesystem::exists(paths.sweep()), "{}: not the folder of a run: it has no sweep.json",
                 paths.out);
  return load_sweep(paths.sweep());
}

RunState::Counts& RunState::Counts::operator+=(const Counts& other) {
  total += other.total;
  ok += other.ok;
  failed += other.failed;
  return *this;
}

RunState::RunState(const FileSystem& files, const Grid& grid, std::vector<std::string> folders)
    : files_(files), grid_(grid), folders_(std::move(folders)), whole_(grid.cells.size()) {
  for (const auto& folder : folders_) readers_.emplace_back(files_, RunPaths(folder).journal());
  for (std::size_t i = 0; i < grid.cells.size(); ++i) {
    cell_of_key_[grid.cells[i].key] = static_cast<int>(i);
    slots_.emplace_back(at(grid.cells[i].samples));
  }
}

void RunState::poll(const std::function<void(int, const RecordHead&)>& on_new) {
  int attempt = 0;
  for (const auto& folder : folders_)
    attempt = std::max(attempt, static_cast<int>(files_.list(RunPaths(folder).retries()).size()));
  if (attempt > attempt_) {
    // Somebody asked for a retry: what failed so far is to be run again.
    const auto forget = [](Slot& slot) {
      if (slot.state == SampleState::kFailed) slot = {};
    };
    std::ranges::for_each(whole_, forget);
    for (auto& cell : slots_) std::ranges::for_each(cell, forget);
  }
  attempt_ = attempt;
  for (std::size_t f = 0; f < readers_.size(); ++f) {
    readers_[f].poll([&](const RecordHead& head, std::string_view line, const LineRef& ref) {
      take(f, head, line, ref, on_new);
    });
  }
}

void RunState::take(std::size_t folder, const RecordHead& head, std::string_view line, const LineRef& ref,
                    const std::function<void(int, const RecordHead&)>& on_new) {
  const auto it = cell_of_key_.find(head.cell);
  if (it == cell_of_key_.end()) {
    ++foreign_;
    return;
  }
  const int cell = it->second;
  // Samples beyond those asked for now stay in the journal for the day they are asked for again.
  if (head.sample >= grid_.cells[at(cell)].samples) return;
  const bool failed = head.status == schema::kFailed;
  if (failed && head.attempt < attempt_) return;
  Slot& slot = head.sample == SampleRecord::kWholeCell ? whole_[at(cell)] : slots_[at(cell)][at(head.sample)];
  last_finished_ = std::max(last_finished_, head.finished);
  if (slot.state == SampleState::kOk || (slot.state == SampleState::kFailed && failed)) {
    ++duplicates_;
    if (!failed) compare(cell, head, slot, line);
    return;
  }
  slot = {failed ? SampleState::kFailed : SampleState::kOk, static_cast<std::int32_t>(folder), ref};
  if (on_new) on_new(cell, head);
}

std::string RunState::line_text(const Slot& slot) const {
  const auto& path = readers_[at(slot.folder)].files()[at(slot.line.file)];
  return files_.read_range(path, slot.line.offset, slot.line.bytes);
}

void RunState::compare(int cell, const RecordHead& head, const Slot& first, std::string_view second) {
  SampleRecord a, b;
  if (read_record(line_text(first), a) != LineProblem::kNone || read_record(second, b) != LineProblem::kNone)
    return;
  if (a.prediction == b.prediction && (a.score == b.score || (a.score != a.score && b.score != b.score)))
    return;
  constexpr std::size_t kKept = 1000;
  if (conflicts_.size() < kKept) {
    conflicts_.push_back(fmt::format("cell {:016x} sample {}: score {} and {}{}", grid_.cells[at(cell)].key,
                                     head.sample, a.score, b.score,
                                     a.prediction == b.prediction ? "" : ", different outputs"));
  }
}

RunState::Counts RunState::counts(int cell) const {
  Counts counts;
  counts.total = static_cast<std::int64_t>(slots_[at(cell)].size());
  const bool all_failed = cell_failed(cell);
  for (const auto& slot : slots_[at(cell)]) {
    if (slot.state == SampleState::kOk)
      ++counts.ok;
    else if (slot.state == SampleState::kFailed || all_failed)
      ++counts.failed;
  }
  return counts;
}

RunState::Counts RunState::counts() const {
  Counts total;
  for (std::size_t i = 0; i < slots_.size(); ++i) total += counts(static_cast<int>(i));
  return total;
}

void RunState::read_cell(int cell, const std::function<void(int, const SampleRecord&)>& visit) const {
  SampleRecord whole;
  const bool all_failed =
      cell_failed(cell) && read_record(line_text(whole_[at(cell)]), whole) == LineProblem::kNone;
  const auto& slots = slots_[at(cell)];
  for (std::size_t i = 0; i < slots.size(); ++i) {
    SampleRecord record;
    if (slots[i].state != SampleState::kPending) {
      if (read_record(line_text(slots[i]), record) != LineProblem::kNone) continue;
    } else if (all_failed) {
      record = whole;
      record.sample = static_cast<std::int32_t>(i);
    } else {
      continue;
    }
    visit(static_cast<int>(i), record);
  }
}

std::string RunState::reason(int cell) const {
  const Slot* slot = cell_failed(cell) ? &whole_[at(cell)] : nullptr;
  if (slot == nullptr) {
    for (const auto& candidate : slots_[at(cell)]) {
      if (candidate.state == SampleState::kFailed) {
        slot = &candidate;
        break;
      }
    }
  }
  SampleRecord record;
  if (slot == nullptr || read_record(line_text(*slot), record) != LineProblem::kNone) return {};
  return record.answer_or_error;
}

std::vector<JournalIssue> RunState::issues() const {
  std::vector<JournalIssue> all;
  for (const auto& reader : readers_) {
    all.insert(all.end(), reader.issues().begin(), reader.issues().end());
    const auto torn = reader.torn_lines();
    all.insert(all.end(), torn.begin(), torn.end());
  }
  return all;
}

std::uint64_t RunState::issue_count() const {
  std::uint64_t count = 0;
  for (const auto& reader : readers_) count += reader.issue_count() + reader.torn_lines().size();
  return count;
}

}  // namespace lacuna
