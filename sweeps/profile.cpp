#include "sweeps/profile.h"

#include <algorithm>
#include <cmath>

#include "attention/strategy.h"
#include "core/error.h"
#include "core/text.h"
#include "sweeps/document.h"
#include "sweeps/reader.h"

namespace lacuna {

namespace {

struct Field {
  const char* name;
  double HardwareProfile::*value;
  const char* part;  ///< Of `lacuna bench`: what measures it.
  bool required;
  bool zero_allowed;  ///< Overheads may vanish, rates may not.
  const char* help;
};

constexpr Field kFields[] = {
    {"linear_flops_per_s", &HardwareProfile::linear_flops_per_s, "prefill", true, false,
     "matrix products of the linear layers, prefill"},
    {"attention_flops_per_s", &HardwareProfile::attention_flops_per_s, "attention", true, false,
     "dense prefill attention"},
    {"bytes_per_s", &HardwareProfile::bytes_per_s, "decode", true, false, "weights read by decode steps"},
    {"kv_bytes_per_s", &HardwareProfile::kv_bytes_per_s, "attention", false, false,
     "keys and values read by decode steps"},
    {"step_overhead_s", &HardwareProfile::step_overhead_s, "decode", false, true, "per decode step"},
    {"layer_overhead_s", &HardwareProfile::layer_overhead_s, "decode", false, true,
     "per layer and decode step"},
    {"sequence_overhead_s", &HardwareProfile::sequence_overhead_s, "decode", false, true,
     "per sequence and decode step"},
    {"load_bytes_per_s", &HardwareProfile::load_bytes_per_s, "prefill", false, false,
     "weights from disk or its cache"},
    {"link_bytes_per_s", &HardwareProfile::link_bytes_per_s, "", false, true,
     "between ranks of a team, per direction; 0: free"},
};

struct MapField {
  const char* name;
  std::map<std::string, double, std::less<>> HardwareProfile::*value;
  const char* help;
};

constexpr MapField kMaps[] = {
    {"sparse_attention_flops_per_s", &HardwareProfile::sparse_attention_flops_per_s,
     "prefill attention over a method's lists, visited cells"},
    {"index_flops_per_s", &HardwareProfile::index_flops_per_s, "choosing, in FLOPs of the cost model"},
};

void check_method(const std::string& name, const std::string& where) {
  std::vector<std::string> names;
  for (const MethodInfo& info : methods()) names.push_back(info.name);
  if (std::ranges::find(names, name) == names.end())
    throw_usage("{}: {}", where, unknown_name_message("method", name, names));
}

/// Six digits, with a dot before an exponent: YAML 1.1 takes "1e-09" for a text.
std::string number_text(double value) {
  std::string text = fmt::format("{:.6g}", value);
  const auto exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
  return text;
}

/// A finite number above 0, or 0 where that means something.
double number_at(const Reader& reader, const char* key, bool zero_allowed) {
  const Json& value = reader.at(key);
  if (!value.is_number()) reader.fail(key, "{} is not a number", value.dump());
  const double number = value.get<double>();
  if (!std::isfinite(number) || number < 0 || (number == 0 && !zero_allowed))
    reader.fail(key, "{} must be {}", number, zero_allowed ? "0 or more" : "positive");
  return number;
}

HardwareProfile read(const Document& document, const std::string& file, ProfileCheck check) {
  LACUNA_REQUIRE(document.root().is_object(), "{}: expected a profile as name: value lines", file);
  const Reader reader(document, "", document.root());
  std::vector<std::string> valid{"name", "device", "measured", "memory_bytes"};
  for (const Field& field : kFields) valid.emplace_back(field.name);
  for (const MapField& field : kMaps) valid.emplace_back(field.name);
  for (const auto& [key, ignored] : document.root().items()) {
    if (std::ranges::find(valid, key) == valid.end())
      throw_usage("{}: {}", reader.where(key), unknown_name_message("profile field", key, valid));
  }
  HardwareProfile profile;
  profile.name = reader.text("name", file);
  profile.measured = reader.text("measured", "");
  if (reader.has("device")) profile.device = reader.choice("device", "cpu", {"cpu", "cuda"});
  profile.memory_bytes = reader.integer("memory_bytes", 1, INT64_MAX).value_or(0);
  for (const Field& field : kFields) {
    if (reader.has(field.name)) {
      profile.*field.value = number_at(reader, field.name, field.zero_allowed);
    } else if (field.required && check == ProfileCheck::kComplete) {
      throw_usage("{}: the field {} is missing; `lacuna bench {} --profile {}` measures it", file, field.name,
                  field.part, file);
    }
  }
  for (const MapField& field : kMaps) {
    if (!reader.has(field.name)) continue;
    const Reader by_method(document, field.name, reader.at(field.name));
    for (const auto& [method, ignored] : by_method.value().items()) {
      check_method(method, by_method.where(method));
      (profile.*field.value)[method] = number_at(by_method, method.c_str(), false);
    }
  }
  return profile;
}

}  // namespace

HardwareProfile parse_profile(std::string_view yaml, const std::string& file, ProfileCheck check) {
  return read(Document::parse(yaml, file), file, check);
}

HardwareProfile load_profile(const std::string& path, ProfileCheck check) {
  return read(Document::load(path), path, check);
}

std::string profile_text(const HardwareProfile& p) {
  std::string text =
      "# How fast one device is, measured by `lacuna bench`; for `lacuna plan --profile` and `lacuna run "
      "--profile`.\n";
  const auto line = [&](std::string_view name, const std::string& value, std::string_view help) {
    text += fmt::format("{:<46}", fmt::format("{}: {}", name, value));
    text += fmt::format("  # {}\n", help);
  };
  text += fmt::format("name: {}\n", Json(p.name).dump());
  if (!p.device.empty()) text += fmt::format("device: {}\n", p.device);
  if (!p.measured.empty()) text += fmt::format("measured: {}\n", Json(p.measured).dump());
  if (p.memory_bytes > 0) text += fmt::format("memory_bytes: {}\n", p.memory_bytes);
  for (const Field& field : kFields) {
    const double value = p.*field.value;
    if (value > 0) line(field.name, number_text(value), field.help);
  }
  for (const MapField& field : kMaps) {
    if ((p.*field.value).empty()) continue;
    text += fmt::format("{}:  # {}\n", field.name, field.help);
    for (const auto& [method, value] : p.*field.value)
      text += fmt::format("  {}: {}\n", method, number_text(value));
  }
  return text;
}

}  // namespace lacuna
