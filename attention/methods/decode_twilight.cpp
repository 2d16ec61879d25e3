// Twilight (arXiv 2502.02770): Quest with a generous budget proposes pages; of those, the fewest that hold a
// share of the attention are read. The published kernel estimates that attention from 4-bit keys; here it is
// exact.
#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/page_bounds.h"
#include "attention/methods/page_weights.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class Twilight final : public DecodeSelector {
 public:
  explicit Twilight(const Params& params)
      : pages_(params.get_int("budget") / kPageTokens), mass_(params.get_double("top_p")) {}

  std::unique_ptr<DecodeState> make_state(const LayerInfo& info) const override {
    return std::make_unique<PageBounds>(info);
  }

  void select(const DecodeInput& input, DecodeState* state, std::vector<PageList>& lists,
              AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    auto& bounds = static_cast<PageBounds&>(*state);
    bounds.update(input);
    const auto scores = page_scores(input, bounds, true, counts);
    std::vector<PageList> candidates(scores.size());
    for (std::size_t h = 0; h < scores.size(); ++h) {
      const auto current = static_cast<std::int32_t>(scores[h].size()) - 1;
      candidates[h] = top_indices(std::span(scores[h]).first(static_cast<std::size_t>(current)), pages_);
      candidates[h].push_back(current);
    }
    const auto weights = page_weights(input, candidates, counts);
    lists.resize(scores.size());
    for (std::size_t h = 0; h < scores.size(); ++h) {
      lists[h] = pages_with_mass(candidates[h], weights[h], mass_, candidates[h].back());
    }
  }

 private:
  std::int64_t pages_;
  double mass_;
};

}  // namespace

Method decode_twilight() {
  return {
      .info =
          {.name = "twilight",
           .slot = Slot::kDecode,
           .summary =
               "Reads, of the pages that quest proposes, the fewest that hold a share of their attention.",
           .reference = "arXiv 2502.02770",
           .params = {{.name = "top_p",
                       .default_value = 0.9,
                       .help =
                           "Share of the proposed pages' attention that is kept; the current page is always "
                           "read",
                       .unit = "probability",
                       .min = 0,
                       .max = 1},
                      {.name = "budget",
                       .default_value = std::int64_t{8192},
                       .help = "Tokens that quest proposes, in whole pages of 16, beside the current page",
                       .unit = "tokens",
                       .min = 16}},
           .budget_param = "budget"},
      .make_decode = [](const Params& params) -> std::unique_ptr<DecodeSelector> {
        return std::make_unique<Twilight>(params);
      }};
}

}  // namespace lacuna
