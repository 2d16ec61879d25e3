// Eviction on the GPU: importance of tokens per kv head, the shared budget of Ada-SnapKV, and compaction into
// pages.
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>

#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kPoolTokens = 256;  ///< of one block

/// Each token's mean (or maximum) over the heads of the group once, in shared memory, then the average.
__global__ void pool_importance_kernel(const float* from, int q_heads, int group, int head_base, int kv_base,
                                       int tokens, bool maximum, int kernel, float* to) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto* grouped = reinterpret_cast<double*>(raw);  // [kPoolTokens + kernel - 1], zeros beside the prompt
  const int first = static_cast<int>(blockIdx.x) * kPoolTokens - kernel / 2;
  const int kv_head = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int begin = max(0, (kv_head + kv_base) * group - head_base);
  const int end = min(q_heads, (kv_head + kv_base + 1) * group - head_base);
  for (int i = thread; i < kPoolTokens + kernel - 1; i += kPoolTokens) {
    const int j = first + i;
    double x = 0.0;
    if (j >= 0 && j < tokens) {
      x = from[static_cast<std::int64_t>(begin) * tokens + j];
      for (int h = begin + 1; h < end; ++h) {
        const double y = from[static_cast<std::int64_t>(h) * tokens + j];
        x = maximum ? fmax(x, y) : x + y;
      }
      if (!maximum) x /= end - begin;
    }
    grouped[i] = x;
  }
  __syncthreads();
  const int t = static_cast<int>(blockIdx.x) * kPoolTokens + thread;
  if (t >= tokens) return;
  double sum = 0.0;
  for (int i = thread; i < thread + kernel; ++i) sum += grouped[i];
  to[static_cast<std::int64_t>(kv_head) * tokens + t] = static_cast<float>(sum / kernel);
}

/// Raises what a head keeps anyway above everything else.
__global__ void raise_kept_kernel(const std::int32_t* kept, const std::int32_t* counts, std::int64_t stride,
                                  int tokens, float* scores) {
  const int head = static_cast<int>(blockIdx.x);
  for (int i = static_cast<int>(threadIdx.x); i < counts[head]; i += static_cast<int>(blockDim.x))
    scores[static_cast<std::int64_t>(head) * tokens + kept[head * stride + i]] = INFINITY;
}

/// Cuts the sorted list of head * tokens + token into one list per head.
__global__ void split_heads_kernel(const std::int32_t* all, const std::int32_t* count, int tokens,
                                   std::int32_t* kept, std::int32_t* counts, std::int64_t stride) {
  const int head = static_cast<int>(blockIdx.x);
  const auto first_from = [&](std::int64_t value) {
    int low = 0, high = *count;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (all[middle] < value) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int begin = first_from(static_cast<std::int64_t>(head) * tokens);
  const int end = first_from(static_cast<std::int64_t>(head + 1) * tokens);
  for (int i = static_cast<int>(threadIdx.x); i < end - begin; i += static_cast<int>(blockDim.x))
    kept[head * stride + i] = all[begin + i] - head * tokens;
  if (threadIdx.x == 0) counts[head] = end - begin;
}

/// One thread per 16 bytes of a kept token's key or value.
__global__ void compact_kernel(const __grid_constant__ CompactParams params) {
  const int head = static_cast<int>(blockIdx.y);
  const int dim = params.k.head_dim;
  const int pieces = 2 * dim / 8;
  const int index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int place = index / pieces;
  if (place >= params.counts[head]) return;
  const int piece = index % pieces;
  const bool value = piece >= dim / 8;
  const int channel = (value ? piece - dim / 8 : piece) * 8;
  const HeadsView& view = value ? params.v : params.k;
  const std::int64_t token = params.kept[head * params.kept_stride + place];
  const auto* from =
      static_cast<const __nv_bfloat16*>(view.data) + head * view.head_stride + token * view.token_stride;
  const std::int64_t page = params.page_ids[head * params.id_stride + place / kPageTokens];
  auto* to = static_cast<__nv_bfloat16*>(params.pool) + page * params.page_elements +
             ((value ? kPageTokens : 0) + place % kPageTokens) * dim;
  *reinterpret_cast<uint4*>(to + channel) = *reinterpret_cast<const uint4*>(from + channel);
}

}  // namespace

