#include "attention/budget.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "attention/accounting.h"
#include "attention/calibration_text.h"
#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

struct SlotBase {
  Slot slot;
  const char* name;
  const MethodSpec* spec;
};

/// Parameter of a method in blocks has its block size under this name.
const char* block_size_name(const std::string& method) {
  return method == "block_sparse" ? "chunk_size" : "block";
}

const ParamSpec& budget_param(const MethodInfo& info) {
  const auto it = std::ranges::find(info.params, info.budget_param, &ParamSpec::name);
  LACUNA_CHECK(it != info.params.end(), "{} declares no parameter {}", info.name, info.budget_param);
  return *it;
}

MethodSpec with_param(Slot slot, const MethodSpec& spec, Json params, const std::string& name,
                      std::int64_t value) {
  params[name] = value;
  return {spec.method, Params::parse(find_method(slot, spec.method, "budget").params, params, "budget")};
}

/// Lists of one head of a method that looks neither at Q nor at K.
double density_of(const MethodSpec& spec, std::int64_t length) {
  SelfCommunicator self;
  PrefillInput input{.q = {}, .k = {}, .v = {}, .info = {}, .communicator = &self};
  input.info.q_heads = input.info.q_heads_total = input.info.kv_heads = input.info.kv_heads_total = 1;
  input.q.heads = 1;
  input.q.tokens = length;
  TileLists lists;
  AttentionCounts counts;
  make_prefill_selector(spec)->select(input, lists, counts);
  return density_of_head(lists, 0, 0);
}

/// Cells of keeping min(k, i + 1) blocks, the diagonal one among them, in every block row i.
double block_density(std::int64_t top_k, std::int64_t block, std::int64_t length) {
  const std::int64_t blocks = (length + block - 1) / block;
  double visited = 0;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const auto rows = static_cast<double>(std::min(block, length - i * block));
    const auto full = static_cast<double>(std::min(top_k - 1, i) * block);
    visited += rows * full + rows * (rows + 1) / 2;
  }
  return visited / causal_cells(length, 0);
}

