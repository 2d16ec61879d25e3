// What each team is at, for `lacuna run --verbose`.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "sweeps/cells.h"

namespace lacuna {

class TeamBoard {
 public:
  /// `cells_of_group`: per group of the scheduler, the cells of its jobs. All three must outlive the board.
  TeamBoard(const Sweep& sweep, const Grid& grid,
            const std::vector<std::vector<std::int32_t>>& cells_of_group)
      : sweep_(sweep), grid_(grid), cells_of_group_(cells_of_group) {}

  void formed(int team, const std::vector<int>& ranks);
  void started(int team, int group, std::int32_t sample);
  void done(int team, std::int64_t samples);
  void dissolved(int team);

  /// One line per team at work, at most `most` and then how many more there are:
  /// "team 2 (ranks 4-7): 7B ruler_vt 16384 dense and 30 more, sample 12, for 3.1 s; 124 samples, 35.0/min"
  std::vector<std::string> lines(std::size_t most = 64) const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Team {
    std::vector<int> ranks;
    int group = -1;  ///< -1: between two jobs, or no team any more.
    std::int32_t sample = 0;
    std::int64_t samples = 0;
    Clock::time_point formed, started;
  };
  std::string line(std::size_t team) const;

  const Sweep& sweep_;
  const Grid& grid_;
  const std::vector<std::vector<std::int32_t>>& cells_of_group_;
  std::vector<Team> teams_;
};

}  // namespace lacuna
