// What the prefill kernels need to know about kept columns before they start, and the accounting of tile
// lists.
#include "attention/cuda/prefill_launch.h"
#include "attention/cuda/tile_walker.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

/// True when a range of the sorted list [begin, end) holds `key`.
__device__ bool covered(const KeyRange* begin, const KeyRange* end, int key) {
  const KeyRange* list = begin;
  std::int64_t low = 0, high = end - begin;  // the first range that starts after key
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (list[middle].start <= key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 && key < list[low - 1].start + list[low - 1].width;
}

/// One warp per (head, row block); lane l decides columns 64 t + l and 64 t + 32 + l of word t.
__global__ void column_masks_kernel(DeviceTileLists lists, int window, std::uint64_t* masks, int words) {
  const std::int64_t blocks = (lists.tokens + lists.row_block - 1) / lists.row_block;
  const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) >> 5;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (warp >= blocks * lists.heads) return;
  const auto head = warp / blocks;
  const int first_row = static_cast<int>(warp % blocks) * lists.row_block;
  const int end_row = min(first_row + lists.row_block, static_cast<int>(lists.tokens));
  const int first_key = window > 0 ? max(0, first_row - window + 1) : 0;
  const KeyRange* begin = lists.ranges + lists.range_begin[warp];
  const KeyRange* end = lists.ranges + lists.range_begin[warp + 1];
  const std::int32_t* columns = lists.columns + lists.column_begin[head];
  const int count = static_cast<int>(lists.column_begin[head + 1] - lists.column_begin[head]);
  for (int word = 0; word < words; ++word) {
    std::uint64_t mask = 0;
    for (int half = 0; half < 2; ++half) {
      const int i = word * kTileKeys + half * 32 + lane;
      bool visited = false;
      if (i < count) {
        const int key = columns[i];
        visited = key >= first_key && key < end_row && !covered(begin, end, key);
      }
      mask |= static_cast<std::uint64_t>(__ballot_sync(~0u, visited)) << (32 * half);
    }
    if (lane == 0) masks[warp * words + word] = mask;
  }
}

/// One block per (column, head) of 16-byte pieces.
__global__ void column_gather_kernel(const __grid_constant__ PrefillArgs args, int head_dim) {
  const int head = static_cast<int>(blockIdx.y);
  const int pieces = head_dim / 8;
  const auto begin = args.lists.column_begin[head];
  const int count = static_cast<int>(args.lists.column_begin[head + 1] - begin);
  const int padded = (count + kTileKeys - 1) / kTileKeys * kTileKeys;
  const int index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int column = index / pieces;
  if (column >= padded) return;
  const int channel = index % pieces * 8;
  uint4 k{}, v{};
  if (column < count) {
    const std::int64_t token = args.lists.columns[begin + column];
    const int kv_head = (args.head_base + head) / args.group - args.kv_base;
    k = *reinterpret_cast<const uint4*>(args.k + kv_head * args.k_head_stride + token * args.k_token_stride +
                                        channel);
    v = *reinterpret_cast<const uint4*>(args.v + kv_head * args.v_head_stride + token * args.v_token_stride +
                                        channel);
  }
  const std::int64_t to = (static_cast<std::int64_t>(head) * args.column_pitch + column) * head_dim + channel;
  *reinterpret_cast<uint4*>(args.column_k + to) = k;
  *reinterpret_cast<uint4*>(args.column_v + to) = v;
}

