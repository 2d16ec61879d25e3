// Block-Sparse (MInference, arXiv 2407.02490; rules of arXiv 2504.17768): blocks of mean-pooled queries
// against blocks of mean-pooled keys.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/cpu/kernels.h"
#include "attention/methods/common.h"
#include "attention/methods/pooling.h"
#include "attention/methods/registry.h"

namespace lacuna {

namespace {

constexpr std::int64_t kStripBlocks = 64;  // query blocks whose scores are held at once

class BlockSparse final : public PrefillSelector {
 public:
  explicit BlockSparse(const Params& params)
      : block_(static_cast<int>(params.get_int("chunk_size"))), top_(params.get_int("top_chunks")) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    const LayerInfo& info = input.info;
    std::vector<std::vector<float>> pooled_keys(static_cast<std::size_t>(info.kv_heads));
    for_each(input.threads, info.kv_heads, [&](std::int64_t head) {
      pooled_keys[static_cast<std::size_t>(head)] = mean_pool(input.k, static_cast<int>(head), block_);
    });
    std::vector<HeadLists> heads(static_cast<std::size_t>(info.q_heads));
    for_each(input.threads, info.q_heads, [&](std::int64_t head) {
      const auto& keys = pooled_keys[static_cast<std::size_t>(info.kv_head_of(static_cast<int>(head)))];
      heads[static_cast<std::size_t>(head)] = select_head(input, static_cast<int>(head), keys);
    });
    lists = join_lists(std::move(heads), input.q.tokens, block_);
    const auto blocks = static_cast<double>(lists.row_blocks());
    counts.index_flops +=
        info.q_heads * (2.0 * info.head_dim * blocks * (blocks + 1) / 2) +
        (info.q_heads + info.kv_heads) * static_cast<double>(input.q.tokens) * info.head_dim;
  }

 private:
  HeadLists select_head(const PrefillInput& input, int head, const std::vector<float>& keys) const {
    const CpuKernels& kernels = cpu_kernels();
    const int dim = input.info.head_dim;
    const std::vector<float> queries = mean_pool(input.q, head, block_);
    const std::int64_t blocks = std::ssize(queries) / dim;
    std::vector<float> scores(static_cast<std::size_t>(std::min(kStripBlocks, blocks) * blocks));
    std::vector<float> pack(static_cast<std::size_t>(kernels.pack_size(dim)));
    HeadLists lists;
    for (std::int64_t begin = 0; begin < blocks; begin += kStripBlocks) {
      const std::int64_t end = std::min(begin + kStripBlocks, blocks);
      kernels.gemm_nt(end - begin, end, dim, 1.0f, queries.data() + begin * dim, dim, keys.data(), dim,
                      scores.data(), blocks, pack.data());
      for (std::int64_t row = begin; row < end; ++row) {
        const std::span<float> causal(scores.data() + (row - begin) * blocks,
                                      static_cast<std::size_t>(row + 1));
        lists.begin_block();
        add_best(input, head, causal, lists);
      }
    }
    return lists;
  }

  /// The first block, the last two and the best others: top_ in all, and at least those three.
  void add_best(const PrefillInput& input, int head, std::span<float> scores, HeadLists& lists) const {
    for (const float s : scores) {
      if (!std::isfinite(s)) throw_not_finite(input.info, head);
    }
    const std::int64_t n = std::ssize(scores);
    const auto always = std::numeric_limits<float>::infinity();
    scores.front() = scores.back() = always;
    if (n >= 2) scores[static_cast<std::size_t>(n - 2)] = always;
    for (const std::int32_t block :
         top_indices(std::span<const float>(scores), std::max(top_, std::min<std::int64_t>(3, n)))) {
      const std::int64_t start = std::int64_t{block} * block_;
      lists.add(start, std::min(start + block_, input.q.tokens));
    }
  }

  int block_;
  std::int64_t top_;
};

}  // namespace

Method prefill_block_sparse() {
  return {
      .info =
          {.name = "block_sparse",
           .slot = Slot::kPrefill,
           .summary =
               "Keeps, per block of queries, the key blocks whose mean key agrees best with the mean query.",
           .reference = "arXiv 2407.02490",
           .params = {{.name = "chunk_size",
                       .default_value = std::int64_t{16},
                       .help = "Rows and columns of a block",
                       .unit = "tokens",
                       .choices = {"16", "32", "64", "128"}},
                      {.name = "top_chunks",
                       .default_value = std::int64_t{108},
                       .help =
                           "Key blocks kept per query block; the first, the diagonal one and the one before "
                           "it are always among them",
                       .unit = "blocks",
                       .min = 1}},
           .budget_param = "top_chunks"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<BlockSparse>(params);
      }};
}

}  // namespace lacuna
