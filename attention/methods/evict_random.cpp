// Random control for eviction: beside the ends that SnapKV keeps too, tokens drawn uniformly, from a stream
// of its own for every layer and kv head.
#include <algorithm>
#include <numeric>

#include "attention/methods/registry.h"
#include "core/rng.h"

namespace lacuna {

namespace {

class RandomEvictor final : public Evictor {
 public:
  explicit RandomEvictor(const Params& params)
      : capacity_(params.get_int("capacity")),
        first_(params.get_int("first")),
        last_(params.get_int("last")) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input, AttentionCounts&) const override {
    const std::int64_t tokens = input.q.tokens, capacity = std::max(capacity_, first_ + last_);
    if (capacity >= tokens) return {};
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(input.info.kv_heads));
    for (std::size_t h = 0; h < kept.size(); ++h) {
      std::vector<std::int32_t>& head = kept[h];
      head.resize(static_cast<std::size_t>(first_ + last_));
      const auto ends = head.begin() + first_;
      std::iota(head.begin(), ends, 0);
      std::iota(ends, head.end(), static_cast<std::int32_t>(tokens - last_));
      const auto global_head = static_cast<std::uint64_t>(input.info.kv_head_begin) + h;
      Rng rng(input.seed,
              stream_id("random evict", static_cast<std::uint64_t>(input.info.layer), global_head));
      const auto between = static_cast<std::uint64_t>(tokens - first_ - last_);
      for (const std::uint64_t t : rng.sample(between, static_cast<std::uint64_t>(capacity - first_ - last_)))
        head.push_back(static_cast<std::int32_t>(first_ + static_cast<std::int64_t>(t)));
      std::sort(head.begin(), head.end());
    }
    return kept;
  }

 private:
  std::int64_t capacity_, first_, last_;
};

}  // namespace

Method evict_random() {
  return {.info = {.name = "random",
                   .slot = Slot::kEvict,
                   .summary = "Keeps random prompt tokens beside the first and the last ones.",
                   .reference = "control",
                   .params = {{.name = "capacity",
                               .default_value = std::int64_t{4096},
                               .help = "Prompt tokens kept per kv head; `first` and `last` are among them",
                               .unit = "tokens",
                               .min = 1},
                              {.name = "first",
                               .default_value = std::int64_t{4},
                               .help = "First tokens of the prompt that always stay",
                               .unit = "tokens",
                               .min = 0},
                              {.name = "last",
                               .default_value = std::int64_t{128},
                               .help = "Last tokens of the prompt that always stay",
                               .unit = "tokens",
                               .min = 0}},
                   .budget_param = "capacity"},
          .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
            return std::make_unique<RandomEvictor>(params);
          }};
}

}  // namespace lacuna