/// One warp per (head, 16-row slice). Cells of keys [lo, hi) under the causal mask and window are counted per
/// row.
__global__ void count_cells_kernel(DeviceTileLists lists, int window, const std::uint64_t* masks, int words,
                                   unsigned long long* counts) {
  const int tokens = static_cast<int>(lists.tokens);
  const std::int64_t slices = (tokens + kSliceRows - 1) / kSliceRows;
  const std::int64_t warp = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) >> 5;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  unsigned long long visited = 0, causal = 0, computed = 0;
  if (warp < slices * lists.heads) {
    const auto head = warp / slices;
    const int first_row = static_cast<int>(warp % slices) * kSliceRows;
    const int end_row = min(first_row + kSliceRows, tokens);
    const auto cells = [&](int lo, int hi) {
      unsigned long long total = 0;
      for (int row = first_row; row < end_row; ++row) {
        const int from = max(lo, window > 0 ? max(0, row - window + 1) : 0);
        const int to = min(hi, row + 1);
        if (to > from) total += static_cast<unsigned long long>(to - from);
      }
      return total;
    };
    if (lane == 0) causal = cells(0, end_row);
    const int first_key = window > 0 ? max(0, first_row - window + 1) : 0;
    if (lists.dense) {
      visited = causal;
      if (lane == 0)
        computed = static_cast<unsigned long long>((end_row - first_key + kTileKeys - 1) / kTileKeys) *
                   kTileKeys * kSliceRows;
    } else {
      const std::int64_t row_blocks = (lists.tokens + lists.row_block - 1) / lists.row_block;
      const auto block = head * row_blocks + first_row / lists.row_block;
      const KeyRange* begin = lists.ranges + lists.range_begin[block];
      const auto ranges = lists.range_begin[block + 1] - lists.range_begin[block];
      for (std::int64_t i = lane; i < ranges; i += 32) {
        const int lo = begin[i].start, hi = lo + begin[i].width;
        visited += cells(lo, hi);
        const int seen = min(hi, end_row) - max(lo, first_key);
        if (seen > 0)
          computed +=
              static_cast<unsigned long long>((seen + kTileKeys - 1) / kTileKeys) * kTileKeys * kSliceRows;
      }
      if (lists.column_begin != nullptr) {
        const std::int32_t* columns = lists.columns + lists.column_begin[head];
        const int count = static_cast<int>(lists.column_begin[head + 1] - lists.column_begin[head]);
        for (int i = lane; i < count; i += 32) {
          const bool kept = (masks[block * words + i / kTileKeys] >> (i % kTileKeys)) & 1;
          if (kept) visited += cells(columns[i], columns[i] + 1);
        }
        for (int word = lane; word * kTileKeys < count; word += 32)
          if (masks[block * words + word] != 0) computed += kTileKeys * kSliceRows;
      }
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    visited += __shfl_xor_sync(~0u, visited, distance);
    causal += __shfl_xor_sync(~0u, causal, distance);
    computed += __shfl_xor_sync(~0u, computed, distance);
  }
  if (lane == 0) {
    atomicAdd(counts, visited);
    atomicAdd(counts + 1, causal);
    atomicAdd(counts + 2, computed);
  }
}

unsigned blocks_for(std::int64_t threads, int per_block) {
  return static_cast<unsigned>((threads + per_block - 1) / per_block);
}

}  // namespace

void launch_column_masks(const DeviceTileLists& lists, int window, std::uint64_t* masks, int mask_words,
                         cudaStream_t stream) {
  const std::int64_t warps = lists.row_blocks() * lists.heads;
  column_masks_kernel<<<blocks_for(warps * 32, 256), 256, 0, stream>>>(lists, window, masks, mask_words);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void launch_column_gather(const PrefillArgs& args, int head_dim, cudaStream_t stream) {
  const std::int64_t threads = static_cast<std::int64_t>(args.column_pitch) * (head_dim / 8);
  const dim3 grid(blocks_for(threads, 256), static_cast<unsigned>(args.q_heads));
  column_gather_kernel<<<grid, 256, 0, stream>>>(args, head_dim);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void count_tile_cells_cuda(const DeviceTileLists& lists, int window, unsigned long long* counts,
                           CudaWorkspace workspace, cudaStream_t stream) {
  LACUNA_CUDA_TRY(cudaMemsetAsync(counts, 0, 3 * sizeof(*counts), stream));
  auto* masks = static_cast<std::uint64_t*>(workspace.data);
  const int words = (lists.max_columns + kTileKeys - 1) / kTileKeys;
  if (!lists.dense && words > 0) launch_column_masks(lists, window, masks, words, stream);
  const std::int64_t slices = (lists.tokens + kSliceRows - 1) / kSliceRows;
  count_cells_kernel<<<blocks_for(slices * lists.heads * 32, 256), 256, 0, stream>>>(lists, window, masks,
                                                                                     words, counts);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
