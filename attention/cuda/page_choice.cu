#include "attention/cuda/page_choice.h"

#include <cuda_bf16.h>

#include <cmath>

#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kPagesPerBlock = 64;
constexpr int kScoreThreads = 256;
constexpr int kWeighThreads = 128;

/// What the kernels need of a DecodeChoice.
struct Args {
  const __nv_bfloat16* q;
  const __nv_bfloat16* pool;
  std::int64_t page_elements;
  const DevicePagedHead* heads;
  void* const* states;
  const DecodeBudget* budgets;
  int* not_finite;
  int q_heads, kv_heads, group, dim;
  float scale, softcap;
  std::int64_t max_pages;
};

Args args_of(const DecodeChoice& choice) {
  const LayerInfo& info = choice.info;
  return {static_cast<const __nv_bfloat16*>(choice.q),
          static_cast<const __nv_bfloat16*>(choice.pool),
          choice.page_elements,
          choice.heads,
          choice.states,
          choice.budgets,
          choice.not_finite,
          info.q_heads,
          info.kv_heads,
          info.q_heads_total / info.kv_heads_total,
          info.head_dim,
          info.scale,
          info.softcap,
          (choice.max_tokens + kPageTokens - 1) / kPageTokens};
}

__device__ int pages_of(const DevicePagedHead& head) {
  return static_cast<int>((head.tokens + kPageTokens - 1) / kPageTokens);
}

/// Minima and maxima of the cached keys of one page, a thread per channel. NaN stays.
__device__ void bound_page(const Args& a, int row, int kv, const DevicePagedHead& head, int page,
                           int channel) {
  const auto* keys = a.pool + static_cast<std::int64_t>(head.page_ids[page]) * a.page_elements + channel;
  const int count = min(kPageTokens, static_cast<int>(head.tokens - std::int64_t{page} * kPageTokens));
  float low = __bfloat162float(keys[0]), high = low;
  for (int t = 1; t < count; ++t) {
    const float key = __bfloat162float(keys[t * a.dim]);
    low = key < low || key != key ? key : low;
    high = key > high || key != key ? key : high;
  }
  auto* to = static_cast<__nv_bfloat16*>(a.states[row]) + (std::int64_t{page} * a.kv_heads + kv) * 2 * a.dim +
             channel;
  to[0] = __float2bfloat16_rn(low);
  to[a.dim] = __float2bfloat16_rn(high);
}

/// Grid: pages (or 1), kv heads, rows. Thread: channel.
__global__ void page_bounds_all_kernel(Args a, bool every) {
  const int kv = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const DevicePagedHead head = a.heads[row * a.kv_heads + kv];
  const int pages = pages_of(head);
  const int page = every ? static_cast<int>(blockIdx.x) : pages - 1;
  if (page < 0 || page >= pages) return;
  bound_page(a, row, kv, head, page, static_cast<int>(threadIdx.x));
}

/// sum over channels of max(q min, q max) = q+ max + q- min, where q+ and q- are summed over the heads that
/// share pages. Grid: blocks of pages, heads, rows. One warp per page at a time.
template <int kPairs>  ///< channel pairs per lane
__global__ void __launch_bounds__(kScoreThreads)
    quest_scores_kernel(Args a, bool share, float* scores, std::int32_t* row_pages) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int list_head = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const int list = row * static_cast<int>(gridDim.y) + list_head;
  const int kv = share ? list_head : list_head / a.group;
  const DevicePagedHead head = a.heads[row * a.kv_heads + kv];
  const int pages = pages_of(head), choosable = max(0, pages - 1);
  if (blockIdx.x == 0 && threadIdx.x == 0) row_pages[list] = choosable;
  // The newest token belongs to the last page, which is read anyway: its bounds are for later steps.
  if (blockIdx.x == 0 && pages > 0 && (share || list_head % a.group == 0)) {
    for (int c = static_cast<int>(threadIdx.x); c < a.dim; c += kScoreThreads)
      bound_page(a, row, kv, head, pages - 1, c);
  }
  const int begin = static_cast<int>(blockIdx.x) * kPagesPerBlock;
  if (begin >= choosable) return;

  const int q_begin = share ? kv * a.group : list_head, q_end = share ? (kv + 1) * a.group : list_head + 1;
  float2 up[kPairs] = {}, down[kPairs] = {};
  for (int h = q_begin; h < q_end; ++h) {
    const auto* q =
        reinterpret_cast<const __nv_bfloat162*>(a.q + (std::int64_t{row} * a.q_heads + h) * a.dim);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = i * 32 + lane;
      if (pair * 2 >= a.dim) continue;
      const float2 x = __bfloat1622float2(q[pair]);
      // NaN goes to the lower part, as on the CPU.
      if (x.x >= 0.0f)
        up[i].x += x.x;
      else
        down[i].x += x.x;
      if (x.y >= 0.0f)
        up[i].y += x.y;
      else
        down[i].y += x.y;
    }
  }
  const auto* bounds = static_cast<const __nv_bfloat16*>(a.states[row]) + std::int64_t{kv} * 2 * a.dim;
  const std::int64_t page_step = std::int64_t{a.kv_heads} * 2 * a.dim;
  const int end = min(begin + kPagesPerBlock, choosable);
