// Quest on the GPU: channel-wise bounds of the keys of each page, and the upper bounds of q . k that follow
// from them.
#include "attention/cuda/mma.cuh"
#include "attention/cuda/page_util.cuh"
#include "core/cuda.h"
#include "core/cuda_launch.cuh"

namespace lacuna {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

/// The bounds of a page are kPieces pieces of 16 bytes, first those of the minima.
template <int kDim>
struct Pieces {
  static constexpr int kHalf = kDim / 8;
  static constexpr int kAll = 2 * kHalf;
  static constexpr int kPerLane = (kAll + 31) / 32;
  static constexpr int kPages = 64 / kAll * 8;  ///< that a warp reads at once: up to 8 KiB
  static constexpr int kPagesPerBlock = kWarps * kPages;
};

/// One piece of the bounds of a page whose first `count` tokens are cached.
template <int kDim>
__device__ inline uint4 bounds_of_keys(const __nv_bfloat16* keys, int count, int piece) {
  constexpr int kHalf = Pieces<kDim>::kHalf;
  const bool upper = piece >= kHalf;
  const auto* from = reinterpret_cast<const uint4*>(keys) + piece % kHalf;
  float best[8];
  unpack(from[0], best);
#pragma unroll
  for (int begin = 0; begin < kPageTokens; begin += 8) {
    uint4 row[8];  // in flight together; a token that is read twice changes nothing
#pragma unroll
    for (int t = 0; t < 8; ++t) row[t] = from[min(begin + t, count - 1) * kHalf];
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      float x[8];
      unpack(row[t], x);
#pragma unroll
      // A NaN key must reach the bound and stay there.
      for (int c = 0; c < 8; ++c)
        best[c] = (upper ? x[c] > best[c] : x[c] < best[c]) || x[c] != x[c] ? x[c] : best[c];
    }
  }
  std::uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    words[i] = __float_as_uint(best[2 * i]) >> 16 | (__float_as_uint(best[2 * i + 1]) & 0xFFFF0000u);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline const __nv_bfloat16* keys_of(const DecodeChoice& choice, const DevicePagedHead& head,
                                               int page) {
  return static_cast<const __nv_bfloat16*>(choice.pool) +
         static_cast<std::int64_t>(head.page_ids[page]) * choice.page_elements;
}
template <int kDim>
__device__ inline uint4* bounds_at(const DecodeChoice& choice, int row, int kv, int page) {
  return static_cast<uint4*>(choice.states[row]) +
         (std::int64_t{page} * choice.info.kv_heads + kv) * Pieces<kDim>::kAll;
}

/// Grid: blocks of pages, kv heads, rows. A warp per page.
template <int kDim>
__global__ void __launch_bounds__(kThreads) all_bounds_kernel(const __grid_constant__ DecodeChoice choice) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int kv = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const DevicePagedHead head = choice.heads[row * choice.info.kv_heads + kv];
  const int page = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (page >= page_count(head)) return;
  const int count = min(kPageTokens, static_cast<int>(head.tokens) - page * kPageTokens);
  const __nv_bfloat16* keys = keys_of(choice, head, page);
  uint4* to = bounds_at<kDim>(choice, row, kv, page);
  for (int piece = lane; piece < Pieces<kDim>::kAll; piece += 32)
    to[piece] = bounds_of_keys<kDim>(keys, count, piece);
}

/// Eight sums over the warp at once: on return lane l has the sum of value[l / 4].
__device__ inline float sums_of_eight(float (&value)[8], int lane) {
#pragma unroll
  for (int half = 4, distance = 16; half >= 1; half /= 2, distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float keep = upper ? value[i + half] : value[i], send = upper ? value[i] : value[i + half];
      value[i] = keep + __shfl_xor_sync(~0u, send, distance);
    }
  }
  value[0] += __shfl_xor_sync(~0u, value[0], 2);
  return value[0] + __shfl_xor_sync(~0u, value[0], 1);
}

/// Scores of pages [first, end) of one kv head, at most kPages, from their bounds in shared memory:
/// sum over channels of max(q min, q max) = q+ max + q- min, where q+ and q- are summed over the heads that
/// share pages: a lane with minima multiplies q-, one with maxima q+.
template <int kDim>
__device__ inline void write_scores(const DecodeChoice& choice, bool share, float* scores,
                                    std::int64_t stride, int kv, int first, int end, const uint4* bounds) {
  constexpr int kHalf = Pieces<kDim>::kHalf, kAll = Pieces<kDim>::kAll, kPerLane = Pieces<kDim>::kPerLane;
  const int lane = static_cast<int>(threadIdx.x) & 31, row = static_cast<int>(blockIdx.z);
  const LayerInfo& info = choice.info;
  const QueryHeads served(info, kv);
  const auto* queries = static_cast<const uint4*>(choice.q) + std::int64_t{row} * info.q_heads * kHalf;
  for (int begin = served.begin; begin < served.end; begin += share ? served.end - served.begin : 1) {
    const int last = share ? served.end : begin + 1;
    float part[kPerLane][8] = {};
#pragma unroll 8
    for (int h = begin; h < last; ++h)
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int piece = i * 32 + lane;
        if (piece >= kAll) continue;
        float x[8];
        unpack(queries[h * kHalf + piece % kHalf], x);
#pragma unroll
        for (int c = 0; c < 8; ++c)
          part[i][c] += (x[c] >= 0.0f) == (piece >= kHalf) ? x[c] : 0.0f;  // NaN: minima
      }
    copy_async_wait<0>();
    __syncwarp();
    for (int base = 0; base < end - first; base += 8) {
      float sum[8] = {};  // what lies behind the last page is never written
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          const int piece = i * 32 + lane;
          if (piece >= kAll) continue;
          float x[8];
          unpack(bounds[(base + j) * kAll + piece], x);
#pragma unroll
          for (int c = 0; c < 8; ++c) sum[j] = fmaf(part[i][c], x[c], sum[j]);
        }
      const float score = sums_of_eight(sum, lane);
      const int page = first + base + lane / 4;
      if (lane % 4 == 0 && page < end) {
        const int list = share ? row * info.kv_heads + kv : row * info.q_heads + begin;
        scores[list * stride + page] = score;
        if (!(fabsf(score) < INFINITY)) choice.not_finite[row] = 1;
      }
    }
  }
}

