#include "runner/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include "core/log.h"
#include "core/text.h"

namespace lacuna {

Progress::Progress(std::int64_t total, std::int64_t done, std::int64_t failed)
    : total_(total),
      ok_(done),
      failed_(failed),
      before_(done + failed),
      terminal_(::isatty(STDERR_FILENO) == 1) {}

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

void Progress::tick(int busy_teams, const std::string& note) {
  const auto now = Clock::now();
  const auto every = terminal_ ? std::chrono::milliseconds(500) : std::chrono::milliseconds(60'000);
  if (now - shown_ < every) return;
  shown_ = now;
  const std::string text = line(busy_teams) + note;
  if (!terminal_) {
    log::info("{}", text);
    return;
  }
  const std::string out = "\r\x1b[K" + text;
  open_line_ = ::write(STDERR_FILENO, out.data(), out.size()) > 0;
}

void Progress::finish() {
  if (open_line_ && ::write(STDERR_FILENO, "\n", 1) == 1) open_line_ = false;
}

}  // namespace lacuna
