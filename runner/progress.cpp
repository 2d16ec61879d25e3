#include "runner/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include "core/log.h"
#include "core/text.h"

namespace lacuna {

Progress::Progress(std::int64_t total, std::int64_t done, std::int64_t failed, double seconds)
    : total_(total),
      ok_(done),
      failed_(failed),
      before_(done + failed),
      terminal_(::isatty(STDERR_FILENO) == 1) {
  every_ = std::chrono::duration<double>(terminal_ ? 0.5 : seconds);
}

Progress::~Progress() { finish(); }

void Progress::add(std::int64_t ok, std::int64_t failed) {
  ok_ += ok;
  failed_ += failed;
}

std::string Progress::line(int busy_teams) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  const std::int64_t done = ok_ + failed_;
  const double rate = seconds > 0 ? static_cast<double>(done - before_) / seconds : 0;
  std::string text =
      fmt::format("{}/{} samples ({:.1f} %)", done, total_,
                  total_ > 0 ? 100.0 * static_cast<double>(done) / static_cast<double>(total_) : 100.0);
  if (rate > 0) {
    text += fmt::format("  {:.1f}/min  ETA {}", rate * 60,
                        format_seconds(static_cast<double>(total_ - done) / rate));
  }
  if (failed_ > 0) text += fmt::format("  {} failed", failed_);
  return text + fmt::format("  {} team{} busy", busy_teams, busy_teams == 1 ? "" : "s");
}

bool Progress::due() const { return Clock::now() - shown_ >= every_; }

void Progress::show(int busy_teams, const std::vector<std::string>& details) {
  shown_ = Clock::now();
  const std::string text = line(busy_teams);
  if (!terminal_) {
    log::info("{}", text);
    for (const auto& detail : details) log::info("  {}", detail);
    return;
  }
  // Back to the first line of the block, and everything below it away.
  std::string out = lines_above_ > 0 ? fmt::format("\r\x1b[{}A\x1b[J", lines_above_) : "\r\x1b[J";
  out += text;
  for (const auto& detail : details) out += "\n  " + detail;
  lines_above_ = details.size();
  open_line_ = ::write(STDERR_FILENO, out.data(), out.size()) > 0;
}

void Progress::finish() {
  if (open_line_ && ::write(STDERR_FILENO, "\n", 1) == 1) open_line_ = false;
}

}  // namespace lacuna
