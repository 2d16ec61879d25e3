#include "core/params.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

std::string to_text(const ParamValue& value) {
  return std::visit(
      [](const auto& v) {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, bool>)
          return std::string(v ? "true" : "false");
        else
          return fmt::format("{}", v);
      },
      value);
}

std::string expected(const ParamSpec& spec) {
  if (!spec.choices.empty()) return fmt::format("one of {}", fmt::join(spec.choices, ", "));
  if (std::holds_alternative<bool>(spec.default_value)) return "true or false";
  if (std::holds_alternative<std::string>(spec.default_value)) return "a text";
  std::string text = std::holds_alternative<std::int64_t>(spec.default_value) ? "an integer" : "a number";
  if (spec.min && spec.max) return text + fmt::format(" from {} to {}", *spec.min, *spec.max);
  if (spec.min) return text + fmt::format(" of at least {}", *spec.min);
  if (spec.max) return text + fmt::format(" of at most {}", *spec.max);
  return text;
}

std::optional<ParamValue> convert(const ParamSpec& spec, const Json& value) {
  if (std::holds_alternative<bool>(spec.default_value)) {
    if (value.is_boolean()) return value.get<bool>();
  } else if (std::holds_alternative<std::int64_t>(spec.default_value)) {
    if (value.is_number_unsigned() && value.get<std::uint64_t>() <= INT64_MAX)
      return value.get<std::int64_t>();
    if (value.is_number_integer() && !value.is_number_unsigned()) return value.get<std::int64_t>();
    // 1e3 and 512.0 are whole numbers too
    if (value.is_number_float()) {
      const double number = value.get<double>();
      if (number == std::floor(number) && std::abs(number) < 0x1p53) return static_cast<std::int64_t>(number);
    }
  } else if (std::holds_alternative<double>(spec.default_value)) {
    if (value.is_number() && std::isfinite(value.get<double>())) return value.get<double>();
  } else if (value.is_string()) {
    return value.get<std::string>();
  }
  return std::nullopt;
}

bool in_range(const ParamSpec& spec, const ParamValue& value) {
  if (!spec.choices.empty() && std::ranges::find(spec.choices, to_text(value)) == spec.choices.end())
    return false;
  double number = 0;
  if (const auto* i = std::get_if<std::int64_t>(&value))
    number = static_cast<double>(*i);
  else if (const auto* d = std::get_if<double>(&value))
    number = *d;
  else
    return true;
  return (!spec.min || number >= *spec.min) && (!spec.max || number <= *spec.max);
}

}  // namespace

Params Params::parse(std::span<const ParamSpec> specs, const Json& given, const std::string& where) {
  LACUNA_REQUIRE(given.is_object() || given.is_null(), "{}: expected parameters as name: value, found {}",
                 where, given.type_name());
  std::vector<std::string> names;
  for (const auto& spec : specs) names.push_back(spec.name);
  if (given.is_object()) {
    for (const auto& [key, value] : given.items()) {
      LACUNA_REQUIRE(std::ranges::find(names, key) != names.end(), "{}: {}", where,
                     unknown_name_message("parameter", key, names));
    }
  }
  Params params;
  for (const auto& spec : specs) {
    const auto it = given.is_object() ? given.find(spec.name) : given.end();
    if (it == given.end()) {
      LACUNA_REQUIRE(!spec.required, "{}: parameter '{}' is required: {}", where, spec.name, expected(spec));
      params.values_[spec.name] = spec.default_value;
      continue;
    }
    const auto value = convert(spec, *it);
    LACUNA_REQUIRE(value && in_range(spec, *value), "{}: {}: {} is not valid, expected {}", where, spec.name,
                   it->dump(), expected(spec));
    params.values_[spec.name] = *value;
  }
  return params;
}

const ParamValue& Params::at(const std::string& name) const {
  const auto it = values_.find(name);
  LACUNA_CHECK(it != values_.end(), "parameter '{}' was never declared", name);
  return it->second;
}

bool Params::get_bool(const std::string& name) const { return std::get<bool>(at(name)); }
std::int64_t Params::get_int(const std::string& name) const { return std::get<std::int64_t>(at(name)); }
double Params::get_double(const std::string& name) const { return std::get<double>(at(name)); }
const std::string& Params::get_string(const std::string& name) const {
  return std::get<std::string>(at(name));
}

Json Params::to_json() const {
  Json object = Json::object();
  for (const auto& [name, value] : values_)
    std::visit([&, key = name](const auto& v) { object[key] = v; }, value);
  return object;
}

std::string describe(const ParamSpec& spec) {
  std::string text = spec.required ? std::string("required") : to_text(spec.default_value);
  if (text.empty()) text = "(empty)";
  if (!spec.unit.empty()) text += " " + spec.unit;
  return text + ", " + expected(spec);
}

std::string markdown_table(std::span<const ParamSpec> specs) {
  std::string table = "| parameter | default | values | unit | meaning |\n|---|---|---|---|---|\n";
  for (const auto& spec : specs) {
    table += fmt::format("| `{}` | {} | {} | {} | {} |\n", spec.name,
                         spec.required ? std::string("required") : "`" + to_text(spec.default_value) + "`",
                         expected(spec), spec.unit.empty() ? "-" : spec.unit, spec.help);
  }
  return table;
}

Json parse_scalar(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  if (!text.empty() && text.find_first_not_of("0123456789+-.eE") == std::string::npos) {
    const Json number = Json::parse(text, nullptr, false);
    if (number.is_number()) return number;
  }
  return text;
}

}  // namespace lacuna
