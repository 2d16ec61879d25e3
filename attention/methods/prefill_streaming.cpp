// StreamingLLM (arXiv 2309.17453): the first tokens and a local window, the same for every head.
#include <algorithm>
#include <numeric>

#include "attention/methods/common.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class Streaming final : public PrefillSelector {
 public:
  explicit Streaming(const Params& params)
      : sinks_(params.get_int("sinks")), window_(params.get_int("window")) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    const std::int64_t tokens = input.q.tokens;
    HeadLists head;
    for (std::int64_t m = 0; m < tokens; m += 64) {
      head.begin_block();
      head.add(std::max<std::int64_t>(0, m - window_ + 1), std::min(m + 64, tokens));
    }
    head.columns.resize(static_cast<std::size_t>(std::min(sinks_, tokens)));
    std::iota(head.columns.begin(), head.columns.end(), 0);
    lists =
        join_lists(std::vector<HeadLists>(static_cast<std::size_t>(input.info.q_heads), head), tokens, 64);
  }

 private:
  std::int64_t sinks_, window_;
};

}  // namespace

Method prefill_streaming() {
  return {
      .info = {.name = "streaming",
               .slot = Slot::kPrefill,
               .summary =
                   "Keeps the first tokens and a local window that moves with each block of 64 queries.",
               .reference = "arXiv 2309.17453",
               .params =
                   {{.name = "sinks",
                     .default_value = std::int64_t{4},
                     .help = "First tokens that every query sees",
                     .unit = "tokens",
                     .min = 0},
                    {.name = "window",
                     .default_value = std::int64_t{1024},
                     .help =
                         "Nearest tokens that every query sees; later queries of a block of 64 see up to 63 "
                         "more",
                     .unit = "tokens",
                     .min = 1}},
               .budget_param = "window"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<Streaming>(params);
      }};
}

}  // namespace lacuna
