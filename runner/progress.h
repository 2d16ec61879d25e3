// How far a run is: one live line on a terminal, a plain line every minute elsewhere. Writes to standard
// error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace lacuna {

class Progress {
 public:
  /// `total` samples in all, of which `done` and `failed` are there already. `seconds` between two lines
  /// where there is no terminal.
  Progress(std::int64_t total, std::int64_t done, std::int64_t failed, double seconds = 60);
  ~Progress();

  void add(std::int64_t ok, std::int64_t failed);
  /// It is time to print.
  bool due() const;
  /// Prints now; `details` are lines below the first (a block that is drawn anew each time on a terminal).
  void show(int busy_teams, const std::vector<std::string>& details = {});
  /// "120/400 samples  35.0/min  ETA 8 min  2 failed  4 teams"
  std::string line(int busy_teams) const;
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::int64_t total_, ok_, failed_, before_;
  Clock::time_point begin_ = Clock::now(), shown_ = begin_;
  std::chrono::duration<double> every_;
  bool terminal_ = false, open_line_ = false;
  std::size_t lines_above_ = 0;  // of the open block, above the cursor's
};

}  // namespace lacuna
