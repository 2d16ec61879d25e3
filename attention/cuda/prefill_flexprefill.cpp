// FlexPrefill on the GPU: see methods/prefill_flexprefill.cpp.
#include <algorithm>
#include <limits>

#include "attention/cuda/flexprefill.h"
#include "attention/cuda/method_util.h"
#include "attention/methods/common.h"
#include "attention/methods/slash_lists.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

/// What the host must know of a choice, [q_heads] each, in one piece of device memory.
struct Tally {
  int heads;
  int* columns;     ///< kept
  int* offsets;     ///< kept
  int* not_finite;  ///< 1: scores that are not finite
  int* near_truth;  ///< 1: the head chooses blocks per query

  Tally(const CudaContext& context, int q_heads)
      : heads(q_heads),
        columns(take_flags(context, 4 * q_heads)),
        offsets(columns + q_heads),
        not_finite(columns + 2 * q_heads),
        near_truth(columns + 3 * q_heads) {}
};

class FlexPrefill final : public DeviceSelector {
 public:
  FlexPrefill(const Params& params, const CudaContext& context)
      : DeviceSelector(context),
        original_(params.get_string("variant") == "original"),
        block_(original_ ? kFlexOriginalBlock : kSlashRowBlock),
        alpha_(params.get_double("alpha")),
        tau_(params.get_double("tau")),
        min_budget_(params.get_int("min_budget")),
        window_(params.get_int("window")) {}

  DeviceTileLists select_on_device(const PrefillInput& input, AttentionCounts& counts) const override {
    const IndexSpan span(context_, counts);
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens, blocks = (tokens + block_ - 1) / block_;
    auto* column_sum = take<float>(context_, info.q_heads * tokens);
    auto* diagonal_sum = take<float>(context_, info.q_heads * tokens);
    const Tally tally(context_, info.q_heads);
    const auto window = static_cast<int>(window_);
    window_scores_cuda(
        input, window,
        {.column_sum = column_sum, .diagonal_sum = diagonal_sum, .not_finite = tally.not_finite},
        take_workspace(context_, window_scores_workspace_bytes(info, tokens, window, true)), context_.stream);

    BlockBits chosen{.words = (blocks + 31) / 32, .heads = info.q_heads, .tokens = tokens, .block = block_};
    std::uint32_t* bits = nullptr;
    if (original_ || tau_ > 0) {
      chosen.bits = bits = take<std::uint32_t>(context_, info.q_heads * blocks * chosen.words);
      if (tau_ > 0) choose_blocks(input, column_sum, blocks, bits, chosen.words, tally.near_truth);
    }
    SlashListsParams kept;
    kept.heads = info.q_heads;
    kept.tokens = tokens;
    kept.column_stride = kept.offset_stride = tokens;
    kept.column_counts = tally.columns;
    kept.offset_counts = tally.offsets;
    const TopKParams columns = best(column_sum, input, kSinkColumns, tally.columns);
    const TopKParams offsets = best(diagonal_sum, input, kLocalOffsets, tally.offsets);
    top_k_pair_cuda(columns, offsets,
                    take_workspace(context_, top_k_workspace_bytes(2 * info.q_heads, tokens, true)),
                    context_.stream);
    kept.columns = columns.indices;
    kept.offsets = offsets.indices;
    if (original_) slash_bits_cuda(kept, block_, tally.near_truth, bits, chosen.words, context_.stream);
    if (!original_ && tau_ > 0) {
      kept.by_bits = tally.near_truth;
      kept.bits = chosen.bits;
      kept.bit_words = chosen.words;
    }

    CudaWorkspace lists;
    if (!original_)
      lists = take_workspace(context_, slash_lists_workspace_bytes(info.q_heads, tokens, kept.offset_stride));
    const ListsPlan plan = plan_of(info, tokens, blocks, tally, counts);
    return make_lists(context_, info, plan, nullptr, [&](const TileListsOut& out) {
      if (original_) {
        block_lists_cuda(chosen, out, context_.stream);
      } else {
        slash_lists_cuda(kept, out, lists, context_.stream);
      }
    });
  }

 private:
  /// How much was kept decides how much memory lists and attention need.
  ListsPlan plan_of(const LayerInfo& info, std::int64_t tokens, std::int64_t blocks, const Tally& tally,
                    AttentionCounts& counts) const {
    const std::vector<int> sizes = download(context_, tally.columns, 4 * info.q_heads);
    const auto heads = static_cast<std::size_t>(info.q_heads);
    check_finite(info, {sizes.begin() + 2 * info.q_heads, sizes.begin() + 3 * info.q_heads});
    // slash_lists_cuda writes where columns begin even when all heads choose blocks and have none.
    ListsPlan plan{.tokens = tokens, .row_block = block_, .max_columns = original_ ? 0 : 1};
    for (std::size_t head = 0; head < heads; ++head) {
      counts.index_flops += window_scores_flops(info, tokens, window_);
      const std::int64_t columns = sizes[head], offsets = sizes[heads + head];
      const bool by_blocks = sizes[3 * heads + head] != 0;
      if (by_blocks) {
        counts.index_flops += static_cast<double>(blocks * (blocks + 1) / 2) * (2.0 * info.head_dim + 5.0);
      } else {
        counts.index_flops += selection_flops(tokens, columns + offsets);
        if (!original_) plan.max_columns = std::max(plan.max_columns, columns);
      }
      plan.max_ranges +=
          by_blocks || original_ ? most_block_ranges(blocks, blocks) : most_slash_ranges(tokens, offsets);
    }
    return plan;
  }

