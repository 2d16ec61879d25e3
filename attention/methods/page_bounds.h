// Per-page channel minima and maxima of the cached keys, and the bound on q . k they give: Quest's metadata,
// which twilight uses too.
#pragma once

#include <span>
#include <vector>

#include "attention/strategy.h"

namespace lacuna {

class PageBounds final : public DecodeState {
 public:
  explicit PageBounds(const LayerInfo& info)
      : dim_(info.head_dim), bounds_(static_cast<std::size_t>(info.kv_heads)), tokens_(bounds_.size()) {}

  std::unique_ptr<DecodeState> clone() const override { return std::make_unique<PageBounds>(*this); }
  std::size_t bytes() const override;

  /// Takes in the tokens that came since the last call (all of them the first time).
  void update(const DecodeInput& input);

  /// [pages, 2, head_dim]: minima, then maxima.
  std::span<const float> of(int kv_head) const { return bounds_[static_cast<std::size_t>(kv_head)]; }

 private:
  int dim_;
  std::vector<std::vector<float>> bounds_;
  std::vector<std::int64_t> tokens_;
};

/// Upper bounds of the score of each page for each list: one row per kv head when `share` (sum over its query
/// heads, wherever their ranks are), else one per query head. Throws kUsage on NaN. Adds index flops and
/// bytes.
std::vector<std::vector<float>> page_scores(const DecodeInput& input, const PageBounds& bounds, bool share,
                                            AttentionCounts& counts);

/// Query vectors of all heads of the layer, [q_heads_total, head_dim], in global head order.
std::vector<float> gather_queries(const DecodeInput& input);

}  // namespace lacuna
