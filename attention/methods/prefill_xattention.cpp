// XAttention (arXiv 2503.16428): sums of scores along antidiagonals of stride x stride squares estimate the
// attention between blocks; per query block the fewest key blocks that hold a share of it stay.
#include <algorithm>
#include <cmath>

#include "attention/cpu/kernels.h"
#include "attention/methods/block_choice.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

class XAttention final : public PrefillSelector {
 public:
  explicit XAttention(const Params& params)
      : block_(static_cast<int>(params.get_int("block"))),
        stride_(static_cast<int>(params.get_int("stride"))),
        rule_(BlockRule::top_p(params.get_double("threshold"))) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    std::vector<HeadLists> heads(static_cast<std::size_t>(input.info.q_heads));
    for_each(input.threads, std::ssize(heads), [&](std::int64_t head) {
      heads[static_cast<std::size_t>(head)] = select_head(input, static_cast<int>(head));
    });
    lists = join_lists(std::move(heads), input.q.tokens, block_);
    const double groups = std::ceil(static_cast<double>(input.q.tokens) / stride_);
    counts.index_flops +=
        input.info.q_heads * groups * (groups + 1) / 2 * (2.0 * stride_ * input.info.head_dim + 5.0);
  }

 private:
  /// [groups][stride * head_dim]: the rows of each group of `stride` tokens side by side, last first when
  /// `reversed`. Missing rows of the last group are zero.
  std::vector<float> fold(const HeadsView& x, int head, bool reversed) const {
    const std::int64_t groups = (x.tokens + stride_ - 1) / stride_;
    std::vector<float> folded(static_cast<std::size_t>(groups * stride_ * x.head_dim));
    for (std::int64_t t = 0; t < x.tokens; ++t) {
      const std::int64_t slot = reversed ? stride_ - 1 - t % stride_ : t % stride_;
      std::copy_n(x.row(head, t), x.head_dim, folded.data() + (t / stride_ * stride_ + slot) * x.head_dim);
    }
    return folded;
  }

  HeadLists select_head(const PrefillInput& input, int head) const {
    const LayerInfo& info = input.info;
    const CpuKernels& kernels = cpu_kernels();
    const int width = stride_ * info.head_dim;
    const std::vector<float> q = fold(input.q, head, true);
    const std::vector<float> k = fold(input.k, info.kv_head_of(head), false);
    const std::int64_t groups = std::ssize(q) / width;
    const std::int64_t per_block = block_ / stride_;
    std::vector<float> scores(static_cast<std::size_t>(std::min(per_block, groups) * groups));
    std::vector<float> pack(static_cast<std::size_t>(kernels.pack_size(width)));
    HeadLists lists;
    for (std::int64_t begin = 0; begin < groups; begin += per_block) {
      const std::int64_t end = std::min(begin + per_block, groups);
      kernels.gemm_nt(end - begin, end, width, info.scale / static_cast<float>(stride_),
                      q.data() + begin * width, width, k.data(), width, scores.data(), groups, pack.data());
      std::vector<double> mass(static_cast<std::size_t>(begin / per_block + 1));
      for (std::int64_t row = begin; row < end; ++row) {
        float* s = scores.data() + (row - begin) * groups;
        const double sum = kernels.exp_sum(s, row + 1, kernels.maximum(s, row + 1));
        if (!std::isfinite(sum)) throw_not_finite(info, head);
        for (std::int64_t b = 0; b * per_block <= row; ++b) {
          double part = 0;
          for (std::int64_t j = b * per_block; j <= std::min(row, (b + 1) * per_block - 1); ++j)
            part += static_cast<double>(s[j]);
          mass[static_cast<std::size_t>(b)] += part / sum;
        }
      }
      add_blocks(rule_.choose(mass, true), block_, input.q.tokens, lists);
    }
    return lists;
  }

  int block_, stride_;
  BlockRule rule_;
};

}  // namespace

Method prefill_xattention() {
  return {
      .info = {.name = "xattention",
               .slot = Slot::kPrefill,
               .summary =
                   "Keeps, per block of queries, the fewest key blocks that hold a share of the attention "
                   "estimated from antidiagonal sums.",
               .reference = "arXiv 2503.16428",
               .params = {{.name = "threshold",
                           .default_value = 0.9,
                           .help =
                               "Share of a query block's estimated attention that is kept; the first and the "
                               "diagonal block are always kept",
                           .unit = "probability",
                           .min = 0,
                           .max = 1},
                          {.name = "stride",
                           .default_value = std::int64_t{8},
                           .help = "Side of the squares whose antidiagonal is summed",
                           .unit = "tokens",
                           .choices = {"4", "8", "16"}},
                          block_param(128)},
               .budget_param = "threshold"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<XAttention>(params);
      }};
}

}  // namespace lacuna
