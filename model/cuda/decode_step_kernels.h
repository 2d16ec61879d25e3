// The kernels of CudaDecodeStep. All asynchronous on `stream`.
#pragma once

#include <cstdint>

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace lacuna {

/// One new entry of a page table in device memory.
struct TableUpdate {
  std::int32_t* entry;
  std::int32_t page;
};
void apply_table_updates(const TableUpdate* updates, std::int64_t count, cudaStream_t stream);

}  // namespace lacuna
