// From kept columns and diagonals to tile lists.
//
// Relative to their first row, all row blocks see the same line of offsets (offset_line.cuh) from some place
// on. So the ranges of a head are found once, on the whole line; a row block looks for its own only until one
// of them begins where one of the head's does, and copies the head's from there on.
#include <algorithm>
#include <climits>

#include "attention/cuda/list_scan.cuh"
#include "attention/cuda/offset_line.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"
#include "core/cuda_launch.cuh"

namespace lacuna {

namespace {

constexpr int kBlock = kLineChunk;  ///< rows of a block
constexpr int kThreads = 128;
constexpr int kLineThreads = 1024;
constexpr int kOffsetsAtOnce = 8;  ///< of a thread: neighbours, most of which share a word
constexpr int kRemembered = 2;

/// What a row block visits: its own first ranges, then the head's from `tail` on.
struct RowPlan {
  int own, tail;
  KeyRange ranges[kRemembered];  ///< the first of its own
};

struct SlashSpace {
  LineChunk* lines;    ///< [heads, chunks]
  int* range_of;       ///< [heads, chunks]: the range of the head that begins in this chunk, or -1
  KeyRange* relative;  ///< [heads, most_ranges]: begin, relative to offset 0, and width
  int* relative_count;
  RowPlan* rows;  ///< [heads, row blocks]
  int chunks, most_ranges, row_blocks;

  __device__ LineChunk* line_of(int head) const { return lines + static_cast<std::int64_t>(head) * chunks; }
  __device__ int* range_of_chunks(int head) const {
    return range_of + static_cast<std::int64_t>(head) * chunks;
  }
  __device__ KeyRange* ranges_of(int head) const {
    return relative + static_cast<std::int64_t>(head) * most_ranges;
  }
};

/// What the block's threads before this one have together; the whole block calls it.
template <class Join>
__device__ int join_before(int value, int nothing, const Join& join, int (&of_warps)[kLineThreads / 32]) {
  static_assert(kLineThreads == 32 * 32);
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const auto scan = [&](int x) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(~0u, x, distance);
      if (lane >= distance) x = join(x, other);
    }
    return x;
  };
  const auto before = [&](int until) {
    const int x = __shfl_up_sync(~0u, until, 1);
    return lane == 0 ? nothing : x;
  };
  const int until = scan(value), own = before(until);
  __syncthreads();  // of_warps may still be read from the last time
  if (lane == 31) of_warps[warp] = until;
  __syncthreads();
  const int warps = before(scan(of_warps[lane]));
  return join(__shfl_sync(~0u, warps, warp), own);
}

/// The offsets as bits. Neighbours are ascending, so a thread's own mostly lie in one or two words.
__device__ void draw_line(const std::int32_t* offsets, int count, LineChunk* chunks, int zero) {
  const auto add = [&](int word, unsigned bits) {
    if (bits == 0) return;
    atomicOr(reinterpret_cast<unsigned*>(&chunks[word / 2].offsets) + word % 2, bits);
  };
  for (int first = static_cast<int>(threadIdx.x) * kOffsetsAtOnce; first < count;
       first += kLineThreads * kOffsetsAtOnce) {
    int at[kOffsetsAtOnce];
#pragma unroll
    for (int i = 0; i < kOffsetsAtOnce; ++i) at[i] = first + i < count ? zero - offsets[first + i] : -1;
    int word = 0;
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kOffsetsAtOnce; ++i) {
      if (at[i] < 0) continue;
      if (at[i] / 32 != word) {
        add(word, bits);
        word = at[i] / 32, bits = 0;
      }
      bits |= 1u << at[i] % 32;
    }
    add(word, bits);
  }
}

/// Where gaps and offsets come next. A thread has a run of chunks, the first thread the last ones.
__device__ void link_chunks(const OffsetLine& line, LineChunk* chunks, int count,
                            int (&of_warps)[kLineThreads / 32]) {
  const int own = (count + kLineThreads - 1) / kLineThreads;
  const int end = count - static_cast<int>(threadIdx.x) * own, begin = max(end - own, 0);
  const auto nearer = [](int a, int b) { return min(a, b); };
  const auto walk = [&](int& gap, int& next, bool write) {
    for (int chunk = end - 1; chunk >= begin; --chunk) {
      const unsigned long long here = chunks[chunk].offsets;
      if (here != 0) next = chunk;
      if (!line.joined(chunk == 0 ? 0 : chunks[chunk - 1].offsets, here)) gap = chunk;
      if (write) chunks[chunk].gap = gap, chunks[chunk].next = next;
    }
  };
  int gap = INT_MAX, next = INT_MAX;
  walk(gap, next, false);
  gap = join_before(gap, INT_MAX, nearer, of_warps);
  next = join_before(next, INT_MAX, nearer, of_warps);
  walk(gap, next, true);
}

