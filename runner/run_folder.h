// The folder of a run, and what is known about every sample of it.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "runner/journal.h"
#include "sweeps/cells.h"
#include "sweeps/sweep.h"

namespace lacuna {

/// Paths inside OUT.
struct RunPaths {
  explicit RunPaths(std::string folder) : out(std::move(folder)) {}
  std::string out;
  std::string sweep() const { return out + "/sweep.json"; }
  std::string journal() const { return out + "/journal"; }
  std::string launches() const { return out + "/launches"; }
  std::string retries() const { return out + "/retries"; }
  std::string results() const { return out + "/results.h5"; }
  std::string complete() const { return out + "/COMPLETE"; }
  /// Of one shard: its share of the jobs is done.
  std::string complete(int shard, int shards) const {
    return fmt::format("{}/COMPLETE.{}-of-{}", out, shard, shards);
  }
};

/// Differences that a resumed run would have to swallow: settings that changed, cells that are gone, fewer
/// samples. Empty when `now` only adds to `before`.
std::vector<std::string> incompatible_changes(const Sweep& before, const Sweep& now);

/// The sweep that OUT was run with. Throws kUsage when OUT is no run folder.
Sweep load_run_sweep(const RunPaths& paths);

enum class SampleState : std::uint8_t { kPending, kOk, kFailed };

/// What the journals say, for every cell and sample of a grid. Reads only.
class RunState {
 public:
  /// `folders`: run folders whose journals count (one, or several to be merged).
  RunState(const FileSystem& files, const Grid& grid, std::vector<std::string> folders);

  /// Takes in what was written since the last call. Calls `on_new` for every sample that became ok or failed.
  void poll(const std::function<void(int cell, const RecordHead&)>& on_new = {});

  SampleState state(int cell, int sample) const { return slots_[at(cell)][at(sample)].state; }
  bool cell_failed(int cell) const { return whole_[at(cell)].state == SampleState::kFailed; }
  struct Counts {
    std::int64_t total = 0, ok = 0, failed = 0;
    std::int64_t pending() const { return total - ok - failed; }
    Counts& operator+=(const Counts& other);
  };
  Counts counts(int cell) const;
  Counts counts() const;
  double last_finished() const { return last_finished_; }

  /// Calls visit(sample, record) for every finished sample of a cell in order: each ok one, and each failure
  /// that still counts. A failed cell's samples come as failures with its reason.
  void read_cell(int cell, const std::function<void(int sample, const SampleRecord&)>& visit) const;
  /// Why the cell or its first failed sample failed, or empty.
  std::string reason(int cell) const;

  std::int64_t duplicates() const { return duplicates_; }
  /// Two different results for the same sample ("cell sample: what differs"), and records of cells that the
  /// sweep does not have.
  const std::vector<std::string>& conflicts() const { return conflicts_; }
  std::int64_t foreign() const { return foreign_; }
  /// Bad and torn lines of all journals.
  std::vector<JournalIssue> issues() const;
  std::uint64_t issue_count() const;
  /// Number of retries asked for so far; a failure of an earlier attempt is void.
  int attempt() const { return attempt_; }

 private:
  struct Slot {
    SampleState state = SampleState::kPending;
    std::int32_t folder = 0;
    LineRef line;
  };
  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  void take(std::size_t folder, const RecordHead& head, std::string_view line, const LineRef& ref,
            const std::function<void(int, const RecordHead&)>& on_new);
  std::string line_text(const Slot& slot) const;
  void compare(int cell, const RecordHead& head, const Slot& first, std::string_view second);

  const FileSystem& files_;
  const Grid& grid_;
  std::vector<std::string> folders_;
  std::vector<JournalReader> readers_;
  std::unordered_map<std::uint64_t, int> cell_of_key_;
  std::vector<std::vector<Slot>> slots_;
  std::vector<Slot> whole_;  // per cell: a record that fails all of it
  int attempt_ = 0;
  double last_finished_ = 0;
  std::int64_t duplicates_ = 0, foreign_ = 0;
  std::vector<std::string> conflicts_;
};

}  // namespace lacuna
