#include <cuda_runtime.h>

#include "core/cuda.h"
#include "model/cuda/decode_step_kernels.h"

namespace lacuna {

namespace {

__global__ void table_updates_kernel(const TableUpdate* updates, std::int64_t count) {
  const std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x;
  if (i < count) *updates[i].entry = updates[i].page;
}

}  // namespace

void apply_table_updates(const TableUpdate* updates, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  table_updates_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(updates, count);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
