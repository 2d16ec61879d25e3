#include <cuda_runtime.h>

#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/decode_step_kernels.h"

namespace lacuna {

namespace {

__global__ void table_updates_kernel(const TableUpdate* updates, std::int64_t count) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < count) *updates[i].entry = updates[i].page;
}

/// Block: one row. Thread: list heads, strided.
__global__ void count_lists_kernel(CountLists c, int group) {
  let_next_start();
  wait_for_previous();
  const int row = blockIdx.x;
  for (int h = threadIdx.x; h < c.list_heads; h += blockDim.x) {
    const bool per_q = c.list_heads != c.info.kv_heads;
    const int kv = per_q ? (c.info.q_head_begin + h) / group - c.info.kv_head_begin : h;
    const std::int64_t list = std::int64_t{row} * c.list_heads + h;
    const std::int64_t tokens = c.heads[row * c.info.kv_heads + kv].tokens;
    const std::int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
    if (pages == 0) continue;
    std::int64_t listed = c.counts[list], read = 0;
    if (listed < 0) {
      listed = pages;
      read = tokens;
    } else {
      read = listed * kPageTokens;
      if (listed > 0 && c.lists[list * c.stride + listed - 1] == pages - 1)
        read -= pages * kPageTokens - tokens;
    }
    // Query heads of this rank that read the list.
    int readers = 1;
    if (!per_q) {
      const int first = max((c.info.kv_head_begin + kv) * group, c.info.q_head_begin);
      const int last = min((c.info.kv_head_begin + kv + 1) * group, c.info.q_head_begin + c.info.q_heads);
      readers = last - first;
    }
    atomicAdd(&c.counters[row].visited_cells, static_cast<unsigned long long>(readers * read));
    atomicAdd(&c.counters[row].computed_cells,
              static_cast<unsigned long long>(readers * listed * kPageTokens));
    atomicAdd(&c.counters[row].read_tokens, static_cast<unsigned long long>(read));
  }
}

}  // namespace

void apply_table_updates(const TableUpdate* updates, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  table_updates_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(updates, count);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void count_lists(const CountLists& count, cudaStream_t stream) {
  const int group = count.info.q_heads_total / count.info.kv_heads_total;
  launch_dependent(count_lists_kernel, static_cast<unsigned>(count.rows), 32, 0, stream, count, group);
}

}  // namespace lacuna
