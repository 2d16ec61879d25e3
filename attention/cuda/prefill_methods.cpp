// Prefill selectors on the GPU. index_seconds is the stream's own time from the first launch to the end of
// the choice (see IndexSpan); for lists that follow from positions, the host's time to make them and the
// upload.
#include "attention/cuda/prefill_methods.h"

#include <algorithm>

#include "attention/cuda/method_util.h"
#include "attention/methods/common.h"
#include "attention/methods/slash_lists.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

/// Lists that follow from positions alone: made on the CPU, sent to the device.
class PositionSelector final : public DeviceSelector {
 public:
  PositionSelector(const MethodSpec& spec, const CudaContext& context)
      : DeviceSelector(context), cpu_(make_prefill_selector(spec)) {}

  DeviceTileLists select_on_device(const PrefillInput& input, AttentionCounts& counts) const override {
    TileLists lists;
    cpu_->select(input, lists, counts);
    if (lists.dense) return upload_tile_lists(lists, *context_.scratch, context_.stream);
    const IndexSpan span(context_, counts);
    return upload_tile_lists(lists, *context_.scratch, context_.stream);
  }

 private:
  std::unique_ptr<PrefillSelector> cpu_;
};

class VerticalSlash final : public DeviceSelector {
 public:
  VerticalSlash(const Params& params, const CudaContext& context)
      : DeviceSelector(context),
        verticals_(params.get_int("verticals")),
        slashes_(params.get_int("slashes")),
        window_(params.get_int("window")),
        exact_(params.get_string("tiles") == "exact") {}

  DeviceTileLists select_on_device(const PrefillInput& input, AttentionCounts& counts) const override {
    const IndexSpan span(context_, counts);
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens;
    const std::int64_t columns =
        std::min<std::int64_t>(tokens, std::max<std::int64_t>(verticals_, kSinkColumns));
    const std::int64_t offsets =
        std::min<std::int64_t>(tokens, std::max<std::int64_t>(slashes_, kLocalOffsets));
    auto* column_sum = take<float>(context_, info.q_heads * tokens);
    auto* diagonal_sum = take<float>(context_, info.q_heads * tokens);
    int* not_finite = take_flags(context_, info.q_heads);
    const auto window = static_cast<int>(window_);
    window_scores_cuda(
        input, window, {.column_sum = column_sum, .diagonal_sum = diagonal_sum, .not_finite = not_finite},
        take_workspace(context_, window_scores_workspace_bytes(info, tokens, window, true)), context_.stream);

    SlashListsParams kept;
    kept.heads = info.q_heads;
    kept.tokens = tokens;
    kept.exact = exact_;
    kept.column_stride = columns;
    kept.offset_stride = offsets;
    std::int32_t *column_counts = take<std::int32_t>(context_, info.q_heads),
                 *offset_counts = take<std::int32_t>(context_, info.q_heads);
    TopKParams vertical = best(column_sum, info.q_heads, tokens, columns, kSinkColumns, column_counts);
    TopKParams slash = best(diagonal_sum, info.q_heads, tokens, offsets, kLocalOffsets, offset_counts);
    top_k_pair_cuda(vertical, slash,
                    take_workspace(context_, top_k_workspace_bytes(2 * info.q_heads, tokens, false)),
                    context_.stream);
    kept.columns = vertical.indices;
    kept.column_counts = column_counts;
    kept.offsets = slash.indices;
    kept.offset_counts = offset_counts;

    counts.index_flops += info.q_heads * (window_scores_flops(info, tokens, window_) +
                                          selection_flops(tokens, columns + offsets));
    const CudaWorkspace lists =
        take_workspace(context_, slash_lists_workspace_bytes(info.q_heads, tokens, offsets));
    return make_lists(context_, info,
                      {.tokens = tokens,
                       .row_block = kSlashRowBlock,
                       .max_ranges = info.q_heads * most_slash_ranges(tokens, offsets),
                       .max_columns = columns},
                      not_finite,
                      [&](const TileListsOut& out) { slash_lists_cuda(kept, out, lists, context_.stream); });
  }

 private:
  /// The first `first` entries and the best others, `k` in all.
  TopKParams best(const float* scores, int heads, std::int64_t tokens, std::int64_t k, int first,
                  std::int32_t* counts) const {
    TopKParams top;
    top.scores = scores;
    top.score_stride = tokens;
    top.rows = heads;
    top.n = static_cast<int>(tokens);
    top.k = static_cast<int>(k);
    top.first = first;
    top.index_stride = k;
    top.counts = counts;
    top.indices = take<std::int32_t>(context_, heads * k);
    return top;
  }

  std::int64_t verticals_, slashes_, window_;
  bool exact_;
};

class BlockSparse final : public DeviceSelector {
 public:
  BlockSparse(const Params& params, const CudaContext& context)
      : DeviceSelector(context),
        block_(static_cast<int>(params.get_int("chunk_size"))),
        top_(params.get_int("top_chunks")) {}

  DeviceTileLists select_on_device(const PrefillInput& input, AttentionCounts& counts) const override {
    const IndexSpan span(context_, counts);
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens, blocks = (tokens + block_ - 1) / block_;
    const auto top = static_cast<int>(std::min(blocks, std::max<std::int64_t>(top_, 3)));
    const CudaWorkspace workspace =
        take_workspace(context_, block_sparse_workspace_bytes(info, tokens, block_, top));
    int* not_finite = take_flags(context_, info.q_heads);
    const auto rows = static_cast<double>(blocks);
    counts.index_flops += info.q_heads * (2.0 * info.head_dim * rows * (rows + 1) / 2) +
                          (info.q_heads + info.kv_heads) * static_cast<double>(tokens) * info.head_dim;
    return make_lists(
        context_, info,
        {.tokens = tokens, .row_block = block_, .max_ranges = info.q_heads * most_block_ranges(blocks, top)},
        not_finite, [&](const TileListsOut& out) {
          block_sparse_lists_cuda(input, block_, top, out, workspace, context_.stream, not_finite);
        });
  }

 private:
  int block_;
  std::int64_t top_;
};

}  // namespace

std::unique_ptr<CudaPrefillSelector> make_cuda_prefill_selector(const MethodSpec& spec, CudaContext context) {
  find_method(Slot::kPrefill, spec.method, "prefill");
  for (const char* name : {"dense", "a_shape", "tri_shape", "streaming", "random"}) {
    if (spec.method == name) return std::make_unique<PositionSelector>(spec, context);
  }
  if (spec.method == "vertical_slash") return std::make_unique<VerticalSlash>(spec.params, context);
  if (spec.method == "block_sparse") return std::make_unique<BlockSparse>(spec.params, context);
  if (spec.method == "flexprefill") return make_cuda_flexprefill(spec, context);
  if (spec.method == "xattention" || spec.method == "oracle_top_k" || spec.method == "oracle_top_p")
    return make_cuda_block_selector(spec, context);
  throw_usage("prefill {} is not available on CUDA yet; use device cpu", spec.method);
}

}  // namespace lacuna
