// Logging to standard error, one line at a time, with a rank prefix when there is more than one rank.
// Standard output belongs to results.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace lacuna::log {

enum class Level { kDebug, kInfo, kWarning, kError };

/// Called once, early in main. Without it, lines carry no rank and the level is kInfo.
/// LACUNA_LOG=debug|info|warning|error overrides the level.
void configure(int rank, int ranks, Level level = Level::kInfo);

/// Writes one line with a single write(2), so that lines of several ranks never mix.
void write(Level level, std::string_view message);
bool enabled(Level level);

template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kDebug)) write(Level::kDebug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kInfo)) write(Level::kInfo, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::kWarning)) write(Level::kWarning, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::kError, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace lacuna::log
