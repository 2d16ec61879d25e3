// The kernels of CudaDecodeStep. All asynchronous on `stream`.
#pragma once

#include <cstdint>

#include "attention/cuda/attention_cuda.h"

namespace lacuna {

/// One new entry of a page table in device memory.
struct TableUpdate {
  std::int32_t* entry;
  std::int32_t page;
};
void apply_table_updates(const TableUpdate* updates, std::int64_t count, cudaStream_t stream);

/// What one row executed under page lists.
struct DecodeCounters {
  unsigned long long visited_cells;   ///< (query head, key) pairs
  unsigned long long computed_cells;  ///< the same, whole pages
  unsigned long long read_tokens;     ///< keys read, once per list
};

/// Adds what lists [rows, list_heads, stride] visit to counters [rows]. list_heads is kv_heads or q_heads.
struct CountLists {
  const std::int32_t* lists = nullptr;
  const std::int32_t* counts = nullptr;
  std::int64_t stride = 0;
  int list_heads = 0;
  const DevicePagedHead* heads = nullptr;  ///< [rows, kv_heads]
  LayerInfo info;
  int rows = 0;
  DecodeCounters* counters = nullptr;
};
void count_lists(const CountLists& count, cudaStream_t stream);

}  // namespace lacuna
