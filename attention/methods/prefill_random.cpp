// Random control: blocks drawn uniformly, from a stream of its own for every layer, head and query block.
#include <algorithm>
#include <numeric>

#include "attention/methods/block_choice.h"
#include "attention/methods/registry.h"
#include "core/rng.h"

namespace lacuna {

namespace {

class Random final : public PrefillSelector {
 public:
  explicit Random(const Params& params)
      : block_(static_cast<int>(params.get_int("block"))), top_k_(params.get_int("top_k")) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    std::vector<HeadLists> heads(static_cast<std::size_t>(input.info.q_heads));
    for_each(input.threads, std::ssize(heads), [&](std::int64_t head) {
      const auto global_head = static_cast<std::uint64_t>(input.info.q_head_begin + head);
      const auto layer = static_cast<std::uint64_t>(input.info.layer);
      // One stream per head: a query block's draw depends on those before it, in a fixed order.
      Rng rng(input.seed, stream_id("random prefill", layer, global_head));
      for (std::int64_t row = 0; row * block_ < input.q.tokens; ++row) {
        const auto others = static_cast<std::uint64_t>(std::min(top_k_ - 1, row));
        std::vector<std::int32_t> kept = {static_cast<std::int32_t>(row)};
        for (const std::uint64_t b : rng.sample(static_cast<std::uint64_t>(row), others))
          kept.push_back(static_cast<std::int32_t>(b));
        std::sort(kept.begin(), kept.end());
        add_blocks(kept, block_, input.q.tokens, heads[static_cast<std::size_t>(head)]);
      }
    });
    lists = join_lists(std::move(heads), input.q.tokens, block_);
  }

 private:
  int block_;
  std::int64_t top_k_;
};

}  // namespace

Method prefill_random() {
  return {.info = {.name = "random",
                   .slot = Slot::kPrefill,
                   .summary = "Keeps the diagonal block and random key blocks per block of queries.",
                   .reference = "control",
                   .params = {block_param(64),
                              {.name = "top_k",
                               .default_value = std::int64_t{32},
                               .help = "Key blocks kept per query block, the diagonal one among them",
                               .unit = "blocks",
                               .min = 1}},
                   .budget_param = "top_k"},
          .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
            return std::make_unique<Random>(params);
          }};
}

}  // namespace lacuna
