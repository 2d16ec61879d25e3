// TOVA (arXiv 2401.06104): the last query's attention, averaged over all heads of a layer, decides which
// tokens stay; all heads keep the same ones.
#include <algorithm>
#include <limits>

#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "attention/methods/registry.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

class Tova final : public Evictor {
 public:
  explicit Tova(const Params& params) : capacity_(params.get_int("capacity")) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    if (capacity_ >= input.q.tokens) return {};
    const IndexTimer timer(counts);
    const auto scores = score_all_heads(input, counts, [&](int head, double& flops) {
      WindowScores last = window_scores(input, head, {.window = 1});
      flops = last.flops;
      return std::move(last.column_sum);
    });
    std::vector<double> total(static_cast<std::size_t>(input.q.tokens));
    for (const auto& head : scores) {
      for (std::size_t t = 0; t < total.size(); ++t) total[t] += head[t];
    }
    force_ends(total, 0, 1);
    return KeptTokens(static_cast<std::size_t>(input.info.kv_heads), top_indices(total, capacity_));
  }

 private:
  std::int64_t capacity_;
};

}  // namespace

Method evict_tova() {
  return {
      .info =
          {.name = "tova",
           .slot = Slot::kEvict,
           .summary =
               "Keeps the tokens to which the last query attends most, the same for all heads of a layer.",
           .reference = "arXiv 2401.06104",
           .params = {{.name = "capacity",
                       .default_value = std::int64_t{4096},
                       .help = "Prompt tokens kept; the last one is always among them",
                       .unit = "tokens",
                       .min = 1}},
           .budget_param = "capacity"},
      .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
        return std::make_unique<Tova>(params);
      }};
}

}  // namespace lacuna
