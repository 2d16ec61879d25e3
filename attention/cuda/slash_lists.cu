// From kept columns and diagonals to tile lists.
//
// What the rows [m, m + 64) ask for is, relative to m, the same for every m, but for where the walk over the
// offsets begins and for keys before the first. So the offsets of a head are walked once; a row block walks
// only until one of its ranges begins where one of the head's does, and copies the head's from there on.
#include <algorithm>
#include <climits>

#include "attention/cuda/list_scan.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kBlock = 64;  ///< rows of a block and keys that an offset asks for
constexpr int kThreads = 128;
constexpr int kSharedOffsets = 8192;
constexpr int kRemembered = 2;

/// What a row block visits: its own first ranges, then the head's from `tail` on.
struct RowPlan {
  int own, tail;
  KeyRange ranges[kRemembered];  ///< the first of its own
};

struct SlashSpace {
  KeyRange* relative;  ///< [heads, most_ranges]: start - m and width
  int* relative_count;
  int* range_of;  ///< [heads, offset_stride]: the range of the head that begins at this offset, or -1
  RowPlan* rows;  ///< [heads, row blocks]
  int most_ranges, row_blocks;
};

/// How many of the `count` ascending offsets are below `bound`; near the end at first.
__device__ int offsets_below(const std::int32_t* offsets, int count, int bound) {
  int high = count, step = 1;
  while (high - step >= 0 && offsets[high - step] >= bound) high -= step, step *= 2;
  int low = max(high - step, -1) + 1;  // before low all are below, from high on none is
  while (low < high) {
    const int middle = (low + high) / 2;
    if (offsets[middle] < bound) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// The range that begins at offsets[next - 1], and next behind what it takes; the rule of
/// methods/slash_lists.h. Keys before `first_key` are not asked for.
__device__ KeyRange take_range(const std::int32_t* offsets, int& next, int m, int first_key, bool exact) {
  const int start = max(m - offsets[next - 1], first_key);
  int end = start + kBlock;
  for (--next;;) {
    next = offsets_below(offsets, next, m + kBlock - end);  // the others end inside the range
    if (next == 0) break;
    const int asked = max(m - offsets[next - 1], first_key);
    if (asked > end) break;
    end = exact ? asked + kBlock : end + kBlock;
  }
  return {start, end - start};
}

/// One block per head; one thread walks, when it can in shared memory.
__global__ void relative_ranges_kernel(const __grid_constant__ SlashListsParams params,
                                       const __grid_constant__ SlashSpace space) {
  __shared__ std::int32_t copy[kSharedOffsets];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (params.by_bits != nullptr && params.by_bits[head] != 0) return;
  const std::int32_t* offsets = params.offsets + head * params.offset_stride;
  const int count = params.offset_counts[head];
  int* range_of = space.range_of + head * params.offset_stride;
  for (int i = thread; i < count; i += kThreads) {
    range_of[i] = -1;
    if (count <= kSharedOffsets) copy[i] = offsets[i];
  }
  __syncthreads();
  if (thread != 0) return;
  if (count <= kSharedOffsets) offsets = copy;
  KeyRange* to = space.relative + static_cast<std::int64_t>(head) * space.most_ranges;
  int ranges = 0;
  for (int next = count; next > 0; ++ranges) {
    range_of[next - 1] = ranges;
    to[ranges] = take_range(offsets, next, 0, INT_MIN, params.exact);
  }
  space.relative_count[head] = ranges;
}

__device__ KeyRange clipped(KeyRange range, int limit) {
  return {range.start, min(range.start + range.width, limit) - range.start};
}

/// Walks a row block's own ranges; emit(i, range).
template <class Emit>
__device__ RowPlan walk_row(const SlashListsParams& params, const SlashSpace& space, int head, int m,
                            const Emit& emit) {
  const std::int32_t* offsets = params.offsets + head * params.offset_stride;
  const int* range_of = space.range_of + head * params.offset_stride;
  const int limit = min(m + kBlock, static_cast<int>(params.tokens));
  RowPlan plan{0, space.relative_count[head], {}};
  for (int next = offsets_below(offsets, params.offset_counts[head], m + kBlock); next > 0; ++plan.own) {
    if (offsets[next - 1] <= m && range_of[next - 1] >= 0) {
      plan.tail = range_of[next - 1];
      break;
    }
    emit(plan.own, clipped(take_range(offsets, next, m, 0, params.exact), limit));
  }
  return plan;
}

/// One thread per row block.
__global__ void plan_rows_kernel(const __grid_constant__ SlashListsParams params,
                                 const __grid_constant__ SlashSpace space, std::int64_t* range_begin) {
  const int block = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  if (block >= space.row_blocks) return;
  const std::int64_t slot = static_cast<std::int64_t>(head) * space.row_blocks + block;
  if (params.by_bits != nullptr && params.by_bits[head] != 0) {
    range_begin[slot + 1] = count_runs(params.bits + slot * params.bit_words, block + 1);
    return;
  }
  KeyRange first[kRemembered] = {};
  RowPlan plan = walk_row(params, space, head, block * kBlock, [&](int i, KeyRange range) {
#pragma unroll
    for (int j = 0; j < kRemembered; ++j)
      if (i == j) first[j] = range;
  });
#pragma unroll
  for (int j = 0; j < kRemembered; ++j) plan.ranges[j] = first[j];
  space.rows[slot] = plan;
  range_begin[slot + 1] = plan.own + space.relative_count[head] - plan.tail;
}

/// One warp per row block.
__global__ void write_rows_kernel(const __grid_constant__ SlashListsParams params,
                                  const __grid_constant__ SlashSpace space,
                                  const __grid_constant__ TileListsOut out) {
  const int warp = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) >> 5);
  const int lane = static_cast<int>(threadIdx.x) & 31, head = static_cast<int>(blockIdx.y);
  if (warp >= space.row_blocks) return;
  const std::int64_t slot = static_cast<std::int64_t>(head) * space.row_blocks + warp;
  const std::int64_t begin = out.range_begin[slot];
  const auto emit = [&](std::int64_t i, KeyRange range) {
    if (begin + i < out.max_ranges) out.ranges[begin + i] = range;
  };
  const auto tokens = static_cast<int>(params.tokens);
  if (params.by_bits != nullptr && params.by_bits[head] != 0) {
    warp_runs(params.bits + slot * params.bit_words, warp + 1, [&](int i, int start, int end) {
      emit(i, {start * kBlock, min(end * kBlock, tokens) - start * kBlock});
    });
    return;
  }
  const int m = warp * kBlock, limit = min(m + kBlock, tokens);
  const RowPlan plan = space.rows[slot];
  if (plan.own > kRemembered) {
    if (lane == 0) walk_row(params, space, head, m, emit);
  } else {
#pragma unroll
    for (int j = 0; j < kRemembered; ++j)
      if (lane == j && j < plan.own) emit(j, plan.ranges[j]);
  }
  const KeyRange* relative = space.relative + static_cast<std::int64_t>(head) * space.most_ranges;
  const int count = space.relative_count[head];
  for (int i = plan.tail + lane; i < count; i += 32)
    emit(plan.own + i - plan.tail, clipped({m + relative[i].start, relative[i].width}, limit));
}

