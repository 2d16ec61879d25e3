#include "core/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace lacuna::log {

namespace {

// The one piece of process-wide state: where a line comes from. Set once in main, read everywhere.
struct Settings {
  std::atomic<int> rank{0}, ranks{1};
  std::atomic<Level> level{Level::kInfo};
};

Settings& settings() {
  static Settings instance;
  return instance;
}

constexpr std::string_view kNames[] = {"debug: ", "", "warning: ", "error: "};

}  // namespace

void configure(int rank, int ranks, Level level) {
  if (const char* text = std::getenv("LACUNA_LOG")) {
    const std::string_view wanted = text;
    if (wanted == "debug") level = Level::kDebug;
    if (wanted == "info") level = Level::kInfo;
    if (wanted == "warning") level = Level::kWarning;
    if (wanted == "error") level = Level::kError;
  }
  settings().rank = rank;
  settings().ranks = ranks;
  settings().level = level;
}

bool enabled(Level level) { return level >= settings().level.load(std::memory_order_relaxed); }

void write(Level level, std::string_view message) {
  std::string line;
  if (settings().ranks > 1) line = fmt::format("[rank {}] ", settings().rank.load());
  line += kNames[static_cast<int>(level)];
  line += message;
  line += '\n';
  // Nobody can be told when standard error is gone.
  if (::write(STDERR_FILENO, line.data(), line.size()) < 0) return;
}

}  // namespace lacuna::log
