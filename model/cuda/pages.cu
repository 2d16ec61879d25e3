// Rows of K and V into pages, and copies of whole pages.
#include "attention/types.h"
#include "core/cuda.h"
#include "model/cuda/kernels.h"
#include "model/cuda/vector.cuh"

namespace lacuna {

namespace {

constexpr int kThreads = 256;

__global__ void store_kv_kernel(StoreKvArgs args) {
  const DeviceKvWrite& write = args.writes[blockIdx.y];
  const int vectors = args.head_dim / kVector;
  const std::int64_t flat = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t i = flat / vectors;
  if (i >= write.count) return;
  const int channel = static_cast<int>(flat - i * vectors) * kVector;
  const std::int64_t slot = write.first_slot + i;
  const std::int64_t row =
      write.positions_begin < 0 ? write.row_begin + i : args.positions[write.positions_begin + i];
  const std::int64_t page = args.ids[write.ids_begin + slot / kPageTokens];
  __nv_bfloat16* to = args.pool + page * args.page_elements + slot % kPageTokens * args.head_dim + channel;
  const __nv_bfloat16* k = args.k + write.head * args.k_head_stride + row * args.k_token_stride + channel;
  const __nv_bfloat16* v = args.v + write.head * args.v_head_stride + row * args.v_token_stride + channel;
  const uint4 from_k = *reinterpret_cast<const uint4*>(k);
  const uint4 from_v = *reinterpret_cast<const uint4*>(v);
  *reinterpret_cast<uint4*>(to) = from_k;
  *reinterpret_cast<uint4*>(to + kPageTokens * args.head_dim) = from_v;
}

__global__ void copy_pages_kernel(const std::int32_t* from_to, __nv_bfloat16* pool,
                                  std::int64_t page_elements) {
  const std::int64_t from = from_to[2 * blockIdx.x], to = from_to[2 * blockIdx.x + 1];
  const auto* source = reinterpret_cast<const uint4*>(pool + from * page_elements);
  auto* target = reinterpret_cast<uint4*>(pool + to * page_elements);
  for (std::int64_t i = threadIdx.x; i < page_elements / kVector; i += kThreads) target[i] = source[i];
}

}  // namespace

void launch_store_kv(const StoreKvArgs& args, cudaStream_t stream) {
  if (args.write_count == 0 || args.most_tokens == 0) return;
  const std::int64_t threads = args.most_tokens * (args.head_dim / kVector);
  const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads),
                  static_cast<unsigned>(args.write_count));
  store_kv_kernel<<<grid, kThreads, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void launch_copy_pages(const std::int32_t* from_to, int count, __nv_bfloat16* pool,
                       std::int64_t page_elements, cudaStream_t stream) {
  if (count == 0) return;
  copy_pages_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(from_to, pool, page_elements);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
