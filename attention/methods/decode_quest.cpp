// Quest (arXiv 2406.10774; rules of arXiv 2504.17768): per page, an upper bound of q . k from channel-wise
// minima and maxima of its keys decides which pages a step reads.
#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/page_bounds.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class Quest final : public DecodeSelector {
 public:
  explicit Quest(const Params& params)
      : pages_(std::max<std::int64_t>(1, params.get_int("budget") / kPageTokens)),
        share_(params.get_bool("share_pages")) {}

  std::unique_ptr<DecodeState> make_state(const LayerInfo& info) const override {
    return std::make_unique<PageBounds>(info);
  }

  void select(const DecodeInput& input, DecodeState* state, std::vector<PageList>& lists,
              AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    auto& bounds = static_cast<PageBounds&>(*state);
    bounds.update(input);
    const auto scores = page_scores(input, bounds, share_, counts);
    lists.resize(scores.size());
    for (std::size_t row = 0; row < scores.size(); ++row) {
      // The current page stays beside the best `pages_` of the others.
      const auto current = static_cast<std::int32_t>(scores[row].size()) - 1;
      lists[row] = top_indices(std::span(scores[row]).first(static_cast<std::size_t>(current)), pages_);
      lists[row].push_back(current);
    }
  }

 private:
  std::int64_t pages_;
  bool share_;
};

}  // namespace

Method decode_quest() {
  return {
      .info = {.name = "quest",
               .slot = Slot::kDecode,
               .summary = "Reads, at each step, the pages of 16 tokens with the highest bound on q . k.",
               .reference = "arXiv 2406.10774",
               .params = {{.name = "budget",
                           .default_value = std::int64_t{2048},
                           .help = "Tokens read per step, in whole pages of 16, beside the current page",
                           .unit = "tokens",
                           .min = 16},
                          {.name = "share_pages",
                           .default_value = true,
                           .help =
                               "One page list for the query heads of a kv head, by the sum of their bounds; "
                               "otherwise one per query head"}},
               .budget_param = "budget"},
      .make_decode = [](const Params& params) -> std::unique_ptr<DecodeSelector> {
        return std::make_unique<Quest>(params);
      }};
}

}  // namespace lacuna
