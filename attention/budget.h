// Budgets: a method's own parameters, or a level ("90 % sparse", "2048 tokens") that sets them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "attention/strategy.h"

namespace lacuna {

struct Budget {
  enum class Kind { kOwn, kSparsity, kTokens };
  Kind kind = Kind::kOwn;
  double value = 0;  ///< Sparsity in [0, 1), or tokens.
};

/// `base` with every slot's budget set for prompts of `length` tokens; slots without a budget stay. A slot
/// counts as its own: with two methods, each gets the level.
///
/// kTokens: parameters in tokens, columns or diagonals take the number (vertical_slash: both), parameters in
/// blocks the number divided by the block size, rounded up. Parameters that are probabilities cannot be said
/// in tokens.
///
/// kSparsity, density d = 1 - sparsity: evictors and decode selectors keep d * length tokens (quest and its
/// kin: rounded to whole pages). Block methods and fixed shapes take the largest budget whose computed share
/// of the causal cells is at most d; that share does not depend on the data. vertical_slash, flexprefill,
/// xattention and oracle_top_p depend on the data and come from `calibration`:
///   {prefill: {METHOD: [{length: L, density: [..], PARAM: [..], ...}, ...]}}, densities ascending.
/// Between two densities parameters are linear in the density; above the last, linear to "everything" at
/// density 1 when the parameters count columns or diagonals. Between two lengths they are linear in
/// log(length). Outside (below the first density, or more than 5 % beyond the first or last length) is an
/// error that says what to do.
///
/// Throws kUsage starting with `where`.
StrategySpec with_budget(const StrategySpec& base, const Budget& budget, std::int64_t length,
                         const nlohmann::json& calibration, const std::string& where);

/// The paper's calibrated values: the text of sweeps/calibration.yaml, compiled in.
std::string_view paper_calibration_yaml();

/// 1 - budget / length as the method's name for it would have it, when the budget says: what papers call
/// sparsity. Never what was computed. Empty for methods whose budget is no number of tokens or blocks.
std::optional<double> nominal_sparsity(Slot slot, const MethodSpec& spec, std::int64_t length);

/// Share of causal cells that a data-independent prefill budget computes at this length; empty for other
/// methods.
std::optional<double> fixed_density(const MethodSpec& spec, std::int64_t length);

}  // namespace lacuna