#pragma unroll 4
  for (int page = begin + warp; page < end; page += kScoreThreads / 32) {
    const auto* low = reinterpret_cast<const __nv_bfloat162*>(bounds + page * page_step);
    const auto* high = low + a.dim / 2;
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int pair = i * 32 + lane;
      if (pair * 2 >= a.dim) continue;
      const float2 l = __bfloat1622float2(low[pair]), h = __bfloat1622float2(high[pair]);
      score = fmaf(up[i].x, h.x, fmaf(down[i].x, l.x, score));
      score = fmaf(up[i].y, h.y, fmaf(down[i].y, l.y, score));
    }
    for (int distance = 16; distance > 0; distance /= 2) score += __shfl_xor_sync(~0u, score, distance);
    if (lane == 0) {
      scores[list * a.max_pages + page] = score;
      if (!(fabsf(score) < INFINITY)) a.not_finite[row] = 1;
    }
  }
}

/// Per query head and candidate page: the largest score of its tokens and the sum of exp(score - largest).
/// Grid: blocks of pages, kv heads, rows. One warp per page at a time, two lanes per token.
__global__ void __launch_bounds__(kWeighThreads)
    page_partials_kernel(Args a, PageCandidates candidates, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int kv = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const int list = row * a.kv_heads + kv;
  const DevicePagedHead head = a.heads[list];
  const int count = candidates.lists != nullptr ? candidates.counts[list] : pages_of(head);
  const int begin = static_cast<int>(blockIdx.x) * kPagesPerBlock, end = min(begin + kPagesPerBlock, count);
  const int half = (lane & 1) * (a.dim / 2);
  for (int i = begin + warp; i < end; i += kWeighThreads / 32) {
    const int page = candidates.lists != nullptr ? candidates.lists[list * candidates.stride + i] : i;
    const std::int64_t token = std::int64_t{page} * kPageTokens + lane / 2;
    const bool cached = token < head.tokens;
    const auto* key =
        a.pool + static_cast<std::int64_t>(head.page_ids[page]) * a.page_elements + (lane / 2) * a.dim + half;
    for (int g = 0; g < a.group; ++g) {
      const int q_head = kv * a.group + g;
      const auto* q = a.q + (std::int64_t{row} * a.q_heads + q_head) * a.dim + half;
      float score = 0.0f;
      if (cached) {
        for (int c = 0; c < a.dim / 2; c += 2) {
          const float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(q + c));
          const float2 y = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(key + c));
          score = fmaf(x.x, y.x, score);
          score = fmaf(x.y, y.y, score);
        }
      }
      score += __shfl_xor_sync(~0u, score, 1);
      score *= a.scale;
      if (a.softcap > 0.0f) score = a.softcap * tanhf(score / a.softcap);
      if (cached && !(fabsf(score) < INFINITY)) a.not_finite[row] = 1;
      float top = cached ? score : -INFINITY;
      for (int distance = 16; distance > 1; distance /= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, distance));
      float sum = cached && (lane & 1) == 0 ? expf(score - top) : 0.0f;
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane == 0) {
        float* to = partial + ((std::int64_t{row} * a.q_heads + q_head) * a.max_pages + i) * 2;
        to[0] = top;
        to[1] = sum;
      }
    }
  }
}

/// Maximum or sum over the block in a fixed order; every thread gets the result.
template <class T, class Combine>
__device__ T block_reduce(T value, T* parts, Combine combine) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  for (int distance = 16; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(~0u, value, distance));
  __syncthreads();
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = parts[0];
  for (int w = 1; w < kScoreThreads / 32; ++w) value = combine(value, parts[w]);
  return value;
}

