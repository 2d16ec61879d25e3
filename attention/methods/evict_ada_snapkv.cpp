// Ada-SnapKV (Ada-KV, arXiv 2407.11550; rules of arXiv 2504.17768): SnapKV with one budget for all kv heads
// of a layer.
#include <algorithm>
#include <tuple>

#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "attention/methods/registry.h"
#include "attention/methods/snapkv_params.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

class AdaSnapKv final : public Evictor {
 public:
  explicit AdaSnapKv(const Params& params)
      : request_(attended_request(params)), floor_(params.get_double("min_share")) {}

  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    const std::int64_t tokens = input.q.tokens;
    if (request_.capacity >= tokens) return {};
    const IndexTimer timer(counts);
    const auto scores = score_all_heads(input, counts, [&](int head, double& flops) {
      const WindowScores window =
          window_scores(input, head, {.window = request_.window, .columns = false, .maxima = true});
      flops = window.flops;
      return std::vector<double>(window.column_max.begin(), window.column_max.end());
    });

    const std::int64_t floor =
        std::max<std::int64_t>(static_cast<std::int64_t>(floor_ * static_cast<double>(request_.capacity)),
                               request_.first + request_.last);
    KeptTokens kept;
    std::vector<Candidate> rest;
    std::int64_t left = request_.capacity * input.info.kv_heads_total;
    for (const auto& maxima : group_heads(input.info, scores, GroupBy::kMax)) {
      std::vector<double> importance = average_pool(maxima, request_.kernel);
      force_ends(importance, request_.first, request_.last);
      const auto head = static_cast<std::int32_t>(kept.size());
      kept.push_back(top_indices(importance, floor));
      left -= std::ssize(kept.back());
      std::size_t next = 0;
      for (std::int32_t token = 0; token < tokens; ++token) {
        if (next < kept.back().size() && kept.back()[next] == token) {
          ++next;
        } else {
          rest.push_back({-importance[static_cast<std::size_t>(token)], head, token});
        }
      }
    }
    const std::int64_t more = std::clamp<std::int64_t>(left, 0, std::ssize(rest));
    std::nth_element(rest.begin(), rest.begin() + more, rest.end());
    for (std::int64_t i = 0; i < more; ++i) {
      const auto& [score, head, token] = rest[static_cast<std::size_t>(i)];
      kept[static_cast<std::size_t>(head)].push_back(token);
    }
    for (auto& head : kept) std::sort(head.begin(), head.end());
    return local_heads(input.info, std::move(kept));
  }

 private:
  using Candidate = std::tuple<double, std::int32_t, std::int32_t>;  // (-importance, head, token): best first

  AttendedRequest request_;
  double floor_;
};

std::vector<ParamSpec> declared() {
  auto params =
      snapkv_params("Prompt tokens kept per kv head on average; a layer's heads share capacity x kv heads");
  params.push_back(
      {.name = "min_share",
       .default_value = 0.2,
       .help = "Part of the capacity that every head gets for itself, at least `first` + `last` tokens",
       .unit = "fraction",
       .min = 0,
       .max = 1});
  return params;
}

}  // namespace

Method evict_ada_snapkv() {
  return {
      .info = {.name = "ada_snapkv",
               .slot = Slot::kEvict,
               .summary =
                   "SnapKV whose budget the kv heads of a layer share: the best (head, token) pairs stay.",
               .reference = "arXiv 2407.11550",
               .params = declared(),
               .budget_param = "capacity"},
      .make_evictor = [](const Params& params) -> std::unique_ptr<Evictor> {
        return std::make_unique<AdaSnapKv>(params);
      },
      .check = check_kernel};
}

}  // namespace lacuna
