#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "slurm/options.h"
#include "sweeps/document.h"

namespace lacuna::slurm {
namespace {

std::string scalar_text(const nlohmann::json& value, const std::string& where) {
  if (value.is_string()) return value.get<std::string>();
  LACUNA_REQUIRE(value.is_number() || value.is_boolean(), "{}: expected a value, found {}", where,
                 value.type_name());
  return value.dump();
}

}  // namespace

void apply_site_file(SlurmOptions& options, const std::string& path) {
  const Document document = Document::load(path);
  LACUNA_REQUIRE(document.root().is_object(), "{}: expected settings as 'name: value'", path);
  std::vector<std::string> names;
  const auto settings = slurm_settings();
  for (const auto& setting : settings) names.push_back(setting.name);
  for (const auto& [name, value] : document.root().items()) {
    const std::string where = document.where(name);
    const auto setting = std::find_if(settings.begin(), settings.end(),
                                      [&wanted = name](const auto& s) { return s.name == wanted; });
    LACUNA_REQUIRE(setting != settings.end(), "{}: {}", where, unknown_name_message("setting", name, names));
    const auto apply = [&, &key = name](const nlohmann::json& item, const std::string& at) {
      setting->apply(options, scalar_text(item, at), fmt::format("{}: {}", at, key));
    };
    if (setting->list && value.is_array()) {
      for (std::size_t i = 0; i < value.size(); ++i)
        apply(value[i], document.where(join_path(name, std::to_string(i))));
    } else if (name == "env" && value.is_object()) {
      for (const auto& [variable, content] : value.items()) {
        apply(variable + "=" + scalar_text(content, document.where(join_path(name, variable))), where);
      }
    } else {
      apply(value, where);
    }
  }
}

std::string default_site_file() {
  if (const char* file = std::getenv("LACUNA_SLURM_SITE"); file != nullptr && *file != '\0') return file;
  if (const char* config = std::getenv("XDG_CONFIG_HOME"); config != nullptr && *config != '\0') {
    return std::string(config) + "/lacuna/slurm.yaml";
  }
  const char* home = std::getenv("HOME");
  return home == nullptr ? "" : std::string(home) + "/.config/lacuna/slurm.yaml";
}

}  // namespace lacuna::slurm