/// A line into the second-level cache: whoever reads the chosen pages looks up where they are.
__device__ inline void read_ahead(const void* from) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}

/// Grid: the newest page, then blocks of the others; kv heads; rows.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 4)
    bound_scores_kernel(const __grid_constant__ DecodeChoice choice, bool share, float* scores,
                        std::int64_t stride) {
  constexpr int kAll = Pieces<kDim>::kAll, kPages = Pieces<kDim>::kPages;
  __shared__ uint4 shared[kWarps][kPages * kAll];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int kv = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const LayerInfo& info = choice.info;
  uint4* bounds = shared[warp];
  let_next_start();
  if (!choice.settled) wait_for_previous();
  const DevicePagedHead head = choice.heads[row * info.kv_heads + kv];
  const int newest = page_count(head) - 1;
  if (blockIdx.x == 0) {  // the newest page: its bounds come from its keys
    wait_for_previous();
    if (warp > 0 || newest < 0) return;
    const int count = static_cast<int>(head.tokens) - newest * kPageTokens;
    const __nv_bfloat16* keys = keys_of(choice, head, newest);
    uint4* to = bounds_at<kDim>(choice, row, kv, newest);
    for (int piece = lane; piece < kAll; piece += 32)
      to[piece] = bounds[piece] = bounds_of_keys<kDim>(keys, count, piece);
    return write_scores<kDim>(choice, share, scores, stride, kv, newest, newest + 1, bounds);
  }

  // The others': they are on their way before the query is there.
  const int first = ((static_cast<int>(blockIdx.x) - 1) * kWarps + warp) * kPages;
  const int end = min(first + kPages, newest);
  const uint4* from = bounds_at<kDim>(choice, row, kv, first);
#pragma unroll
  for (int j = 0; j < kPages * kAll / 32; ++j) {
    const int i = j * 32 + lane, page = i / kAll;
    if (first + page < end) copy_async_16(bounds + i, from + page * info.kv_heads * kAll + i % kAll);
  }
  copy_async_commit();
  if (lane == 0 && first < end) read_ahead(head.page_ids + first);
  wait_for_previous();
  if (first < end) write_scores<kDim>(choice, share, scores, stride, kv, first, end, bounds);
}

dim3 grid_of(const DecodeChoice& choice, int pages_per_block, unsigned more_blocks) {
  const std::int64_t tokens = std::int64_t{pages_per_block} * kPageTokens;
  return dim3(static_cast<unsigned>((choice.max_tokens + tokens - 1) / tokens) + more_blocks,
              static_cast<unsigned>(choice.info.kv_heads), static_cast<unsigned>(choice.rows));
}
template <int kDim>
void launch_all_bounds(const DecodeChoice& choice, const dim3& grid, cudaStream_t stream) {
  all_bounds_kernel<kDim><<<grid, kThreads, 0, stream>>>(choice);
}
template <int kDim>
void launch_scores(const DecodeChoice& choice, bool share, float* scores, cudaStream_t stream) {
  launch_dependent(bound_scores_kernel<kDim>, grid_of(choice, Pieces<kDim>::kPagesPerBlock, 1), kThreads, 0,
                   stream, choice, share, scores, page_score_stride(choice.max_tokens));
}

}  // namespace

void prepare_page_bounds_cuda(const DecodeChoice& choice, cudaStream_t stream) {
  const dim3 grid = grid_of(choice, kWarps, 0);
  switch (choice.info.head_dim) {
    case 64:
      launch_all_bounds<64>(choice, grid, stream);
      break;
    case 96:
      launch_all_bounds<96>(choice, grid, stream);
      break;
    case 128:
      launch_all_bounds<128>(choice, grid, stream);
      break;
    default:
      launch_all_bounds<256>(choice, grid, stream);
      break;
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void page_bound_scores_cuda(const DecodeChoice& choice, bool share, float* scores, cudaStream_t stream) {
  switch (choice.info.head_dim) {
    case 64:
      launch_scores<64>(choice, share, scores, stream);
      break;
    case 96:
      launch_scores<96>(choice, share, scores, stream);
      break;
    case 128:
      launch_scores<128>(choice, share, scores, stream);
      break;
    default:
      launch_scores<256>(choice, share, scores, stream);
      break;
  }
}

}  // namespace lacuna
