// Every causal cell: the baseline.
#include "attention/methods/common.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class Dense final : public PrefillSelector {
 public:
  void select(const PrefillInput& input, TileLists& lists, AttentionCounts&) const override {
    lists = dense_lists(input.info.q_heads, input.q.tokens);
  }
};

}  // namespace

Method prefill_dense() {
  return {.info = {.name = "dense",
                   .slot = Slot::kPrefill,
                   .summary = "Computes every causal cell; the baseline.",
                   .reference = "control"},
          .make_prefill = [](const Params&) -> std::unique_ptr<PrefillSelector> {
            return std::make_unique<Dense>();
          }};
}

}  // namespace lacuna
