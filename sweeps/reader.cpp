#include "sweeps/reader.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "core/text.h"

namespace lacuna {

namespace {

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

}  // namespace

Reader::Reader(const Document& document, std::string path, const Json& value)
    : document_(&document), path_(std::move(path)), value_(&value) {
  LACUNA_REQUIRE(value.is_object(), "{}: {}: expected settings as name: value, found {}",
                 document.where(path_), path_.empty() ? "the sweep" : path_, shown(value));
}

void Reader::allow(std::initializer_list<const char*> names) const {
  const std::vector<std::string> valid(names.begin(), names.end());
  for (const auto& [key, ignored] : value_->items()) {
    if (std::ranges::find(valid, key) == valid.end()) {
      throw_usage("{}: {}", where(key), unknown_name_message("setting", key, valid));
    }
  }
}

bool Reader::has(const char* key) const {
  const auto it = value_->find(key);
  return it != value_->end() && !it->is_null();
}

std::string Reader::text(const char* key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  const Json& value = at(key);
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number()) return value.dump();  // name: 7
  fail(key, "{} is not a text", shown(value));
}

std::string Reader::required_text(const char* key) const {
  const std::string value = text(key, "");
  if (value.empty()) throw_usage("{}: '{}' is missing", document_->where(path_), key);
  return value;
}

std::string Reader::choice(const char* key, const std::string& fallback,
                           std::initializer_list<const char*> choices) const {
  const std::string value = text(key, fallback);
  const std::vector<std::string> valid(choices.begin(), choices.end());
  if (std::ranges::find(valid, value) == valid.end())
    throw_usage("{}: {}", where(key), unknown_name_message(key, value, valid));
  return value;
}

std::int64_t Reader::to_integer(const char* key, const Json& value, std::int64_t min,
                                std::int64_t max) const {
  std::int64_t number = 0;
  if (value.is_number_integer() && !(value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX)) {
    number = value.get<std::int64_t>();
  } else if (value.is_number_float() && value.get<double>() == std::floor(value.get<double>()) &&
             std::abs(value.get<double>()) < 0x1p53) {
    number = static_cast<std::int64_t>(value.get<double>());  // 1e3
  } else if (value.is_string()) {
    number = parse_count(value.get<std::string>(), where(key) + ": " + key);
  } else {
    fail(key, "{} is not an integer", shown(value));
  }
  if (number < min || number > max) fail(key, "{} is out of range, expected {} to {}", number, min, max);
  return number;
}

std::optional<std::int64_t> Reader::integer(const char* key, std::int64_t min, std::int64_t max) const {
  if (!has(key)) return std::nullopt;
  return to_integer(key, at(key), min, max);
}

std::vector<Json> Reader::items(const char* key) const {
  if (!has(key)) return {};
  const Json& value = at(key);
  if (!value.is_array()) return {value};
  if (value.empty()) fail(key, "the list is empty");
  return {value.begin(), value.end()};
}

std::vector<std::int64_t> Reader::integers(const char* key, std::int64_t min, std::int64_t max) const {
  std::vector<std::int64_t> list;
  for (const auto& item : items(key)) list.push_back(to_integer(key, item, min, max));
  return list;
}

std::vector<double> Reader::numbers(const char* key, double min, double max) const {
  std::vector<double> list;
  for (const auto& item : items(key)) {
    if (!item.is_number()) fail(key, "{} is not a number", shown(item));
    const double number = item.get<double>();
    if (number < min || number > max) fail(key, "{} is out of range, expected {} to {}", number, min, max);
    list.push_back(number);
  }
  return list;
}

std::vector<std::string> Reader::texts(const char* key) const {
  std::vector<std::string> list;
  for (const auto& item : items(key)) {
    if (!item.is_string()) fail(key, "{} is not a text", shown(item));
    list.push_back(item.get<std::string>());
  }
  return list;
}

std::string resolve_path(const Document& document, const std::string& path_in_document,
                         const std::string& text) {
  const std::string where = document.where(path_in_document);
  std::string path;
  for (std::size_t i = 0; i < text.size();) {
    if (!text.substr(i).starts_with("${")) {
      path += text[i++];
      continue;
    }
    const auto end = text.find('}', i);
    LACUNA_REQUIRE(end != std::string::npos, "{}: '{}': ${{ without }}", where, text);
    std::string name = text.substr(i + 2, end - i - 2), fallback;
    const auto dash = name.find(":-");
    const bool has_fallback = dash != std::string::npos;
    if (has_fallback) {
      fallback = name.substr(dash + 2);
      name.resize(dash);
    }
    const char* value = std::getenv(name.c_str());
    LACUNA_REQUIRE(value != nullptr || has_fallback, "{}: '{}': the environment variable {} is not set",
                   where, text, name);
    path += value != nullptr ? std::string(value) : fallback;
    i = end + 1;
  }
  if (path.starts_with("~/")) {
    if (const char* home = std::getenv("HOME")) path = std::string(home) + path.substr(1);
  }
  std::filesystem::path result(path);
  if (result.is_relative()) {
    const std::string file = document.file_of(path_in_document);
    if (!file.empty()) result = std::filesystem::path(file).parent_path() / result;
  }
  return result.lexically_normal().string();
}

}  // namespace lacuna