/// The largest value in [low, high] with density(value) <= target; `low` when none is.
std::int64_t largest_within(std::int64_t low, std::int64_t high, double target,
                            const std::function<double(std::int64_t)>& density) {
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    if (density(middle) <= target + 1e-12)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

/// Values of every calibrated column at one density, from one length's entry.
std::map<std::string, double> at_density(const Json& entry, double density, const MethodInfo& info,
                                         std::int64_t length, const std::string& where) {
  const auto densities = json_get<std::vector<double>>(entry, "density", where);
  LACUNA_REQUIRE(!densities.empty() && std::ranges::is_sorted(densities), "{}: densities must be ascending",
                 where);
  LACUNA_REQUIRE(
      density >= densities.front() - 1e-9,
      "{}: {} is calibrated down to a density of {:g} (sparsity {:g}) at {} tokens; {:g} was asked for",
      where, info.name, densities.front(), 1 - densities.front(), length, density);
  std::map<std::string, double> values;
  for (const auto& [name, column] : entry.items()) {
    if (name == "density" || name == "length") continue;
    const auto spec = std::ranges::find(info.params, name, &ParamSpec::name);
    LACUNA_REQUIRE(spec != info.params.end(), "{}: {} has no parameter '{}'", where, info.name, name);
    auto points = json_get<std::vector<double>>(entry, name.c_str(), where);
    LACUNA_REQUIRE(points.size() == densities.size(), "{}: {} densities and {} values of {}", where,
                   densities.size(), points.size(), name);
    auto x = densities;
    if (x.back() < 1 && (spec->unit == "columns" || spec->unit == "diagonals")) {
      x.push_back(1);
      points.push_back(static_cast<double>(length));
    }
    LACUNA_REQUIRE(
        density <= x.back() + 1e-9,
        "{}: {} is calibrated up to a density of {:g} (sparsity {:g}) at {} tokens; {:g} was asked for",
        where, info.name, x.back(), 1 - x.back(), length, density);
    const auto above = std::ranges::lower_bound(x, density - 1e-9) - x.begin();
    const auto hi = static_cast<std::size_t>(std::min<std::ptrdiff_t>(above, std::ssize(x) - 1));
    const std::size_t lo = hi == 0 || x[hi] <= density + 1e-9 ? hi : hi - 1;
    const double t = lo == hi ? 0 : (density - x[lo]) / (x[hi] - x[lo]);
    values[name] = points[lo] + t * (points[hi] - points[lo]);
  }
  return values;
}

/// Calibrated parameters of a data-dependent method.
Json calibrated(const MethodSpec& spec, const MethodInfo& info, double density, std::int64_t length,
                const Json& calibration, const std::string& where) {
  const Json* entries = nullptr;
  if (calibration.is_object() && calibration.contains("prefill") && calibration["prefill"].is_object() &&
      calibration["prefill"].contains(spec.method)) {
    entries = &calibration["prefill"][spec.method];
  }
  LACUNA_REQUIRE(
      entries != nullptr && entries->is_array() && !entries->empty(),
      "{}: what {} computes depends on the prompt, and the calibration has no values for it; run `lacuna "
      "calibrate`, or give its own parameters ({})",
      where, spec.method, info.budget_param);
  const Json *below = nullptr, *above = nullptr;
  std::int64_t shortest = INT64_MAX, longest = 0, lower = 0, upper = INT64_MAX;
  for (const Json& entry : *entries) {
    const auto l = json_get<std::int64_t>(entry, "length", where + ": calibration of " + spec.method);
    shortest = std::min(shortest, l);
    longest = std::max(longest, l);
    if (l <= length && l >= lower) {
      below = &entry;
      lower = l;
    }
    if (l >= length && l <= upper) {
      above = &entry;
      upper = l;
    }
  }
  LACUNA_REQUIRE(static_cast<double>(length) >= 0.95 * static_cast<double>(shortest) &&
                     static_cast<double>(length) <= 1.05 * static_cast<double>(longest),
                 "{}: {} is calibrated for {} to {} tokens, not for {}; run `lacuna calibrate`, or give its "
                 "own parameters "
                 "({})",
                 where, spec.method, shortest, longest, length, info.budget_param);
  if (below == nullptr) below = above;
  if (above == nullptr) above = below;
  const std::string place = where + ": calibration of " + spec.method;
  const auto a = at_density(*below, density, info, json_get<std::int64_t>(*below, "length", place), place);
  const auto b = at_density(*above, density, info, json_get<std::int64_t>(*above, "length", place), place);
  const double t = below == above ? 0
                                  : std::log(static_cast<double>(length) / static_cast<double>(lower)) /
                                        std::log(static_cast<double>(upper) / static_cast<double>(lower));
  Json params = spec.params.to_json();
  for (const auto& [name, low] : a) {
    const auto it = b.find(name);
    LACUNA_REQUIRE(it != b.end(), "{}: '{}' is missing at {} tokens", place, name, upper);
    const double value = low + t * (it->second - low);
    if (params.at(name).is_number_integer())
      params[name] = std::llround(value);
    else
      params[name] = value;
  }
  return params;
}

bool is_block_method(const std::string& name) {
  return name == "block_sparse" || name == "oracle_top_k" || name == "random";
}
bool is_fixed_shape(const std::string& name) {
  return name == "streaming" || name == "a_shape" || name == "tri_shape";
}

Json sparsity_params(const SlotBase& base, const MethodInfo& info, double sparsity, std::int64_t length,
                     const Json& calibration, const std::string& where) {
  Json params = base.spec->params.to_json();
  const double density = 1 - sparsity;
  const ParamSpec& param = budget_param(info);
  if (base.slot != Slot::kPrefill) {
    LACUNA_REQUIRE(
        param.unit == "tokens",
        "{}: the budget of {} is a probability: what it keeps depends on the prompt; give {} itself", where,
        info.name, info.budget_param);
    double tokens = density * static_cast<double>(length);
    if (base.slot == Slot::kDecode) tokens = std::round(tokens / kPageTokens) * kPageTokens;
    params[info.budget_param] = std::max(static_cast<std::int64_t>(param.min.value_or(1)),
                                         static_cast<std::int64_t>(std::llround(tokens)));
    return params;
  }
  if (is_block_method(info.name) || is_fixed_shape(info.name)) {
    const std::int64_t high = length;
    params[info.budget_param] = largest_within(1, high, density, [&](std::int64_t value) {
      return *fixed_density(with_param(Slot::kPrefill, *base.spec, params, info.budget_param, value), length);
    });
    return params;
  }
  return calibrated(*base.spec, info, density, length, calibration, where);
}

Json token_params(const SlotBase& base, const MethodInfo& info, double tokens, const std::string& where) {
  Json params = base.spec->params.to_json();
  const std::string& unit = budget_param(info).unit;
  if (unit == "blocks") {
    const double block = static_cast<double>(base.spec->params.get_int(block_size_name(info.name)));
    params[info.budget_param] = static_cast<std::int64_t>(std::ceil(tokens / block));
  } else {
    LACUNA_REQUIRE(unit == "tokens" || unit == "columns",
                   "{}: the budget of {} is a probability and cannot be given in tokens; give {} itself",
                   where, info.name, info.budget_param);
    params[info.budget_param] = static_cast<std::int64_t>(std::llround(tokens));
    if (info.name == "vertical_slash") params["slashes"] = params[info.budget_param];
    if (info.name == "flexprefill") params["alpha"] = 0.0;  // exactly min_budget columns and diagonals
  }
  return params;
}

}  // namespace