/// The ranges of a head. They fall into pieces that begin where a range does in any case; a thread walks the
/// pieces that begin in its run of chunks.
__device__ int find_ranges(const OffsetLine& line, int count, KeyRange* ranges, int* range_of,
                           int (&of_warps)[kLineThreads / 32]) {
  const int own = (count + kLineThreads - 1) / kLineThreads;
  const int begin = static_cast<int>(threadIdx.x) * own, end = min(begin + own, count);
  const auto walk = [&](const auto& emit) {
    for (int chunk = begin; chunk < end; ++chunk) {
      const unsigned long long here = line.chunks[chunk].offsets;
      if (here == 0) continue;
      int x = chunk * kLineChunk + lowest_bit(here);
      if (!line.always_begins(x)) continue;
      do {
        const int range_end = line.end_of(x);
        emit(x, range_end);
        x = line.behind(range_end);
      } while (x >= 0 && !line.always_begins(x));
    }
  };
  int found = 0;
  walk([&](int, int) { ++found; });
  int at = join_before(
      found, 0, [](int a, int b) { return a + b; }, of_warps);
  walk([&](int x, int range_end) {
    ranges[at] = {x - line.zero(), range_end - x};
    range_of[x / kLineChunk] = at++;  // ranges are at least 64 wide: one begins in a chunk
  });
  return at;
}

/// One block per head.
__global__ void __launch_bounds__(kLineThreads)
    line_kernel(const __grid_constant__ SlashListsParams params, const __grid_constant__ SlashSpace space) {
  __shared__ int of_warps[kLineThreads / 32];
  wait_for_previous();
  let_next_start();
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (params.by_bits != nullptr && params.by_bits[head] != 0) return;
  LineChunk* chunks = space.line_of(head);
  int* range_of = space.range_of_chunks(head);
  for (int chunk = thread; chunk < space.chunks; chunk += kLineThreads) {
    chunks[chunk] = {0, 0, 0};
    range_of[chunk] = -1;
  }
  __syncthreads();
  const OffsetLine line{chunks, space.row_blocks, params.exact};
  draw_line(params.offsets + head * params.offset_stride, params.offset_counts[head], chunks, line.zero());
  __syncthreads();
  link_chunks(line, chunks, space.chunks, of_warps);
  __syncthreads();
  const int until = find_ranges(line, space.chunks, space.ranges_of(head), range_of, of_warps);
  if (thread == kLineThreads - 1) space.relative_count[head] = until;
}

__device__ KeyRange clipped(KeyRange range, int limit) {
  return {range.start, min(range.start + range.width, limit) - range.start};
}

/// Walks a row block's own ranges; emit(i, range).
template <class Emit>
__device__ RowPlan walk_row(const SlashListsParams& params, const SlashSpace& space, int head, int block,
                            const Emit& emit) {
  const OffsetLine line{space.line_of(head), space.row_blocks, params.exact};
  const int* range_of = space.range_of_chunks(head);
  const KeyRange* ranges = space.ranges_of(head);
  const int limit = min((block + 1) * kBlock, static_cast<int>(params.tokens));
  RowPlan plan{0, space.relative_count[head], {}};
  // Offsets between the first row and the last ask for keys from 0 on, as if one lay there.
  const int first_chunk = space.row_blocks - block, key_0 = first_chunk * kLineChunk;
  int x = line.chunks[first_chunk - 1].offsets >> 1 != 0 ? key_0 : line.from(key_0);
  while (x >= 0) {
    const int range = range_of[x / kLineChunk];
    if (range >= 0 && ranges[range].start == x - line.zero()) {
      plan.tail = range;
      break;
    }
    const int end = line.end_of(x);
    emit(plan.own++, clipped({x - key_0, end - x}, limit));
    x = line.behind(end);
  }
  return plan;
}

