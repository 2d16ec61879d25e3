// Pictures of what a strategy keeps in one layer of a real model: Q, K and V are captured from a prefill and
// the strategy's selection is run on them. For `generate --picture` and `report --gallery`.
#pragma once

#include <functional>
#include <string>

#include "attention/strategy.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

namespace lacuna {

/// Q, K and V of one layer of one prompt.
class LayerCapture {
 public:
  explicit LayerCapture(int layer) : layer_(layer) {}
  /// For JobRequest::on_layer. Throws kUsage when the arrays are on a device other than the CPU.
  std::function<void(int, const PrefillInput&)> hook();
  /// SVG of the strategy's first slot that leaves something out (prefill, then eviction, then decode; a dense
  /// strategy is drawn as a dense prefill). `head`: query head of a prefill. Throws kUsage when the layer was
  /// never reached.
  std::string draw(const StrategySpec& strategy, int head, ThreadPool& threads) const;

 private:
  int layer_;
  LayerInfo info_;
  std::uint64_t seed_ = 0;
  Tensor q_, k_, v_;  // [heads, tokens, head_dim]
};

/// Draws one picture per strategy of a sweep into FOLDER/patterns (see docs/analysis.md). Returns how many.
int draw_gallery(const std::string& folder, ThreadPool& threads);

}  // namespace lacuna