__global__ void place_columns_kernel(const __grid_constant__ SlashListsParams params,
                                     std::int64_t* column_begin) {
  std::int64_t at = 0;
  column_begin[0] = 0;
  for (int head = 0; head < params.heads; ++head) {
    if (params.by_bits == nullptr || params.by_bits[head] == 0) at += params.column_counts[head];
    column_begin[head + 1] = at;
  }
}
__global__ void copy_columns_kernel(const __grid_constant__ SlashListsParams params,
                                    const __grid_constant__ TileListsOut out) {
  const int head = static_cast<int>(blockIdx.y);
  const auto count = static_cast<int>(out.column_begin[head + 1] - out.column_begin[head]);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x))
    out.columns[out.column_begin[head] + i] = params.columns[head * params.column_stride + i];
}

struct Layout {
  int row_blocks, most_ranges;
  std::size_t relative, relative_count, range_of, rows, total = 0;

  Layout(int head_count, std::int64_t tokens, std::int64_t offset_stride) {
    row_blocks = static_cast<int>((tokens + kBlock - 1) / kBlock);
    // Ranges are at least 64 wide and do not touch; the first may begin anywhere.
    most_ranges = static_cast<int>(std::min(offset_stride, tokens / (kBlock + 1) + 2));
    const auto heads = static_cast<std::size_t>(head_count);
    relative = take(heads * static_cast<std::size_t>(most_ranges) * sizeof(KeyRange));
    relative_count = take(heads * sizeof(int));
    range_of = take(heads * static_cast<std::size_t>(offset_stride) * sizeof(int));
    rows = take(heads * static_cast<std::size_t>(row_blocks) * sizeof(RowPlan));
  }

 private:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = total;
    total += (bytes + 255) / 256 * 256;
    return at;
  }
};

}  // namespace

std::size_t slash_lists_workspace_bytes(int heads, std::int64_t tokens, std::int64_t offset_stride) {
  return Layout(heads, tokens, offset_stride).total;
}

void slash_lists_cuda(const SlashListsParams& params, const TileListsOut& out, CudaWorkspace workspace,
                      cudaStream_t stream) {
  const Layout layout(params.heads, params.tokens, params.offset_stride);
  if (workspace.bytes < layout.total)
    throw_cuda(cudaErrorMemoryAllocation, "slash lists: workspace too small");
  auto* base = static_cast<unsigned char*>(workspace.data);
  const SlashSpace space{reinterpret_cast<KeyRange*>(base + layout.relative),
                         reinterpret_cast<int*>(base + layout.relative_count),
                         reinterpret_cast<int*>(base + layout.range_of),
                         reinterpret_cast<RowPlan*>(base + layout.rows),
                         layout.most_ranges,
                         layout.row_blocks};
  const auto heads = static_cast<unsigned>(params.heads);
  const auto blocks_for = [](int threads) {
    return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  };
  relative_ranges_kernel<<<heads, kThreads, 0, stream>>>(params, space);
  LACUNA_CUDA_TRY(cudaGetLastError());
  const dim3 plan_grid(blocks_for(layout.row_blocks), heads);
  plan_rows_kernel<<<plan_grid, kThreads, 0, stream>>>(params, space, out.range_begin);
  LACUNA_CUDA_TRY(cudaGetLastError());
  launch_list_scan(out, static_cast<std::int64_t>(params.heads) * layout.row_blocks, stream);
  const dim3 write_grid(blocks_for(layout.row_blocks * 32), heads);
  write_rows_kernel<<<write_grid, kThreads, 0, stream>>>(params, space, out);
  LACUNA_CUDA_TRY(cudaGetLastError());
  place_columns_kernel<<<1, 1, 0, stream>>>(params, out.column_begin);
  LACUNA_CUDA_TRY(cudaGetLastError());
  const dim3 copy_grid(16, heads);
  copy_columns_kernel<<<copy_grid, kThreads, 0, stream>>>(params, out);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
