// What one method's file provides to the registry: its declaration and how to make it from checked
// parameters.
#pragma once

#include <memory>

#include "attention/strategy.h"

namespace lacuna {

struct Method {
  MethodInfo info;
  /// Exactly one is set, as info.slot says.
  std::unique_ptr<PrefillSelector> (*make_prefill)(const Params&) = nullptr;
  std::unique_ptr<Evictor> (*make_evictor)(const Params&) = nullptr;
  std::unique_ptr<DecodeSelector> (*make_decode)(const Params&) = nullptr;
  /// Rules between parameters, or beyond ranges. Throws kUsage starting with `where`. May be null.
  void (*check)(const Params&, const std::string& where) = nullptr;
};

}  // namespace lacuna
