// Quest on the GPU: channel-wise bounds of the keys of each page, and the upper bounds of q . k that follow
// from them.
#include <cuda_bf16.h>

#include <algorithm>

#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

/// One block per (page, row), a thread per channel pair.
__global__ void page_bounds_kernel(const __grid_constant__ PageBoundsParams params) {
  const int row = static_cast<int>(blockIdx.y);
  const DevicePagedHead head = params.heads[row];
  const int pages = static_cast<int>((head.tokens + kPageTokens - 1) / kPageTokens);
  const int first = params.first_page != nullptr ? params.first_page[row] : max(0, pages - 1);
  const int page = first + static_cast<int>(blockIdx.x);
  if (page >= pages) return;
  const int channel = static_cast<int>(threadIdx.x) * 2;
  const auto* keys = static_cast<const __nv_bfloat16*>(params.pool) +
                     static_cast<std::int64_t>(head.page_ids[page]) * params.page_elements + channel;
  const int count = min(kPageTokens, static_cast<int>(head.tokens) - page * kPageTokens);
  auto low = *reinterpret_cast<const __nv_bfloat162*>(keys);
  auto high = low;
  for (int t = 1; t < count; ++t) {
    const auto key = *reinterpret_cast<const __nv_bfloat162*>(keys + t * params.head_dim);
    low = __hmin2(low, key);
    high = __hmax2(high, key);
  }
  auto* to = static_cast<__nv_bfloat16*>(params.bounds) +
             (row * params.max_pages + page) * 2 * params.head_dim + channel;
  *reinterpret_cast<__nv_bfloat162*>(to) = low;
  *reinterpret_cast<__nv_bfloat162*>(to + params.head_dim) = high;
}

constexpr int kPagesPerBlock = 64;

/// sum over channels of max(q min, q max) = q+ max + q- min, where q+ and q- are summed over the heads that
/// share pages. One warp per page at a time, four loads of each bound in flight.
template <int kPairs>  ///< channel pairs per lane
__global__ void __launch_bounds__(256) page_scores_kernel(const __grid_constant__ PageScoresParams params) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const LayerInfo& info = params.info;
  const int group = info.q_heads_total / info.kv_heads_total;
  const int rows = params.share ? info.kv_heads : info.q_heads;
  const int row = static_cast<int>(blockIdx.y);  // [batch, rows]
  const int batch = row / rows, head = row % rows;
  const int kv_head = params.share ? head : (info.q_head_begin + head) / group - info.kv_head_begin;
  int q_begin = head, q_end = head + 1;
  if (params.share) {
    q_begin = max(0, (kv_head + info.kv_head_begin) * group - info.q_head_begin);
    q_end = min(info.q_heads, (kv_head + info.kv_head_begin + 1) * group - info.q_head_begin);
  }
  const int kv_row = batch * info.kv_heads + kv_head;
  const int pages = static_cast<int>((params.heads[kv_row].tokens + kPageTokens - 1) / kPageTokens);
  if (blockIdx.x == 0 && threadIdx.x == 0) params.row_pages[row] = max(0, pages - 1);
  const int begin = static_cast<int>(blockIdx.x) * kPagesPerBlock;
  if (begin >= pages) return;

  const int dim = info.head_dim;
  float2 up[kPairs] = {}, down[kPairs] = {};
  for (int h = q_begin; h < q_end; ++h) {
    const auto* q =
        reinterpret_cast<const __nv_bfloat162*>(static_cast<const __nv_bfloat16*>(params.q) +
                                                (static_cast<std::int64_t>(batch) * info.q_heads + h) * dim);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = i * 32 + lane;
      if (pair * 2 >= dim) continue;
      const float2 x = __bfloat1622float2(q[pair]);
      up[i].x += fmaxf(x.x, 0.0f), up[i].y += fmaxf(x.y, 0.0f);
      down[i].x += fminf(x.x, 0.0f), down[i].y += fminf(x.y, 0.0f);
    }
  }
  const auto* bounds = static_cast<const __nv_bfloat16*>(params.bounds) + kv_row * params.max_pages * 2 * dim;
  const int end = min(begin + kPagesPerBlock, pages);
#pragma unroll 4
  for (int page = begin + warp; page < end; page += 8) {
    const auto* low =
        reinterpret_cast<const __nv_bfloat162*>(bounds + static_cast<std::int64_t>(page) * 2 * dim);
    const auto* high = low + dim / 2;
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = i * 32 + lane;
      if (pair * 2 >= dim) continue;
      const float2 a = __bfloat1622float2(low[pair]), b = __bfloat1622float2(high[pair]);
      score = fmaf(up[i].x, b.x, fmaf(down[i].x, a.x, score));
      score = fmaf(up[i].y, b.y, fmaf(down[i].y, a.y, score));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) score += __shfl_xor_sync(~0u, score, distance);
    if (lane == 0) params.scores[row * params.max_pages + page] = score;
  }
}

}  // namespace

void update_page_bounds_cuda(const PageBoundsParams& params, cudaStream_t stream) {
  const int pages = params.first_page == nullptr ? 1 : params.pages_per_row;
  if (pages == 0 || params.rows == 0) return;
  const dim3 grid(static_cast<unsigned>(pages), static_cast<unsigned>(params.rows));
  page_bounds_kernel<<<grid, static_cast<unsigned>(params.head_dim / 2), 0, stream>>>(params);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void page_scores_cuda(const PageScoresParams& params, cudaStream_t stream) {
  const int rows = params.batch * (params.share ? params.info.kv_heads : params.info.q_heads);
  const dim3 grid(static_cast<unsigned>((params.max_pages + kPagesPerBlock - 1) / kPagesPerBlock),
                  static_cast<unsigned>(rows));
  if (params.info.head_dim <= 64) {
    page_scores_kernel<1><<<grid, 256, 0, stream>>>(params);
  } else if (params.info.head_dim <= 128) {
    page_scores_kernel<2><<<grid, 256, 0, stream>>>(params);
  } else {
    page_scores_kernel<4><<<grid, 256, 0, stream>>>(params);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
