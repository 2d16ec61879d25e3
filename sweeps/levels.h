// From a level ("90 % sparse", "2048 tokens") to a method's own parameters.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "sweeps/sweep.h"

namespace lacuna {

/// `base` with its budget set to `level` for prompts of `length` tokens. Throws kUsage when that cannot be
/// said: no calibration for this method and length.
StrategySpec apply_level(const StrategySpec& base, const SweepLevel& level, std::int64_t length,
                         const nlohmann::json& calibration, const std::string& where);

}  // namespace lacuna