  /// Sets near_truth, and for the heads where it is 1 the bits: of the whole block map the smallest set with
  /// a share above alpha, the first and the diagonal block of every row, and at least min_budget tokens per
  /// row.
  void choose_blocks(const PrefillInput& input, const float* column_sum, std::int64_t blocks,
                     std::uint32_t* bits, std::int64_t words, int* near_truth) const {
    const LayerInfo& info = input.info;
    const std::int64_t dim = info.head_dim;
    auto* key_means = take<float>(context_, info.kv_heads * blocks * dim);
    auto* query_means = take<float>(context_, info.q_heads * blocks * dim);
    mean_blocks_cuda(input.k, block_, key_means, context_.stream);
    mean_blocks_cuda(input.q, block_, query_means, context_.stream);
    block_estimate_cuda(input,
                        {.column_sum = column_sum,
                         .rows = static_cast<int>(std::min(window_, input.q.tokens)),
                         .key_means = key_means,
                         .block = block_,
                         .tau = tau_,
                         .scratch = take<double>(context_, info.q_heads * (dim + 2 * blocks)),
                         .near_truth = near_truth},
                        context_.stream);

    const std::int64_t map_size = blocks * words * 32;
    if (map_size > std::numeric_limits<int>::max())
      throw_resource("flexprefill with tau: {} blocks make a map of more than 2^31 pairs; set tau to 0",
                     blocks);
    const int at_once = flex_maps_at_once(info.q_heads, blocks);
    BlockMapParams map;
    map.key_means = key_means;
    map.blocks = static_cast<int>(blocks);
    map.map_stride = words * 32;
    map.map = take<float>(context_, at_once * map_size);
    const CudaWorkspace search = take_workspace(context_, top_k_workspace_bytes(at_once, map_size, true));
    for (int first = 0; first < info.q_heads; first += at_once) {
      LayerInfo some = info;
      some.q_head_begin += first;
      some.q_heads = std::min(at_once, info.q_heads - first);
      map.query_means = query_means + first * blocks * dim;
      map.only_heads = near_truth + first;
      choose_from_map(some, map, bits + first * blocks * words, words, search);
    }
  }

  void choose_from_map(const LayerInfo& info, const BlockMapParams& map, std::uint32_t* bits,
                       std::int64_t words, CudaWorkspace search) const {
    const std::int64_t blocks = map.blocks;
    BlockChoiceParams rows;  // every row of the map by itself
    rows.scores = map.map;
    rows.score_stride = map.map_stride;
    rows.strip_rows = blocks;
    rows.only_heads = map.only_heads;
    rows.bits = bits;
    rows.row_blocks = map.blocks;
    rows.words = words;
    BlockChoiceParams least = rows;
    least.count = static_cast<int>(std::min(blocks, (min_budget_ + block_ - 1) / block_));
    block_map_scores_cuda(info, map, context_.stream);
    choose_blocks_cuda(least, info.q_heads, map.blocks, context_.stream);
    block_map_softmax_cuda(info, map, context_.stream);
    BlockChoiceParams always = rows;
    always.mass = 0;  // nothing but the forced ones
    always.force_first = always.force_last = 1;
    always.add = true;
    choose_blocks_cuda(always, info.q_heads, map.blocks, context_.stream);
    TopKParams share;  // the map as one long row
    share.scores = map.map;
    share.score_stride = blocks * map.map_stride;
    share.rows = info.q_heads;
    share.n = static_cast<int>(share.score_stride);
    share.mass = alpha_;
    share.mass_total = static_cast<double>(blocks);
    share.only_rows = map.only_heads;
    share.bits = bits;
    share.bit_words = blocks * words;
    top_k_cuda(share, search, context_.stream);
  }

  /// The smallest prefix of the sorted distribution with mass above alpha, at least min_budget; of that many,
  /// the first `first` entries are always there.
  TopKParams best(const float* sums, const PrefillInput& input, int first, std::int32_t* counts) const {
    const std::int64_t tokens = input.q.tokens;
    TopKParams top;
    top.scores = sums;
    top.score_stride = tokens;
    top.rows = input.info.q_heads;
    top.n = static_cast<int>(tokens);
    top.k = static_cast<int>(std::min(tokens, min_budget_));
    top.first = first;
    top.mass = alpha_;
    top.mass_total = static_cast<double>(std::min(window_, tokens));
    top.indices = take<std::int32_t>(context_, input.info.q_heads * tokens);
    top.index_stride = tokens;
    top.counts = counts;
    return top;
  }

  bool original_;
  int block_;
  double alpha_, tau_;
  std::int64_t min_budget_, window_;
};

}  // namespace

int flex_maps_at_once(int heads, std::int64_t blocks) {
  constexpr std::int64_t kMapBytes = std::int64_t{256} << 20;
  const std::int64_t map_size = blocks * ((blocks + 31) / 32 * 32);
  const std::int64_t fitting = kMapBytes / (map_size * static_cast<std::int64_t>(sizeof(float)));
  return static_cast<int>(std::clamp<std::int64_t>(fitting, 1, heads));
}

std::unique_ptr<CudaPrefillSelector> make_cuda_flexprefill(const MethodSpec& spec,
                                                           const CudaContext& context) {
  return std::make_unique<FlexPrefill>(spec.params, context);
}

}  // namespace lacuna
