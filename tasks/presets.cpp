#include "tasks/presets.h"

#include <algorithm>

#include "core/error.h"

namespace lacuna {

ParamSpec style_param() {
  return {
      .name = "style",
      .default_value = std::string("explain"),
      .help = "Asks for a short explanation and then the answer (explain) or for the answer alone (direct)",
      .choices = {"explain", "direct"}};
}

std::vector<ParamSpec> generator_params(std::span<const PresetCount> counts) {
  std::vector<ParamSpec> specs = {style_param(),
                                  {.name = "preset",
                                   .default_value = std::string("paper"),
                                   .help = "Values of the parameters left at 0: the paper's, or small ones "
                                           "for contexts of 256 to 8192 tokens",
                                   .choices = {"paper", "mini"}}};
  for (const auto& count : counts) {
    specs.push_back({.name = count.name,
                     .default_value = std::int64_t{0},
                     .help = fmt::format("{}; 0 takes the preset's: paper {}, mini {}{}", count.help,
                                         count.paper, count.mini, count.mini_note),
                     .min = 0,
                     .max = static_cast<double>(count.max)});
  }
  return specs;
}

Style style_of(const Params& params) {
  return params.get_string("style") == "direct" ? Style::kDirect : Style::kExplain;
}

bool is_mini(const Params& params) { return params.get_string("preset") == "mini"; }

std::int64_t count_of(const Params& params, std::span<const PresetCount> counts, const std::string& name,
                      bool* given) {
  const std::int64_t value = params.get_int(name);
  if (given != nullptr) *given = value != 0;
  if (value != 0) return value;
  const auto it = std::ranges::find_if(counts, [&](const PresetCount& c) { return c.name == name; });
  LACUNA_CHECK(it != counts.end(), "count '{}' was never declared", name);
  return is_mini(params) ? it->mini : it->paper;
}

}  // namespace lacuna
