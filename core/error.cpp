#include "core/error.h"

#include <string_view>

namespace lacuna {

Error::Error(ErrorKind kind, std::string message, SourceLocation where)
    : std::runtime_error(std::move(message)), kind_(kind), where_(where) {}

std::string Error::place() const {
  std::string_view file = where_.file;
  if (const auto slash = file.find_last_of('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  return fmt::format("{}:{}", file, where_.line);
}

int exit_code(ErrorKind kind) { return kind == ErrorKind::kUsage ? 2 : 1; }

}  // namespace lacuna
