// Quest on the GPU: channel-wise bounds of the keys of each page, and the upper bounds of q . k that follow
// from them.
#include "attention/cuda/page_util.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBatch = 8;  ///< pages that a warp reads at once
constexpr int kPagesPerBlock = kWarps * kBatch;

/// The bounds of a page are kPieces pieces of 16 bytes, first those of the minima.
template <int kDim>
struct Pieces {
  static constexpr int kHalf = kDim / 8;
  static constexpr int kAll = 2 * kHalf;
  static constexpr int kPerLane = (kAll + 31) / 32;
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

/// sum over channels of max(q min, q max) = q+ max + q- min, where q+ and q- are summed over the heads that
/// share pages: a lane with minima multiplies q-, one with maxima q+. Grid: blocks of pages, kv heads, rows.
template <int kDim>
__global__ void __launch_bounds__(kThreads, kDim <= 128 ? 4 : 2)
    bound_scores_kernel(const __grid_constant__ DecodeChoice choice, bool share, float* scores,
                        std::int64_t stride) {
  constexpr int kHalf = Pieces<kDim>::kHalf, kAll = Pieces<kDim>::kAll, kPerLane = Pieces<kDim>::kPerLane;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int kv = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.z);
  const LayerInfo& info = choice.info;
  const DevicePagedHead head = choice.heads[row * info.kv_heads + kv];
  const int pages = page_count(head);
  // The last pages first: the newest one takes the longest, because its bounds come from its keys.
  const int block = (pages + kPagesPerBlock - 1) / kPagesPerBlock - 1 - static_cast<int>(blockIdx.x);
  const int first = block * kPagesPerBlock + warp * kBatch;
  if (block < 0 || first >= pages) return;

  // The newest page before the others are loaded: fewer registers, so that more warps load at once.
  const int newest = pages - 1 - first;
  uint4 fresh[kPerLane] = {};
  if (newest < kBatch) {
    const int count = static_cast<int>(head.tokens) - (pages - 1) * kPageTokens;
    const __nv_bfloat16* keys = keys_of(choice, head, pages - 1);
    uint4* to = bounds_at<kDim>(choice, row, kv, pages - 1);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int piece = i * 32 + lane;
      if (piece < kAll) to[piece] = fresh[i] = bounds_of_keys<kDim>(keys, count, piece);
    }
  }
  uint4 bounds[kBatch][kPerLane];
  const uint4* from = bounds_at<kDim>(choice, row, kv, first);
#pragma unroll
  for (int j = 0; j < kBatch; ++j)
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int piece = i * 32 + lane;
      bounds[j][i] = j == newest ? fresh[i] : make_uint4(0, 0, 0, 0);
      if (piece < kAll && j < newest) bounds[j][i] = from[std::int64_t{j} * info.kv_heads * kAll + piece];
    }

  const QueryHeads served(info, kv);
  const auto* queries = static_cast<const uint4*>(choice.q) + std::int64_t{row} * info.q_heads * kHalf;
  for (int begin = served.begin; begin < served.end; begin += share ? served.end - served.begin : 1) {
    const int end = share ? served.end : begin + 1;
    float part[kPerLane][8] = {};
    for (int h = begin; h < end; ++h)
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
    float sum[kBatch] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        float x[8];
        unpack(bounds[j][i], x);
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[j] = fmaf(part[i][c], x[c], sum[j]);
      }
    const float score = sums_of_eight(sum, lane);
    const int page = first + lane / 4;
    if (lane % 4 == 0 && page < pages) {
      const int list = share ? row * info.kv_heads + kv : row * info.q_heads + begin;
      scores[list * stride + page] = score;
      if (!(fabsf(score) < INFINITY)) choice.not_finite[row] = 1;
    }
  }
}

template <int kDim>
void launch_all_bounds(const DecodeChoice& choice, const dim3& grid, cudaStream_t stream) {
  all_bounds_kernel<kDim><<<grid, kThreads, 0, stream>>>(choice);
}
template <int kDim>
void launch_scores(const DecodeChoice& choice, bool share, float* scores, const dim3& grid,
                   cudaStream_t stream) {
  const std::int64_t stride = page_score_stride(choice.max_tokens);
  bound_scores_kernel<kDim><<<grid, kThreads, 0, stream>>>(choice, share, scores, stride);
}

dim3 grid_of(const DecodeChoice& choice, int pages_per_block) {
  const std::int64_t tokens = std::int64_t{pages_per_block} * kPageTokens;
  return dim3(static_cast<unsigned>((choice.max_tokens + tokens - 1) / tokens),
              static_cast<unsigned>(choice.info.kv_heads), static_cast<unsigned>(choice.rows));
}

}  // namespace

void prepare_page_bounds_cuda(const DecodeChoice& choice, cudaStream_t stream) {
  const dim3 grid = grid_of(choice, kWarps);
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
  const dim3 grid = grid_of(choice, kPagesPerBlock);
  switch (choice.info.head_dim) {
    case 64:
      launch_scores<64>(choice, share, scores, grid, stream);
      break;
    case 96:
      launch_scores<96>(choice, share, scores, grid, stream);
      break;
    case 128:
      launch_scores<128>(choice, share, scores, grid, stream);
      break;
    default:
      launch_scores<256>(choice, share, scores, grid, stream);
      break;
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