StrategySpec with_budget(const StrategySpec& base, const Budget& budget, std::int64_t length,
                         const Json& calibration, const std::string& where) {
  if (budget.kind == Budget::Kind::kOwn) return base;
  LACUNA_REQUIRE(length > 0, "{}: a budget needs a prompt length", where);
  const bool by_sparsity = budget.kind == Budget::Kind::kSparsity;
  LACUNA_REQUIRE(!by_sparsity || (budget.value >= 0 && budget.value < 1),
                 "{}: sparsity {:g} is not in [0, 1)", where, budget.value);
  LACUNA_REQUIRE(by_sparsity || budget.value >= 1, "{}: a budget of {:g} tokens keeps nothing", where,
                 budget.value);
  Json spec = to_json(base);
  for (const SlotBase& slot :
       {SlotBase{Slot::kPrefill, "prefill", &base.prefill}, SlotBase{Slot::kEvict, "evict", &base.evict},
        SlotBase{Slot::kDecode, "decode", &base.decode}}) {
    const MethodInfo& info = find_method(slot.slot, slot.spec->method, where);
    if (info.budget_param.empty()) continue;
    spec[slot.name][info.name] = by_sparsity
                                     ? sparsity_params(slot, info, budget.value, length, calibration, where)
                                     : token_params(slot, info, budget.value, where);
  }
  return parse_strategy(spec, where);
}

std::string_view paper_calibration_yaml() { return kCalibrationText; }

std::optional<double> fixed_density(const MethodSpec& spec, std::int64_t length) {
  if (spec.method == "dense") return 1;
  if (is_fixed_shape(spec.method)) return density_of(spec, length);
  if (!is_block_method(spec.method)) return std::nullopt;
  const std::int64_t block = spec.params.get_int(block_size_name(spec.method));
  const bool paper = spec.method == "block_sparse";
  const std::int64_t top = spec.params.get_int(paper ? "top_chunks" : "top_k");
  return block_density(paper ? std::max<std::int64_t>(top, 3) : top, block, length);
}

std::optional<double> nominal_sparsity(Slot slot, const MethodSpec& spec, std::int64_t length) {
  if (slot == Slot::kPrefill) {
    const auto density = fixed_density(spec, length);
    return density ? std::optional(1 - *density) : std::nullopt;
  }
  const MethodInfo& info = find_method(slot, spec.method, "nominal sparsity");
  if (info.budget_param.empty()) return 0.0;
  if (budget_param(info).unit != "tokens" || info.name == "twilight") return std::nullopt;
  const auto budget = static_cast<double>(spec.params.get_int(info.budget_param));
  return std::max(0.0, 1 - budget / static_cast<double>(length));
}

}  // namespace lacuna
