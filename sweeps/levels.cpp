#include "sweeps/levels.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {

namespace {

/// Sets the budget parameter of one slot, when its method has one.
void set_budget(Json& spec, const char* slot_name, Slot slot, const std::string& method,
                const SweepLevel& level, std::int64_t length, const std::string& where) {
  const MethodInfo& info = find_method(slot, method, where);
  if (info.budget_param.empty()) return;
  const auto param = std::ranges::find(info.params, info.budget_param, &ParamSpec::name);
  LACUNA_CHECK(param != info.params.end(), "{} declares no parameter {}", method, info.budget_param);
  const double tokens =
      level.kind == SweepLevel::Kind::kTokens ? level.value : (1 - level.value) * static_cast<double>(length);
  LACUNA_REQUIRE(
      slot != Slot::kPrefill && param->unit == "tokens",
      "{}: {} needs calibrated values for a sparsity of {:g} at {} tokens; give its own parameters ({})",
      where, method, level.value, length, info.budget_param);
  const double least = param->min.value_or(1);
  spec[slot_name][method][info.budget_param] = static_cast<std::int64_t>(std::max(least, std::round(tokens)));
}

}  // namespace

StrategySpec apply_level(const StrategySpec& base, const SweepLevel& level, std::int64_t length, const Json&,
                         const std::string& where) {
  if (level.kind == SweepLevel::Kind::kOwn) return base;
  Json spec = to_json(base);
  set_budget(spec, "prefill", Slot::kPrefill, base.prefill.method, level, length, where);
  set_budget(spec, "evict", Slot::kEvict, base.evict.method, level, length, where);
  set_budget(spec, "decode", Slot::kDecode, base.decode.method, level, length, where);
  return parse_strategy(spec, where);
}

}  // namespace lacuna
