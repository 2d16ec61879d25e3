// The parameters that all generators share (style, preset) and counts whose default depends on the preset.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/params.h"

namespace lacuna {

enum class Style { kExplain, kDirect };

/// A count that is 0 until somebody sets it; then the preset decides. Declared once per task.
struct PresetCount {
  const char* name;
  std::int64_t paper, mini;
  std::int64_t max;
  const char* help;
  const char* mini_note =
      "";  ///< How the mini preset scales it with the length (whether set by hand or not), if it does
};

/// style, preset and the counts as ParamSpecs.
std::vector<ParamSpec> generator_params(std::span<const PresetCount> counts);
ParamSpec style_param();

Style style_of(const Params& params);
/// Small counts for small models and contexts of 256 to 8192 tokens.
bool is_mini(const Params& params);
/// The value given, else the preset's. `given` tells whether it was set by hand.
std::int64_t count_of(const Params& params, std::span<const PresetCount> counts, const std::string& name,
                      bool* given = nullptr);

}  // namespace lacuna
