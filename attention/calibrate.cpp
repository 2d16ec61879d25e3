#include "attention/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {

namespace {

struct Varied {
  const char* method;
  std::array<const char*, 2> params;
};
constexpr std::array<Varied, 4> kVaried = {{{"vertical_slash", {"verticals", "slashes"}},
                                            {"flexprefill", {"alpha", "min_budget"}},
                                            {"xattention", {"threshold", nullptr}},
                                            {"oracle_top_p", {"top_p", nullptr}}}};

const Varied* varied(const std::string& method) {
  const auto it = std::ranges::find(kVaried, method, [](const Varied& v) { return std::string(v.method); });
  return it == kVaried.end() ? nullptr : &*it;
}

/// The setting at t in [0, 1]; what it computes grows with t.
MethodSpec setting(const MethodSpec& base, double t, std::int64_t length) {
  Json params = base.params.to_json();
  if (base.method == "vertical_slash") {
    const auto n = std::max<std::int64_t>(1, std::llround(std::pow(static_cast<double>(length), t)));
    params["verticals"] = params["slashes"] = n;
  } else if (base.method == "flexprefill") {
    const auto budget = static_cast<double>(base.params.get_int("min_budget"));
    params["alpha"] = std::max(0.0, 2 * t - 1);
    params["min_budget"] = std::max<std::int64_t>(1, std::llround(std::pow(budget, std::min(1.0, 2 * t))));
  } else {
    params[varied(base.method)->params[0]] = t;
  }
  return {base.method, Params::parse(find_method(Slot::kPrefill, base.method, "calibration").params, params,
                                     "calibration")};
}

}  // namespace

bool needs_calibration(const MethodSpec& prefill) { return varied(prefill.method) != nullptr; }

std::vector<CalibrationPoint> calibrate_method(const MethodSpec& base, std::span<const double> densities,
                                               std::int64_t length,
                                               const std::function<double(const MethodSpec&)>& measure,
                                               double tolerance, int most_runs) {
  LACUNA_CHECK(needs_calibration(base), "{} needs no calibration", base.method);
  std::map<double, CalibrationPoint> points;  // by t
  std::map<std::string, double> measured;  // by setting: counts are whole numbers, so neighbours may be equal
  const auto density_at = [&](double t) {
    const auto it = points.find(t);
    if (it != points.end()) return it->second.density;
    const MethodSpec spec = setting(base, t, length);
    const std::string key = spec.params.to_json().dump();
    if (!measured.contains(key)) measured[key] = measure(spec);
    return points.emplace(t, CalibrationPoint{measured[key], spec}).first->second.density;
  };
  const double least = density_at(0), most = density_at(1);
  for (const double target : densities) {
    LACUNA_REQUIRE(target >= least && target <= most,
                   "{} at {} tokens computes between {:.4f} and {:.4f} of the causal cells (sparsity {:.4f} "
                   "to {:.4f}); {:.4f} "
                   "cannot be reached",
                   base.method, length, least, most, 1 - most, 1 - least, target);
    // The nearest points around the target so far, then halves between them.
    double low = 0, high = 1;
    for (const auto& [t, point] : points) {
      if (point.density <= target)
        low = std::max(low, t);
      else
        high = std::min(high, t);
    }
    for (int run = 0; run < most_runs; ++run) {
      const auto near = [&](double t) { return std::abs(density_at(t) - target) <= tolerance * target; };
      if (near(low) || near(high) || setting(base, low, length) == setting(base, high, length)) break;
      const double middle = (low + high) / 2;
      (density_at(middle) <= target ? low : high) = middle;
    }
  }
  std::vector<CalibrationPoint> ascending;
  for (const auto& [t, point] : points) {
    if (ascending.empty() || point.density > ascending.back().density) ascending.push_back(point);
  }
  return ascending;
}

Json calibration_entry(std::span<const CalibrationPoint> points, std::int64_t length) {
  Json entry = {{"length", length}, {"density", Json::array()}};
  for (const CalibrationPoint& point : points) {
    entry["density"].push_back(point.density);
    const Json params = point.spec.params.to_json();
    for (const char* name : varied(point.spec.method)->params) {
      if (name != nullptr) entry[name].push_back(params.at(name));
    }
  }
  return entry;
}

}  // namespace lacuna
