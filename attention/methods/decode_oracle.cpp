// Decode oracles: the exact attention of the step decides which pages are read. Choosing reads every key;
// what is learned is how much a budget of pages could keep at best.
#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/page_weights.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class OracleDecode final : public DecodeSelector {
 public:
  OracleDecode(std::int64_t pages, double mass) : pages_(pages), mass_(mass) {}

  std::unique_ptr<DecodeState> make_state(const LayerInfo&) const override { return nullptr; }

  void select(const DecodeInput& input, DecodeState*, std::vector<PageList>& lists,
              AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    const std::vector<PageList> pages = all_pages(input);
    const auto weights = page_weights(input, pages, counts);
    lists.resize(pages.size());
    for (std::size_t h = 0; h < pages.size(); ++h) {
      const std::int32_t current = pages[h].back();
      if (pages_ > 0) {
        // As in quest: the best of the others, and the current page.
        lists[h] = top_indices(std::span(weights[h]).first(static_cast<std::size_t>(current)), pages_);
        lists[h].push_back(current);
      } else {
        lists[h] = pages_with_mass(pages[h], weights[h], mass_, current);
      }
    }
  }

 private:
  std::int64_t pages_;  // 0: by mass
  double mass_;
};

}  // namespace

Method decode_oracle_top_k() {
  return {.info = {.name = "oracle_top_k",
                   .slot = Slot::kDecode,
                   .summary = "Reads, at each step, the pages with the most exact attention, per kv head.",
                   .reference = "control",
                   .params = {{.name = "budget",
                               .default_value = std::int64_t{2048},
                               .help = "Tokens read per step, in whole pages of 16, beside the current page",
                               .unit = "tokens",
                               .min = 16}},
                   .budget_param = "budget"},
          .make_decode = [](const Params& params) -> std::unique_ptr<DecodeSelector> {
            return std::make_unique<OracleDecode>(params.get_int("budget") / kPageTokens, 0.0);
          }};
}

Method decode_oracle_top_p() {
  return {
      .info =
          {.name = "oracle_top_p",
           .slot = Slot::kDecode,
           .summary =
               "Reads, at each step, the fewest pages that hold a share of the exact attention, per kv head.",
           .reference = "control",
           .params = {{.name = "top_p",
                       .default_value = 0.95,
                       .help = "Share of the step's attention that is kept; the current page is always read",
                       .unit = "probability",
                       .min = 0,
                       .max = 1}},
           .budget_param = "top_p"},
      .make_decode = [](const Params& params) -> std::unique_ptr<DecodeSelector> {
        return std::make_unique<OracleDecode>(0, params.get_double("top_p"));
      }};
}

}  // namespace lacuna
