#include <cuda_runtime.h>

#include "core/cuda.h"
#include "model/cuda/decode_step_kernels.h"

namespace lacuna {

namespace {

__global__ void table_updates_kernel(const TableUpdate* updates, std::int64_t count) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < count) *updates[i].entry = updates[i].page;
}

struct AppendArgs {
  const uint4 *q, *k, *v;                                          // 8 bfloat16 each
  std::int64_t q_head, q_token, k_head, k_token, v_head, v_token;  // strides in pieces of 8
  const DevicePagedHead* heads;
  uint4* pool;
  std::int64_t page_pieces;
  uint4* packed_q;
  int q_heads, kv_heads, pieces;  // pieces of a head
};

/// Block: one head of one row; q heads first, then kv heads.
__global__ void append_rows_kernel(AppendArgs a) {
  const int row = blockIdx.y, head = blockIdx.x, piece = threadIdx.x;
  if (head < a.q_heads) {
    a.packed_q[(std::int64_t{row} * a.q_heads + head) * a.pieces + piece] =
        a.q[head * a.q_head + row * a.q_token + piece];
    return;
  }
  const int kv = head - a.q_heads;
  const DevicePagedHead cached = a.heads[row * a.kv_heads + kv];
  if (cached.tokens == 0) return;
  const std::int64_t slot = cached.tokens - 1;
  uint4* page = a.pool + cached.page_ids[slot / kPageTokens] * a.page_pieces;
  const auto in_page = static_cast<int>(slot % kPageTokens);
  page[in_page * a.pieces + piece] = a.k[kv * a.k_head + row * a.k_token + piece];
  page[(kPageTokens + in_page) * a.pieces + piece] = a.v[kv * a.v_head + row * a.v_token + piece];
}

/// Block: one row. Thread: list heads, strided.
__global__ void count_lists_kernel(CountLists c, int group) {
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

void append_rows(const AppendRows& append, cudaStream_t stream) {
  const int pieces = append.q.head_dim / 8;
  const auto rows = static_cast<unsigned>(append.q.tokens);
  const AppendArgs args{.q = static_cast<const uint4*>(append.q.data),
                        .k = static_cast<const uint4*>(append.k.data),
                        .v = static_cast<const uint4*>(append.v.data),
                        .q_head = append.q.head_stride / 8,
                        .q_token = append.q.token_stride / 8,
                        .k_head = append.k.head_stride / 8,
                        .k_token = append.k.token_stride / 8,
                        .v_head = append.v.head_stride / 8,
                        .v_token = append.v.token_stride / 8,
                        .heads = append.heads,
                        .pool = static_cast<uint4*>(append.pool),
                        .page_pieces = append.page_elements / 8,
                        .packed_q = static_cast<uint4*>(append.packed_q),
                        .q_heads = append.q.heads,
                        .kv_heads = append.k.heads,
                        .pieces = pieces};
  const dim3 grid(static_cast<unsigned>(append.q.heads + append.k.heads), rows);
  append_rows_kernel<<<grid, static_cast<unsigned>(pieces), 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void count_lists(const CountLists& count, cudaStream_t stream) {
  const int group = count.info.q_heads_total / count.info.kv_heads_total;
  count_lists_kernel<<<static_cast<unsigned>(count.rows), 32, 0, stream>>>(count, group);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
