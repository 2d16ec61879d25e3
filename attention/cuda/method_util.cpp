#include "attention/cuda/method_util.h"

#include <algorithm>

#include "attention/methods/common.h"
#include "attention/methods/slash_lists.h"

namespace lacuna {

namespace {

/// Ranges for which room is made at once whatever their number turns out to be: 64 MiB.
constexpr std::int64_t kRangesAtOnce = std::int64_t{8} << 20;

}  // namespace

CudaWorkspace take_workspace(const CudaContext& context, std::size_t bytes) {
  return {.data = context.scratch->take(bytes), .bytes = bytes};
}

int* take_flags(const CudaContext& context, std::int64_t count) {
  int* flags = take<int>(context, count);
  LACUNA_CUDA(cudaMemsetAsync(flags, 0, static_cast<std::size_t>(count) * sizeof(int), context.stream));
  return flags;
}

IndexSpan::IndexSpan(const CudaContext& context, AttentionCounts& counts)
    : stream_(context.stream), counts_(counts) {
  begin_.record(stream_);
}
IndexSpan::~IndexSpan() {
  try {
    end_.record(stream_);
    end_.synchronize();
    counts_.index_seconds += static_cast<double>(end_.since(begin_)) * 1e-3;
  } catch (const Error&) {
    // The next call on the stream tells.
  }
}

void check_finite(const LayerInfo& info, const std::vector<int>& not_finite) {
  for (std::size_t head = 0; head < not_finite.size(); ++head) {
    if (not_finite[head] != 0) throw_not_finite(info, static_cast<int>(head));
  }
}

std::int64_t most_block_ranges(std::int64_t rows, std::int64_t most) {
  std::int64_t ranges = 0;
  for (std::int64_t i = 0; i < rows; ++i) ranges += std::min(most, i / 2 + 1);
  return ranges;
}

std::int64_t most_slash_ranges(std::int64_t tokens, std::int64_t offsets) {
  std::int64_t ranges = 0;
  for (std::int64_t end = kSlashRowBlock; end < tokens + kSlashRowBlock; end += kSlashRowBlock)
    ranges += std::min(offsets, end / (kSlashRowBlock + 1) + 1);
  return ranges;
}

std::int64_t first_ranges(const ListsPlan& plan) {
  return std::min(plan.max_ranges, std::max(kRangesAtOnce, plan.max_ranges / 4));
}

DeviceTileLists make_lists(const CudaContext& context, const LayerInfo& info, const ListsPlan& plan,
                           const int* not_finite, const std::function<void(const TileListsOut&)>& enqueue) {
  DeviceTileLists lists;
  lists.heads = info.q_heads;
  lists.tokens = plan.tokens;
  lists.row_block = plan.row_block;
  lists.max_columns = static_cast<int>(plan.max_columns);
  TileListsOut out;
  out.range_begin = take<std::int64_t>(context, lists.heads * lists.row_blocks() + 1);
  if (plan.max_columns > 0) {
    out.columns = take<std::int32_t>(context, lists.heads * plan.max_columns);
    out.column_begin = take<std::int64_t>(context, lists.heads + 1);
  }
  out.max_ranges = first_ranges(plan);
  for (;;) {
    out.ranges = take<KeyRange>(context, out.max_ranges);
    out.overflow = take_flags(context, 1);
    enqueue(out);
    std::vector<int> flags(static_cast<std::size_t>(not_finite != nullptr ? lists.heads : 0));
    if (!flags.empty())
      LACUNA_CUDA(cudaMemcpyAsync(flags.data(), not_finite, flags.size() * sizeof(int),
                                  cudaMemcpyDeviceToHost, context.stream));
    const int overflow = download(context, out.overflow, 1).front();
    check_finite(info, flags);
    if (overflow == 0) break;
    LACUNA_CHECK(out.max_ranges < plan.max_ranges, "more than {} key ranges", plan.max_ranges);
    out.max_ranges = std::min(plan.max_ranges, 2 * out.max_ranges);
  }
  lists.ranges = out.ranges;
  lists.range_begin = out.range_begin;
  lists.columns = out.columns;
  lists.column_begin = out.column_begin;
  return lists;
}

void DeviceSelector::select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const {
  const DeviceTileLists made = select_on_device(input, counts);
  lists = {.heads = made.heads, .tokens = made.tokens, .row_block = made.row_block, .dense = made.dense};
  if (made.dense) return;
  lists.range_begin = download(context_, made.range_begin, made.heads * made.row_blocks() + 1);
  lists.ranges = download(context_, made.ranges, lists.range_begin.back());
  if (made.column_begin != nullptr) {
    lists.column_begin = download(context_, made.column_begin, made.heads + 1);
    lists.columns = download(context_, made.columns, lists.column_begin.back());
  } else {
    lists.column_begin.assign(static_cast<std::size_t>(made.heads) + 1, 0);
  }
}

}  // namespace lacuna
