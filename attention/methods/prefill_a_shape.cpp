// A-shape and Tri-shape (MInference, arXiv 2407.02490; SCBench, arXiv 2412.10319): a stripe of first keys and
// a local band of whole blocks; Tri-shape adds full attention for the last queries.
#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

constexpr std::int64_t kBlock = 64;

class AShape final : public PrefillSelector {
 public:
  AShape(std::int64_t sinks, std::int64_t local, std::int64_t last_queries)
      : sinks_(sinks), local_(local), last_queries_(last_queries) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    const std::int64_t tokens = input.q.tokens;
    const std::int64_t sink_end = (sinks_ + kBlock - 1) / kBlock * kBlock;
    const std::int64_t local_blocks = (local_ + kBlock - 1) / kBlock;
    HeadLists head;
    for (std::int64_t m = 0; m < tokens; m += kBlock) {
      const std::int64_t end = std::min(m + kBlock, tokens);
      head.begin_block();
      if (last_queries_ > 0 && end > tokens - last_queries_) {
        head.add(0, end);
      } else {
        head.add(0, std::min(sink_end, end));
        head.add(std::max<std::int64_t>(0, m - (local_blocks - 1) * kBlock), end);
      }
    }
    lists = join_lists(std::vector<HeadLists>(static_cast<std::size_t>(input.info.q_heads), head), tokens,
                       kBlock);
  }

 private:
  std::int64_t sinks_, local_, last_queries_;
};

std::vector<ParamSpec> declared(bool tri) {
  std::vector<ParamSpec> params = {
      {.name = "sinks",
       .default_value = std::int64_t{128},
       .help = "First tokens that every query sees, in whole blocks of 64",
       .unit = "tokens",
       .min = 0},
      {.name = "local",
       .default_value = std::int64_t{1024},
       .help = "Width of the local band, in whole blocks of 64 up to the diagonal block",
       .unit = "tokens",
       .min = 1}};
  if (tri) {
    params.push_back({.name = "last_queries",
                      .default_value = std::int64_t{128},
                      .help = "Last queries that see everything, in whole blocks of 64",
                      .unit = "tokens",
                      .min = 1});
  }
  return params;
}

}  // namespace

Method prefill_a_shape() {
  return {.info = {.name = "a_shape",
                   .slot = Slot::kPrefill,
                   .summary = "Keeps a stripe of first keys and a local band, in blocks of 64.",
                   .reference = "arXiv 2407.02490",
                   .params = declared(false),
                   .budget_param = "local"},
          .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
            return std::make_unique<AShape>(params.get_int("sinks"), params.get_int("local"), 0);
          }};
}

Method prefill_tri_shape() {
  return {.info = {.name = "tri_shape",
                   .slot = Slot::kPrefill,
                   .summary = "A-shape with full attention for the last queries of the prompt.",
                   .reference = "arXiv 2412.10319",
                   .params = declared(true),
                   .budget_param = "local"},
          .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
            return std::make_unique<AShape>(params.get_int("sinks"), params.get_int("local"),
                                            params.get_int("last_queries"));
          }};
}

}  // namespace lacuna
