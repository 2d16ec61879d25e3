// Parameters declared once: strategies and tasks list theirs as ParamSpecs, and the YAML parser, the command line,
// --help, the generated docs and every error message come from that one declaration.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

namespace lacuna {

using ParamValue = std::variant<bool, std::int64_t, double, std::string>;

/// One declared parameter. The type of `default_value` is the type of the parameter.
struct ParamSpec {
  std::string name;
  ParamValue default_value;
  std::string help;                  ///< One sentence, starting with a capital, no full stop at the end.
  std::string unit = {};             ///< "tokens", "blocks", "probability", or empty.
  std::optional<double> min = {};    ///< Inclusive, numbers only.
  std::optional<double> max = {};    ///< Inclusive, numbers only.
  std::vector<std::string> choices = {};  ///< For strings (and integers written as text): the allowed values.
  bool required = false;             ///< No default is used; leaving it out is an error.
};

/// Values for a list of ParamSpecs: complete and checked.
class Params {
 public:
  Params() = default;
  /// Checks `given` (a JSON object; null counts as empty) against `specs` and fills in defaults.
  /// Throws kUsage "WHERE: unknown parameter 'x'; did you mean 'y'?" or what was wrong with a value.
  static Params parse(std::span<const ParamSpec> specs, const nlohmann::json& given, const std::string& where);

  /// Typed access; asking for an undeclared name or another type is an internal error.
  bool get_bool(const std::string& name) const;
  std::int64_t get_int(const std::string& name) const;
  double get_double(const std::string& name) const;
  const std::string& get_string(const std::string& name) const;

  /// Every value, defaults included, as a JSON object with sorted keys: the form that is hashed and stored.
  nlohmann::json to_json() const;
  bool operator==(const Params&) const = default;

 private:
  const ParamValue& at(const std::string& name) const;
  std::map<std::string, ParamValue> values_;
};

/// "512 tokens, 1 to 131072" for docs and --help.
std::string describe(const ParamSpec& spec);
/// A Markdown table of parameters: name, default, range, unit, meaning.
std::string markdown_table(std::span<const ParamSpec> specs);
/// "--param name=value" text to JSON: numbers and true/false become such, all else a string.
nlohmann::json parse_scalar(const std::string& text);

}  // namespace lacuna
