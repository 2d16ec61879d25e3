// StreamingLLM (arXiv 2309.17453) at decode time: the pages of the first tokens and of the last ones.
#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class StreamingDecode final : public DecodeSelector {
 public:
  explicit StreamingDecode(const Params& params)
      : sinks_(params.get_int("sinks")), window_(params.get_int("window")) {}

  std::unique_ptr<DecodeState> make_state(const LayerInfo&) const override { return nullptr; }

  void select(const DecodeInput& input, DecodeState*, std::vector<PageList>& lists,
              AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    lists.assign(input.heads.size(), {});
    for (std::size_t h = 0; h < lists.size(); ++h) {
      const std::int64_t tokens = input.heads[h].tokens;
      const std::int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
      const std::int64_t sink_pages = (sinks_ + kPageTokens - 1) / kPageTokens;
      const std::int64_t first_local = std::max<std::int64_t>(0, tokens - window_) / kPageTokens;
      for (std::int64_t p = 0; p < pages; ++p) {
        if (p < sink_pages || p >= first_local) lists[h].push_back(static_cast<std::int32_t>(p));
      }
    }
  }

 private:
  std::int64_t sinks_, window_;
};

}  // namespace

Method decode_streaming() {
  return {
      .info = {.name = "streaming",
               .slot = Slot::kDecode,
               .summary = "Reads, at each step, the pages of the first and of the last tokens of the cache.",
               .reference = "arXiv 2309.17453",
               .params = {{.name = "window",
                           .default_value = std::int64_t{2048},
                           .help = "Last tokens read, in whole pages of 16",
                           .unit = "tokens",
                           .min = 1},
                          {.name = "sinks",
                           .default_value = std::int64_t{4},
                           .help = "First tokens read, in whole pages of 16",
                           .unit = "tokens",
                           .min = 0}},
               .budget_param = "window"},
      .make_decode = [](const Params& params) -> std::unique_ptr<DecodeSelector> {
        return std::make_unique<StreamingDecode>(params);
      }};
}

}  // namespace lacuna