void pool_importance_cuda(const float* from, const LayerInfo& info, std::int64_t tokens, bool maximum,
                          int kernel, float* to, cudaStream_t stream) {
  const auto bytes = static_cast<unsigned>(kPoolTokens + kernel - 1) * sizeof(double);
  const dim3 grid(static_cast<unsigned>((tokens + kPoolTokens - 1) / kPoolTokens),
                  static_cast<unsigned>(info.kv_heads));
  pool_importance_kernel<<<grid, kPoolTokens, bytes, stream>>>(
      from, info.q_heads, info.q_heads_total / info.kv_heads_total, info.q_head_begin, info.kv_head_begin,
      static_cast<int>(tokens), maximum, kernel, to);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

namespace {

/// The list of all that is kept, with its length before it.
std::size_t shared_list_bytes(int kv_heads, std::int64_t tokens) {
  const auto entries = static_cast<std::size_t>(kv_heads * tokens) + 64;
  return (entries * sizeof(std::int32_t) + 255) / 256 * 256;
}

}  // namespace

std::size_t shared_budget_workspace_bytes(int kv_heads, std::int64_t tokens) {
  return shared_list_bytes(kv_heads, tokens) + std::max(top_k_workspace_bytes(kv_heads, tokens, false),
                                                        top_k_workspace_bytes(1, kv_heads * tokens, false));
}

void shared_budget_cuda(const SharedBudgetParams& params, CudaWorkspace workspace, cudaStream_t stream) {
  const std::size_t list_bytes = shared_list_bytes(params.kv_heads, params.tokens);
  if (workspace.bytes < list_bytes)
    throw_cuda(cudaErrorMemoryAllocation, "shared budget: workspace too small");
  auto* count = static_cast<std::int32_t*>(workspace.data);
  auto* all = count + 64;
  const CudaWorkspace search{static_cast<unsigned char*>(workspace.data) + list_bytes,
                             workspace.bytes - list_bytes};
  const auto tokens = static_cast<int>(params.tokens);
  const auto heads = static_cast<unsigned>(params.kv_heads);

  TopKParams own;  // what every head gets for itself
  own.scores = params.importance, own.score_stride = params.tokens;
  own.rows = params.kv_heads, own.n = tokens;
  own.k = params.floor, own.first = params.first, own.last = params.last;
  own.indices = params.kept, own.index_stride = params.kept_stride, own.counts = params.counts;
  top_k_cuda(own, search, stream);
  raise_kept_kernel<<<heads, 256, 0, stream>>>(params.kept, params.counts, params.kept_stride, tokens,
                                               params.importance);
  LACUNA_CUDA_TRY(cudaGetLastError());

  TopKParams rest;  // (head, token) in one row: equal scores go to the lower head, then to the lower token
  const std::int64_t least =
      std::min<std::int64_t>(params.tokens, std::max(params.floor, params.first + params.last));
  rest.scores = params.importance, rest.rows = 1;
  rest.n = params.kv_heads * tokens;
  rest.k = static_cast<int>(
      std::min<std::int64_t>(rest.n, std::max(params.capacity * params.kv_heads, least * params.kv_heads)));
  rest.indices = all, rest.index_stride = rest.n, rest.counts = count;
  top_k_cuda(rest, search, stream);
  split_heads_kernel<<<heads, 256, 0, stream>>>(all, count, tokens, params.kept, params.counts,
                                                params.kept_stride);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void compact_cache_cuda(const CompactParams& params, cudaStream_t stream) {
  const std::int64_t threads = static_cast<std::int64_t>(params.max_kept) * (2 * params.k.head_dim / 8);
  if (threads == 0) return;
  const dim3 grid(static_cast<unsigned>((threads + 255) / 256), static_cast<unsigned>(params.k.heads));
  compact_kernel<<<grid, 256, 0, stream>>>(params);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
