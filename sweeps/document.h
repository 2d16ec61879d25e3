// A YAML text as JSON that remembers where every value was written, so that an error can point at line and
// column.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>

namespace lacuna {

/// Where a value was written.
struct Mark {
  std::string file;  ///< As the user named it, or "command line".
  int line = 0;      ///< From 1; 0 on the command line.
  int column = 0;    ///< From 1.
};

/// Values and marks. Paths are dotted: "models.0.path"; the root is "".
class Document {
 public:
  /// Parses YAML. Plain scalars become null, true/false, integers, numbers or strings as in YAML's core
  /// schema; quoted ones are strings. Throws kUsage "FILE:LINE:COLUMN: ..." for syntax errors, duplicate or
  /// non-text keys, and documents with more than a million values (aliases included).
  static Document parse(std::string_view text, const std::string& file);
  /// Reads a file and everything in its `include:` (a path or a list, relative to the file). What is included
  /// comes first; maps merge key by key, anything else is replaced. The key `include` itself is removed.
  static Document load(const std::string& path);

  /// Applies "models.0.path=/x". A list entry is named by number or by its `name`; commas make lists; a value
  /// that starts with [ or { is YAML. Throws kUsage naming the override.
  void apply_override(const std::string& text);

  const nlohmann::json& root() const { return root_; }
  /// "sweep.yaml:12:5", of the path or the nearest known one around it.
  std::string where(std::string_view path) const;
  /// File in which the value was written; empty for the command line.
  std::string file_of(std::string_view path) const;

 private:
  const Mark* find_mark(std::string_view path) const;
  void merge(Document&& over);
  void erase_marks(const std::string& path);
  static Document load(const std::string& path, int depth);

  nlohmann::json root_ = nlohmann::json::object();
  std::map<std::string, Mark, std::less<>> marks_;
};

/// "models" + "0" -> "models.0"; the root's children have no dot.
std::string join_path(std::string_view path, std::string_view key);

}  // namespace lacuna
