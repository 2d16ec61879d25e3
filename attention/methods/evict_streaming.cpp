// StreamingLLM (arXiv 2309.17453) as an eviction: the first tokens and the last ones stay.
#include <algorithm>
#include <numeric>

#include "attention/methods/registry.h"
#include "core/error.h"

namespace lacuna {

namespace {

class StreamingEvictor final : public Evictor {
 public:
  explicit StreamingEvictor(const Params& params)
      : sinks_(params.get_int("sinks")), capacity_(params.get_int("capacity")) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input, AttentionCounts&) const override {
    const std::int64_t tokens = input.q.tokens;
    if (capacity_ >= tokens) return {};
    std::vector<std::int32_t> kept(static_cast<std::size_t>(capacity_));
    const auto split = kept.begin() + sinks_;
    std::iota(kept.begin(), split, 0);
    std::iota(split, kept.end(), static_cast<std::int32_t>(tokens - (capacity_ - sinks_)));
    return std::vector<std::vector<std::int32_t>>(static_cast<std::size_t>(input.info.kv_heads), kept);
  }

 private:
  std::int64_t sinks_, capacity_;
};

}  // namespace

Method evict_streaming() {
  return {.info = {.name = "streaming",
                   .slot = Slot::kEvict,
                   .summary = "Keeps the first and the last prompt tokens.",
                   .reference = "arXiv 2309.17453",
                   .params = {{.name = "capacity",
                               .default_value = std::int64_t{4096},
                               .help = "Prompt tokens kept, the first ones among them",
                               .unit = "tokens",
                               .min = 1},
                              {.name = "sinks",
                               .default_value = std::int64_t{4},
                               .help = "First tokens kept; fewer than the capacity",
                               .unit = "tokens",
                               .min = 0}},
                   .budget_param = "capacity"},
          .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
            return std::make_unique<StreamingEvictor>(params);
          },
          .check =
              [](const Params& params, const std::string& where) {
                LACUNA_REQUIRE(
                    params.get_int("sinks") < params.get_int("capacity"),
                    "{}: sinks ({}) must be fewer than capacity ({}): the newest token is always kept", where,
                    params.get_int("sinks"), params.get_int("capacity"));
              }};
}

}  // namespace lacuna
