#include "core/json.h"

#include "core/error.h"
#include "core/file.h"

namespace lacuna {

Json parse_json(std::string_view text, const std::string& where) {
  constexpr int kMaxDepth = 128;  // nlohmann-json recurses when it destroys values: bound it
  const Json::parser_callback_t limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    LACUNA_REQUIRE(depth <= kMaxDepth, "{}: JSON is nested deeper than {} levels", where, kMaxDepth);
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), limit_depth);
  } catch (const Json::exception& e) {
    throw_usage("{}: not valid JSON: {}", where, e.what());
  }
}

Json read_json_file(const std::string& path) { return parse_json(read_file(path), path); }

namespace detail {

void throw_json_missing(const char* key, const std::string& where) {
  throw_usage("{}: field '{}' is missing", where, key);
}

void throw_json_type(const Json& value, const char* key, const char* expected, const std::string& where) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  throw_usage("{}: field '{}' is {} ({}), expected {}", where, key, text, value.type_name(), expected);
}

}  // namespace detail
}  // namespace lacuna
