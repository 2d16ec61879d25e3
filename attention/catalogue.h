// The registry as text: docs/strategies.md and `lacuna strategies`.
#pragma once

#include <string>

namespace lacuna {

/// The whole of docs/strategies.md.
std::string strategies_markdown();
/// A list for the terminal; one method in detail when `method` is not empty (kUsage when no slot has it).
std::string strategies_text(const std::string& method);

}  // namespace lacuna
