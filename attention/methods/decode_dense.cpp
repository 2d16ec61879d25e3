// Every step reads the whole cache: the baseline.
#include <numeric>

#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class DenseDecode final : public DecodeSelector {
 public:
  bool reads_everything() const override { return true; }
  std::unique_ptr<DecodeState> make_state(const LayerInfo&) const override { return nullptr; }
  void select(const DecodeInput& input, DecodeState*, std::vector<PageList>& lists,
              AttentionCounts&) const override {
    lists.resize(input.heads.size());
    for (std::size_t h = 0; h < lists.size(); ++h) {
      lists[h].resize(static_cast<std::size_t>((input.heads[h].tokens + kPageTokens - 1) / kPageTokens));
      std::iota(lists[h].begin(), lists[h].end(), 0);
    }
  }
};

}  // namespace

Method decode_dense() {
  return {.info = {.name = "dense",
                   .slot = Slot::kDecode,
                   .summary = "Reads the whole cache at every step; the baseline.",
                   .reference = "control"},
          .make_decode = [](const Params&) -> std::unique_ptr<DecodeSelector> {
            return std::make_unique<DenseDecode>();
          }};
}

}  // namespace lacuna
