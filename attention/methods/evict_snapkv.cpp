// SnapKV (arXiv 2404.14469; rules of arXiv 2504.17768): the prompt tokens that its last queries attend to
// stay.
#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "attention/methods/registry.h"
#include "attention/methods/snapkv_params.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

class SnapKv final : public Evictor {
 public:
  explicit SnapKv(const Params& params)
      : capacity_(params.get_int("capacity")),
        window_(params.get_int("window")),
        kernel_(static_cast<int>(params.get_int("kernel"))) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    if (capacity_ >= input.q.tokens) return {};
    const IndexTimer timer(counts);
    const auto scores = score_all_heads(input, counts, [&](int head, double& flops) {
      WindowScores window = window_scores(input, head, {.window = window_});
      flops = window.flops;
      return std::move(window.column_sum);
    });
    KeptTokens kept;
    for (const auto& sums : group_heads(input.info, scores, GroupBy::kMean)) {
      std::vector<double> importance = average_pool(sums, kernel_);
      force_ends(importance, kSinkColumns, kLocalTokens);
      kept.push_back(top_indices(importance, std::max<std::int64_t>(capacity_, kSinkColumns + kLocalTokens)));
    }
    return local_heads(input.info, std::move(kept));
  }

 private:
  std::int64_t capacity_, window_;
  int kernel_;
};

}  // namespace

Method evict_snapkv() {
  return {.info = {.name = "snapkv",
                   .slot = Slot::kEvict,
                   .summary = "Keeps, per kv head, the prompt tokens to which the last queries attend most.",
                   .reference = "arXiv 2404.14469",
                   .params = snapkv_params(
                       "Prompt tokens kept per kv head; the first 4 and the last 128 are always "
                       "among them"),
                   .budget_param = "capacity"},
          .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
            return std::make_unique<SnapKv>(params);
          },
          .check = check_kernel};
}

}  // namespace lacuna
