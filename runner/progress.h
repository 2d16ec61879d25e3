// How far a run is: one live line on a terminal, a plain line every minute elsewhere. Writes to standard
// error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace lacuna {

class Progress {
 public:
  /// `total` samples in all, of which `done` and `failed` are there already.
  Progress(std::int64_t total, std::int64_t done, std::int64_t failed);
  ~Progress();

  void add(std::int64_t ok, std::int64_t failed);
  /// Prints when it is time to.
  void tick(int busy_teams, const std::string& note = {});
  /// "120/400 samples  35.0/min  ETA 8 min  2 failed  4 teams"
  std::string line(int busy_teams) const;
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  std::int64_t total_, ok_, failed_, before_;
  Clock::time_point begin_ = Clock::now(), shown_ = begin_;
  bool terminal_ = false, open_line_ = false;
};

}  // namespace lacuna
