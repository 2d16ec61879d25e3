// Typed access to a Document's values, with errors that say file, line and column.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "sweeps/document.h"

namespace lacuna {

/// One map of a document.
class Reader {
 public:
  /// Throws kUsage when the value at `path` is not a map.
  Reader(const Document& document, std::string path, const Json& value);

  /// Throws kUsage at the first key that is none of `names`, with the nearest one.
  void allow(std::initializer_list<const char*> names) const;
  bool has(const char* key) const;
  const Json& value() const { return *value_; }
  const Json& at(const char* key) const { return value_->at(key); }
  const std::string& path() const { return path_; }
  std::string path_of(std::string_view key) const { return join_path(path_, key); }
  std::string where(std::string_view key) const { return document_->where(path_of(key)); }
  const Document& document() const { return *document_; }

  std::string text(const char* key, const std::string& fallback) const;
  /// A text that is required and not empty.
  std::string required_text(const char* key) const;
  std::string choice(const char* key, const std::string& fallback,
                     std::initializer_list<const char*> choices) const;
  /// An integer from `min` to `max`; "4K" counts in 1024s.
  std::optional<std::int64_t> integer(const char* key, std::int64_t min, std::int64_t max) const;
  /// One value or a list of them.
  std::vector<std::int64_t> integers(const char* key, std::int64_t min, std::int64_t max) const;
  std::vector<double> numbers(const char* key, double min, double max) const;
  std::vector<std::string> texts(const char* key) const;

  /// "WHERE: field 'key': message".
  template <class... Args>
  [[noreturn]] void fail(std::string_view key, fmt::format_string<Args...> format, Args&&... args) const {
    throw_usage("{}: {}: {}", where(key), key, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  std::int64_t to_integer(const char* key, const Json& value, std::int64_t min, std::int64_t max) const;
  std::vector<Json> items(const char* key) const;

  const Document* document_;
  std::string path_;
  const Json* value_;
};

/// `${NAME}` and `${NAME:-default}` replaced from the environment, a leading ~/ by $HOME; relative paths are
/// taken from the folder of the file that states them (the working directory for the command line). Throws
/// kUsage naming a variable that is not set.
std::string resolve_path(const Document& document, const std::string& path_in_document,
                         const std::string& text);

}  // namespace lacuna
