// Oracles: the exact attention of every row decides which blocks stay. They cost as much as dense attention
// and show what a budget could keep at best: the rest of a method's loss is its estimator's.
#include <algorithm>
#include <cmath>

#include "attention/cpu/kernels.h"
#include "attention/methods/block_choice.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class Oracle final : public PrefillSelector {
 public:
  Oracle(int block, BlockRule rule) : block_(block), rule_(rule) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    std::vector<HeadLists> heads(static_cast<std::size_t>(input.info.q_heads));
    for_each(input.threads, std::ssize(heads), [&](std::int64_t head) {
      heads[static_cast<std::size_t>(head)] = select_head(input, static_cast<int>(head));
    });
    lists = join_lists(std::move(heads), input.q.tokens, block_);
    const auto tokens = static_cast<double>(input.q.tokens);
    counts.index_flops +=
        input.info.q_heads * tokens * (tokens + block_) / 2 * (2.0 * input.info.head_dim + 5.0);
  }

 private:
  HeadLists select_head(const PrefillInput& input, int head) const {
    const LayerInfo& info = input.info;
    const CpuKernels& kernels = cpu_kernels();
    const std::int64_t tokens = input.q.tokens;
    const int kv = info.kv_head_of(head);
    std::vector<float> scores(static_cast<std::size_t>(std::min<std::int64_t>(block_, tokens) * tokens));
    std::vector<float> pack(static_cast<std::size_t>(kernels.pack_size(info.head_dim)));
    HeadLists lists;
    for (std::int64_t begin = 0; begin < tokens; begin += block_) {
      const std::int64_t end = std::min(begin + block_, tokens);
      kernels.gemm_nt(end - begin, end, info.head_dim, info.scale, input.q.row(head, begin),
                      input.q.token_stride, input.k.row(kv, 0), input.k.token_stride, scores.data(), tokens,
                      pack.data());
      std::vector<double> mass(static_cast<std::size_t>(begin / block_ + 1));
      for (std::int64_t row = begin; row < end; ++row) {
        add_row(input, head, scores.data() + (row - begin) * tokens, row, mass);
      }
      add_blocks(rule_.choose(mass, false), block_, tokens, lists);
    }
    return lists;
  }

  /// Adds the weights of one row, block by block.
  void add_row(const PrefillInput& input, int head, float* s, std::int64_t row,
               std::vector<double>& mass) const {
    const LayerInfo& info = input.info;
    const std::int64_t first = info.window > 0 ? std::max<std::int64_t>(0, row - info.window + 1) : 0;
    const std::int64_t n = row + 1 - first;
    if (info.softcap > 0) {
      for (std::int64_t j = first; j <= row; ++j) s[j] = info.softcap * std::tanh(s[j] / info.softcap);
    }
    const CpuKernels& kernels = cpu_kernels();
    const double sum = kernels.exp_sum(s + first, n, kernels.maximum(s + first, n));
    if (!std::isfinite(sum)) throw_not_finite(info, head);
    for (std::int64_t begin = first / block_ * block_; begin <= row; begin += block_) {
      double part = 0;
      for (std::int64_t j = std::max(begin, first); j <= std::min(row, begin + block_ - 1); ++j)
        part += static_cast<double>(s[j]);
      mass[static_cast<std::size_t>(begin / block_)] += part / sum;
    }
  }

  int block_;
  BlockRule rule_;
};

}  // namespace

Method prefill_oracle_top_k() {
  return {
      .info = {.name = "oracle_top_k",
               .slot = Slot::kPrefill,
               .summary = "Keeps, per block of queries, the key blocks with the most exact attention.",
               .reference = "control",
               .params = {block_param(64),
                          {.name = "top_k",
                           .default_value = std::int64_t{32},
                           .help = "Key blocks kept per query block; the diagonal one is always among them",
                           .unit = "blocks",
                           .min = 1}},
               .budget_param = "top_k"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<Oracle>(static_cast<int>(params.get_int("block")),
                                        BlockRule::top_k(params.get_int("top_k")));
      }};
}

Method prefill_oracle_top_p() {
  return {
      .info =
          {.name = "oracle_top_p",
           .slot = Slot::kPrefill,
           .summary =
               "Keeps, per block of queries, the fewest key blocks that hold a share of the exact attention.",
           .reference = "control",
           .params =
               {block_param(64),
                {.name = "top_p",
                 .default_value = 0.95,
                 .help = "Share of a query block's attention that is kept; the diagonal block is always kept",
                 .unit = "probability",
                 .min = 0,
                 .max = 1}},
           .budget_param = "top_p"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<Oracle>(static_cast<int>(params.get_int("block")),
                                        BlockRule::top_p(params.get_double("top_p")));
      }};
}

}  // namespace lacuna