/// Block: one kv head of one row.
__global__ void __launch_bounds__(kScoreThreads)
    page_weights_kernel(Args a, PageCandidates candidates, const float* partial, float* weights,
                        std::int32_t* row_pages) {
  __shared__ float tops[kScoreThreads / 32];
  __shared__ double sums[kScoreThreads / 32];
  const int list = static_cast<int>(blockIdx.x), row = list / a.kv_heads, kv = list % a.kv_heads;
  const int count = candidates.lists != nullptr ? candidates.counts[list] : pages_of(a.heads[list]);
  float* to = weights + list * a.max_pages;
  if (threadIdx.x == 0) row_pages[list] = count;
  for (int g = 0; g < a.group; ++g) {
    const float* from = partial + (std::int64_t{row} * a.q_heads + kv * a.group + g) * a.max_pages * 2;
    float top = -INFINITY;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kScoreThreads) top = fmaxf(top, from[2 * i]);
    top = block_reduce(top, tops, [](float x, float y) { return fmaxf(x, y); });
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kScoreThreads)
      sum += from[2 * i + 1] * expf(from[2 * i] - top);
    sum = block_reduce(sum, sums, [](double x, double y) { return x + y; });
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kScoreThreads) {
      const auto weight =
          static_cast<float>(from[2 * i + 1] * expf(from[2 * i] - top) / sum / static_cast<double>(a.group));
      to[i] = g == 0 ? weight : to[i] + weight;
    }
  }
}

__global__ void map_kernel(std::int32_t* entries, const std::int32_t* counts, std::int64_t stride,
                           PageCandidates candidates) {
  const int list = static_cast<int>(blockIdx.x);
  for (int i = static_cast<int>(threadIdx.x); i < counts[list]; i += static_cast<int>(blockDim.x)) {
    std::int32_t& entry = entries[list * stride + i];
    entry = candidates.lists[list * candidates.stride + entry];
  }
}

/// Block: one kv head of one row.
__global__ void streaming_pages_kernel(Args a, std::int32_t* lists, std::int32_t* counts,
                                       std::int64_t stride) {
  const int list = static_cast<int>(blockIdx.x);
  const DecodeBudget budget = a.budgets[list / a.kv_heads];
  const std::int64_t tokens = a.heads[list].tokens;
  const int pages = pages_of(a.heads[list]);
  const int sinks = min(pages, (budget.sinks + kPageTokens - 1) / kPageTokens);
  const auto local = static_cast<int>((tokens > budget.pages ? tokens - budget.pages : 0) / kPageTokens);
  const int first_local = max(local, sinks);
  const int count = sinks + max(0, pages - first_local);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    lists[list * stride + i] = i < sinks ? i : first_local + i - sinks;
  if (threadIdx.x == 0) counts[list] = count;
}

unsigned page_blocks(const Args& a) {
  return static_cast<unsigned>((a.max_pages + kPagesPerBlock - 1) / kPagesPerBlock);
}

}  // namespace

void page_bounds_update_cuda(const DecodeChoice& choice, bool every, cudaStream_t stream) {
  const Args a = args_of(choice);
  const dim3 grid(every ? static_cast<unsigned>(a.max_pages) : 1, static_cast<unsigned>(a.kv_heads),
                  static_cast<unsigned>(choice.rows));
  page_bounds_all_kernel<<<grid, static_cast<unsigned>(a.dim), 0, stream>>>(a, every);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void quest_scores_cuda(const DecodeChoice& choice, bool share, float* scores, std::int32_t* row_pages,
                       cudaStream_t stream) {
  const Args a = args_of(choice);
  const dim3 grid(page_blocks(a), static_cast<unsigned>(share ? a.kv_heads : a.q_heads),
                  static_cast<unsigned>(choice.rows));
  if (a.dim <= 64) {
    quest_scores_kernel<1><<<grid, kScoreThreads, 0, stream>>>(a, share, scores, row_pages);
  } else if (a.dim <= 128) {
    quest_scores_kernel<2><<<grid, kScoreThreads, 0, stream>>>(a, share, scores, row_pages);
  } else {
    quest_scores_kernel<4><<<grid, kScoreThreads, 0, stream>>>(a, share, scores, row_pages);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void page_weights_cuda(const DecodeChoice& choice, const PageCandidates& candidates, float* partial,
                       float* weights, std::int32_t* row_pages, cudaStream_t stream) {
  const Args a = args_of(choice);
  const dim3 grid(page_blocks(a), static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(choice.rows));
  page_partials_kernel<<<grid, kWeighThreads, 0, stream>>>(a, candidates, partial);
  const auto lists = static_cast<unsigned>(choice.rows * a.kv_heads);
  page_weights_kernel<<<lists, kScoreThreads, 0, stream>>>(a, candidates, partial, weights, row_pages);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void map_to_candidates_cuda(std::int32_t* entries, const std::int32_t* counts, std::int64_t stride,
                            const PageCandidates& candidates, int lists, cudaStream_t stream) {
  map_kernel<<<static_cast<unsigned>(lists), 256, 0, stream>>>(entries, counts, stride, candidates);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void streaming_pages_cuda(const DecodeChoice& choice, cudaStream_t stream) {
  const Args a = args_of(choice);
  const auto lists = static_cast<unsigned>(choice.rows * a.kv_heads);
  streaming_pages_kernel<<<lists, 128, 0, stream>>>(a, choice.lists, choice.counts, choice.list_stride);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
