#include "runner/team_board.h"

#include <fmt/format.h>

#include "core/text.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

/// "rank 3", "ranks 4-7", "ranks 0 2 5"
std::string rank_text(const std::vector<int>& ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks[0]);
  const bool in_a_row = ranks.back() - ranks.front() + 1 == static_cast<int>(ranks.size());
  return in_a_row ? fmt::format("ranks {}-{}", ranks.front(), ranks.back())
                  : fmt::format("ranks {}", fmt::join(ranks, " "));
}

}  // namespace

void TeamBoard::formed(int team, const std::vector<int>& ranks) {
  if (teams_.size() <= at(team)) teams_.resize(at(team) + 1);
  teams_[at(team)] = {.ranks = ranks, .formed = Clock::now(), .started = Clock::now()};
}

void TeamBoard::started(int team, int group, std::int32_t sample) {
  Team& t = teams_[at(team)];
  t.group = group;
  t.sample = sample;
  t.started = Clock::now();
}

void TeamBoard::done(int team, std::int64_t samples) { teams_[at(team)].samples += samples; }

void TeamBoard::dissolved(int team) { teams_[at(team)].group = -1; }

std::string TeamBoard::line(std::size_t team) const {
  const Team& t = teams_[team];
  const auto& cells = cells_of_group_[at(t.group)];
  const auto seconds = [](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  std::string text = fmt::format("team {} ({}): {}", team, rank_text(t.ranks),
                                 cell_name(sweep_, grid_, grid_.cells[at(cells.front())]));
  if (cells.size() > 1) text += fmt::format(" and {} more", cells.size() - 1);
  text +=
      fmt::format(", sample {}, for {}; {} samples", t.sample, format_seconds(seconds(t.started)), t.samples);
  const double minutes = seconds(t.formed) / 60;
  if (t.samples > 0 && minutes > 0)
    text += fmt::format(", {:.1f}/min", static_cast<double>(t.samples) / minutes);
  return text;
}

std::vector<std::string> TeamBoard::lines(std::size_t most) const {
  std::vector<std::string> lines;
  std::size_t left_out = 0;
  for (std::size_t team = 0; team < teams_.size(); ++team) {
    if (teams_[team].group < 0) continue;
    if (lines.size() < most)
      lines.push_back(line(team));
    else
      ++left_out;
  }
  if (left_out > 0) lines.push_back(fmt::format("and {} more teams", left_out));
  return lines;
}

}  // namespace lacuna
