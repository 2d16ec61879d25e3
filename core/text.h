// Small text helpers: nearest names for error messages, splitting, readable numbers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

/// Edit distance with adjacent transpositions (optimal string alignment).
int edit_distance(std::string_view a, std::string_view b);

/// The candidate nearest to `name`, or "" when none is near enough to be a misspelling.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

/// "unknown method 'qest'; did you mean 'quest'? Valid: dense, quest, ..." (`kind` is the noun).
std::string unknown_name_message(std::string_view kind, std::string_view name, std::span<const std::string> candidates);

std::vector<std::string> split(std::string_view text, char separator);
std::string_view trim(std::string_view text);

/// Offset of the first byte that is not part of well-formed UTF-8 (no overlong forms, no surrogates), or npos.
std::size_t find_invalid_utf8(std::string_view text);

/// 1536 -> "1.5 KiB"
std::string format_bytes(double bytes);
/// 4000 s -> "1 h 6 min"; 12.34 s -> "12.3 s"
std::string format_seconds(double seconds);
/// 1.2e12 -> "1.2 T"
std::string format_count(double value);
/// "4096", "4K" (1024s), "128000" -> tokens or bytes; throws kUsage naming `what`.
std::int64_t parse_count(std::string_view text, std::string_view what);

}  // namespace lacuna
