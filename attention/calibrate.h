// Finding the parameters of a data-dependent prefill method that compute a wanted share of the causal cells.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "attention/strategy.h"

namespace lacuna {

/// True for prefill methods whose computed share depends on the prompt: those a calibration is for.
bool needs_calibration(const MethodSpec& prefill);

/// Settings that were run and what they computed.
struct CalibrationPoint {
  double density = 0;  ///< Measured: visited / causal cells.
  MethodSpec spec;
};

/// Bisects along one line through the method's settings (vertical_slash: verticals = slashes; flexprefill:
/// min_budget up to the given one at alpha 0, then alpha; xattention: threshold; oracle_top_p: top_p) until
/// each wanted density lies between two measured points of which one is within `tolerance` (relative), or
/// after `most_runs` more runs of `measure`. Points are shared by the targets. Returns every point, densities
/// strictly ascending, so that both neighbours of each target are there. Throws kUsage when even the smallest
/// or largest setting cannot reach a target; says which density it has.
std::vector<CalibrationPoint> calibrate_method(const MethodSpec& base, std::span<const double> densities,
                                               std::int64_t length,
                                               const std::function<double(const MethodSpec&)>& measure,
                                               double tolerance = 0.02, int most_runs = 10);

/// One entry of a calibration file (see budget.h): {length, density: [..], PARAM: [..]} over the parameters
/// that vary.
nlohmann::json calibration_entry(std::span<const CalibrationPoint> points, std::int64_t length);

}  // namespace lacuna
