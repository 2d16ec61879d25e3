// JSON through nlohmann-json, with errors that say where. Headers that only pass JSON along should include
// <nlohmann/json_fwd.hpp> instead: this one is slow to compile.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lacuna {

/// Keys are kept sorted, so dump() of equal values is equal text: it can be hashed.
using Json = nlohmann::json;

/// Parses text. `where` (a file name) starts the error, which gives line and column (kUsage). Depth is limited to 128.
Json parse_json(std::string_view text, const std::string& where);
Json read_json_file(const std::string& path);

/// object[key] as T. Throws kUsage "WHERE: field 'key' is missing / is a string, expected a number".
template <class T>
T json_get(const Json& object, const char* key, const std::string& where);
/// The same with a value for an absent (or null) key.
template <class T>
T json_get_or(const Json& object, const char* key, T fallback, const std::string& where);

namespace detail {
[[noreturn]] void throw_json_missing(const char* key, const std::string& where);
[[noreturn]] void throw_json_type(const Json& value, const char* key, const char* expected, const std::string& where);
}  // namespace detail

// --- implementation ---

namespace detail {
template <class T>
T json_convert(const Json& value, const char* key, const std::string& where) {
  if constexpr (std::is_same_v<T, bool>) {
    if (!value.is_boolean()) throw_json_type(value, key, "true or false", where);
  } else if constexpr (std::is_integral_v<T>) {
    if (!value.is_number_integer()) throw_json_type(value, key, "an integer", where);
    if (value.is_number_unsigned() ? !std::in_range<T>(value.get<std::uint64_t>())
                                   : !std::in_range<T>(value.get<std::int64_t>())) {
      throw_json_type(value, key, "an integer that fits", where);
    }
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!value.is_number()) throw_json_type(value, key, "a number", where);
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!value.is_string()) throw_json_type(value, key, "a string", where);
  }
  try {
    return value.get<T>();
  } catch (const Json::exception&) {
    throw_json_type(value, key, "another type", where);
  }
}
}  // namespace detail

template <class T>
T json_get(const Json& object, const char* key, const std::string& where) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (it == object.end()) detail::throw_json_missing(key, where);
  return detail::json_convert<T>(*it, key, where);
}

template <class T>
T json_get_or(const Json& object, const char* key, T fallback, const std::string& where) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (it == object.end() || it->is_null()) return fallback;
  return detail::json_convert<T>(*it, key, where);
}

}  // namespace lacuna
