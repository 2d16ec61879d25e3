// Keeps the whole cache.
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class KeepEverything final : public Evictor {
 public:
  std::vector<std::vector<std::int32_t>> keep(const PrefillInput&, AttentionCounts&) const override {
    return {};
  }
};

}  // namespace

Method evict_none() {
  return {.info = {.name = "none",
                   .slot = Slot::kEvict,
                   .summary = "Keeps the whole cache.",
                   .reference = "control"},
          .make_evictor = [](const Params&) -> std::unique_ptr<Evictor> {
            return std::make_unique<KeepEverything>();
          }};
}

}  // namespace lacuna
