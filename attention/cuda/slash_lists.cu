// From kept columns and diagonals to tile lists: one thread per row block walks the offsets twice, first to
// count its ranges, then, once a scan has placed them, to write them.
#include "attention/cuda/list_scan.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kBlock = 64;  ///< rows of a block and keys that an offset asks for

/// Calls emit(start, end) for the ranges of rows [m, m + 64), from left to right; the rule of
/// methods/slash_lists.h.
template <class Emit>
__device__ void walk_offsets(const std::int32_t* offsets, int count, int m, int tokens, bool exact,
                             Emit&& emit) {
  const int limit = min(m + kBlock, tokens);
  int low = 0, high = count;  // the first offset of m + 64 or more
  while (low < high) {
    const int middle = (low + high) / 2;
    if (offsets[middle] < m + kBlock) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  int start = 0, end = -1;
  for (int next = low; next > 0;) {
    const int asked = max(m - offsets[next - 1], 0);
    if (end < 0 || asked > end) {
      if (end >= 0) emit(start, min(end, limit));
      start = asked;
      end = asked + kBlock;
    } else {
      end = exact ? asked + kBlock : end + kBlock;
    }
    // Blocks that end inside the range change nothing.
    --next;
    while (next > 0 && offsets[next - 1] >= m + kBlock - end) --next;
  }
  if (end >= 0) emit(start, min(end, limit));
}

template <bool kWrite>
__global__ void slash_lists_kernel(const __grid_constant__ SlashListsParams params,
                                   const __grid_constant__ TileListsOut out, int row_blocks) {
  const int block = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  if (block >= row_blocks) return;
  const std::int64_t slot = static_cast<std::int64_t>(head) * row_blocks + block;
  std::int64_t at = kWrite ? out.range_begin[slot] : 0;
  const auto emit = [&](int start, int end) {
    if constexpr (kWrite) {
      if (at < out.max_ranges) out.ranges[at] = {start, end - start};
    }
    ++at;
  };
  const auto tokens = static_cast<int>(params.tokens);
  if (params.by_bits != nullptr && params.by_bits[head] != 0) {
    walk_bits(params.bits + slot * params.bit_words, block + 1, kBlock, tokens, emit);
  } else {
    walk_offsets(params.offsets + head * params.offset_stride, params.offset_counts[head], block * kBlock,
                 tokens, params.exact, emit);
  }
  if constexpr (!kWrite) out.range_begin[slot + 1] = at;
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
  const int head = static_cast<int>(blockIdx.x);
  const auto count = static_cast<int>(out.column_begin[head + 1] - out.column_begin[head]);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    out.columns[out.column_begin[head] + i] = params.columns[head * params.column_stride + i];
}

}  // namespace

void slash_lists_cuda(const SlashListsParams& params, const TileListsOut& out, cudaStream_t stream) {
  const int row_blocks = static_cast<int>((params.tokens + kBlock - 1) / kBlock);
  const dim3 grid(static_cast<unsigned>((row_blocks + 127) / 128), static_cast<unsigned>(params.heads));
  slash_lists_kernel<false><<<grid, 128, 0, stream>>>(params, out, row_blocks);
  LACUNA_CUDA_TRY(cudaGetLastError());
  launch_list_scan(out, static_cast<std::int64_t>(params.heads) * row_blocks, stream);
  slash_lists_kernel<true><<<grid, 128, 0, stream>>>(params, out, row_blocks);
  LACUNA_CUDA_TRY(cudaGetLastError());
  place_columns_kernel<<<1, 1, 0, stream>>>(params, out.column_begin);
  LACUNA_CUDA_TRY(cudaGetLastError());
  copy_columns_kernel<<<static_cast<unsigned>(params.heads), 256, 0, stream>>>(params, out);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