/// One thread per row block.
__global__ void plan_rows_kernel(const __grid_constant__ SlashListsParams params,
                                 const __grid_constant__ SlashSpace space, std::int64_t* range_begin) {
  wait_for_previous();
  let_next_start();
  const int block = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  if (block >= space.row_blocks) return;
  const std::int64_t slot = static_cast<std::int64_t>(head) * space.row_blocks + block;
  if (params.by_bits != nullptr && params.by_bits[head] != 0) {
    range_begin[slot + 1] = count_runs(params.bits + slot * params.bit_words, block + 1);
    return;
  }
  KeyRange first[kRemembered] = {};
  RowPlan plan = walk_row(params, space, head, block, [&](int i, KeyRange range) {
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
  wait_for_previous();
  let_next_start();
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
    if (lane == 0) walk_row(params, space, head, warp, emit);
  } else {
#pragma unroll
    for (int j = 0; j < kRemembered; ++j)
      if (lane == j && j < plan.own) emit(j, plan.ranges[j]);
  }
  const KeyRange* relative = space.ranges_of(head);
  const int count = space.relative_count[head];
#pragma unroll 4
  for (int i = plan.tail + lane; i < count; i += 32)
    emit(plan.own + i - plan.tail, clipped({m + relative[i].start, relative[i].width}, limit));
}

/// Where a head's columns begin is what the heads before it have, which every warp adds up.
__global__ void copy_columns_kernel(const __grid_constant__ SlashListsParams params,
                                    const __grid_constant__ TileListsOut out) {
  wait_for_previous();
  let_next_start();
  const int lane = static_cast<int>(threadIdx.x) & 31, head = static_cast<int>(blockIdx.y);
  const auto count_of = [&](int h) {
    return params.by_bits == nullptr || params.by_bits[h] == 0 ? params.column_counts[h] : 0;
  };
  std::int64_t begin = 0;
  for (int h = lane; h < head; h += 32) begin += count_of(h);
  for (int distance = 16; distance > 0; distance /= 2) begin += __shfl_xor_sync(~0u, begin, distance);
  const int count = count_of(head);
  const std::int32_t* from = params.columns + head * params.column_stride;
#pragma unroll 4
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x))
    out.columns[begin + i] = from[i];
  if (blockIdx.x > 0 || threadIdx.x > 0) return;
  if (head == 0) out.column_begin[0] = 0;
  out.column_begin[head + 1] = begin + count;
}

struct Layout {
  int row_blocks, chunks, most_ranges;
  std::size_t lines, range_of, relative, relative_count, rows, total = 0;

  Layout(int head_count, std::int64_t tokens, std::int64_t offset_stride) {
    row_blocks = static_cast<int>((tokens + kBlock - 1) / kBlock);
    chunks = line_chunks(row_blocks);
    // Ranges are at least 64 wide and do not touch; the first may begin anywhere.
    most_ranges = static_cast<int>(std::min(offset_stride, tokens / (kBlock + 1) + 2));
    const auto heads = static_cast<std::size_t>(head_count), of_line = static_cast<std::size_t>(chunks);
    lines = take(heads * of_line * sizeof(LineChunk));
    range_of = take(heads * of_line * sizeof(int));
    relative = take(heads * static_cast<std::size_t>(most_ranges) * sizeof(KeyRange));
    relative_count = take(heads * sizeof(int));
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
  const SlashSpace space{reinterpret_cast<LineChunk*>(base + layout.lines),
                         reinterpret_cast<int*>(base + layout.range_of),
                         reinterpret_cast<KeyRange*>(base + layout.relative),
                         reinterpret_cast<int*>(base + layout.relative_count),
                         reinterpret_cast<RowPlan*>(base + layout.rows),
                         layout.chunks,
                         layout.most_ranges,
                         layout.row_blocks};
  const auto heads = static_cast<unsigned>(params.heads);
  const auto blocks_for = [](int threads) {
    return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  };
  const dim3 copy_grid(64, heads), plan_grid(blocks_for(layout.row_blocks), heads);
  const dim3 write_grid(blocks_for(layout.row_blocks * 32), heads);
  launch_dependent(line_kernel, heads, kLineThreads, 0, stream, params, space);
  launch_dependent(copy_columns_kernel, copy_grid, kThreads, 0, stream, params, out);
  launch_dependent(plan_rows_kernel, plan_grid, kThreads, 0, stream, params, space, out.range_begin);
  launch_list_scan(out, static_cast<std::int64_t>(params.heads) * layout.row_blocks, stream);
  launch_dependent(write_rows_kernel, write_grid, kThreads, 0, stream, params, space, out);
}

}  // namespace lacuna
