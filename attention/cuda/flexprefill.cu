// The query-aware branch of FlexPrefill and its blocks: how good a block-level
// estimate is, the map of pooled blocks, and the blocks that kept columns and
// diagonals touch. The rules of methods/prefill_flexprefill.cpp.
#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>

#include "attention/cuda/flexprefill.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

/// Sum (or maximum) over the block, in a fixed order; every thread gets it.
__device__ double block_total(double value, bool maximum, double* parts) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  for (int distance = 16; distance > 0; distance /= 2) {
    const double other = __shfl_down_sync(~0u, value, distance);
    value = maximum ? fmax(value, other) : value + other;
  }
  __syncthreads();  // parts may still be read from the last time
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = parts[0];
  for (int w = 1; w < kWarps; ++w) value = maximum ? fmax(value, parts[w]) : value + parts[w];
  return value;
}

struct MeanArgs {
  const __nv_bfloat16* x;
  std::int64_t head_stride, token_stride;
  int tokens, block, head_dim;
  float* means;
};

/// One block of threads per (row block, head), a thread per channel.
__global__ void mean_blocks_kernel(const __grid_constant__ MeanArgs args) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int channel = static_cast<int>(threadIdx.x);
  const int begin = row * args.block, end = min(begin + args.block, args.tokens);
  const __nv_bfloat16* from = args.x + head * args.head_stride + channel;
  float sum = 0.0f;
#pragma unroll 8
  for (int t = begin; t < end; ++t) sum += __bfloat162float(from[t * args.token_stride]);
  args.means[(static_cast<std::int64_t>(head) * static_cast<int>(gridDim.x) + row) * args.head_dim +
             channel] = sum / static_cast<float>(end - begin);
}

struct EstimateArgs {
  const __nv_bfloat16* q;
  std::int64_t head_stride, token_stride;
  const float *column_sum, *key_means;
  int tokens, rows, block, blocks, head_dim, group, head_base, kv_base;
  double scale, tau;
  double* scratch;  ///< [q_heads, head_dim + 2 * blocks]: query sum, estimate, truth
  int* near_truth;
  __device__ double* of_head(int head) const {
    return scratch + static_cast<std::int64_t>(head) * (head_dim + 2 * blocks);
  }
};

/// One block per head; the rows are split among its threads, whose parts are
/// added in order.
__global__ void query_sum_kernel(const __grid_constant__ EstimateArgs args) {
  __shared__ double parts[kThreads];
  const int thread = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x);
  const int splits = kThreads / args.head_dim;
  const int channel = thread % args.head_dim, split = thread / args.head_dim;
  const __nv_bfloat16* from = args.q + head * args.head_stride + channel;
  double sum = 0.0;
  if (split < splits) {
#pragma unroll 8
    for (int t = args.tokens - args.rows + split; t < args.tokens; t += splits)
      sum += static_cast<double>(__bfloat162float(from[t * args.token_stride]));
  }
  parts[thread] = sum;
  __syncthreads();
  if (split > 0) return;
  for (int s = 1; s < splits; ++s) sum += parts[s * args.head_dim + channel];
  args.of_head(head)[channel] = sum;
}

/// One warp per (key block, head): the estimate's exponent and the window's
/// true weight.
__global__ void estimate_kernel(const __grid_constant__ EstimateArgs args) {
  const int lane = static_cast<int>(threadIdx.x) & 31, head = static_cast<int>(blockIdx.y);
  const int block = static_cast<int>(blockIdx.x) * kWarps + (static_cast<int>(threadIdx.x) >> 5);
  if (block >= args.blocks) return;
  const int kv_head = (args.head_base + head) / args.group - args.kv_base;
  const float* key =
      args.key_means + (static_cast<std::int64_t>(kv_head) * args.blocks + block) * args.head_dim;
  double* to = args.of_head(head);
  double dot = 0.0, weight = 0.0;
  for (int c = lane; c < args.head_dim; c += 32) dot += to[c] * static_cast<double>(key[c]);
  const float* columns = args.column_sum + static_cast<std::int64_t>(head) * args.tokens;
  const int end = min((block + 1) * args.block, args.tokens);
  for (int t = block * args.block + lane; t < end; t += 32)
    weight += static_cast<double>(columns[t]) / args.rows;
  for (int distance = 16; distance > 0; distance /= 2) {
    dot += __shfl_down_sync(~0u, dot, distance);
    weight += __shfl_down_sync(~0u, weight, distance);
  }
  if (lane == 0) {
    to[args.head_dim + block] = args.scale * dot / args.rows;
    to[args.head_dim + args.blocks + block] = weight;
  }
}

/// One block per head: square root of the Jensen-Shannon divergence of
/// softmax(estimate) and the truth.
__global__ void divergence_kernel(const __grid_constant__ EstimateArgs args) {
  __shared__ double parts[kWarps];
  const int head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const double* estimate = args.of_head(head) + args.head_dim;
  const double* truth = estimate + args.blocks;
  double top = -INFINITY, sum = 0.0, total = 0.0;
  for (int b = thread; b < args.blocks; b += kThreads) top = fmax(top, estimate[b]);
  top = block_total(top, true, parts);
  for (int b = thread; b < args.blocks; b += kThreads) sum += exp(estimate[b] - top);
  sum = block_total(sum, false, parts);
  for (int b = thread; b < args.blocks; b += kThreads) {
    const double x = exp(estimate[b] - top) / sum, y = truth[b], middle = (x + y) / 2;
    if (x > 0) total += x * log(x / middle);
    if (y > 0) total += y * log(y / middle);
  }
  total = block_total(total, false, parts);
  if (thread == 0) args.near_truth[head] = sqrt(fmax(0.0, total / 2)) < args.tau ? 1 : 0;
}

struct MapArgs {
  BlockMapParams params;
  int head_dim, group, head_base, kv_base;
  float scale;
};

/// One block of threads per (row block, head), a thread per key block in turn.
/// Sums in fp32, ascending.
__global__ void map_scores_kernel(const __grid_constant__ MapArgs args) {
  __shared__ float query[256];
  const BlockMapParams& p = args.params;
  const int head = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  if (p.only_heads[head] == 0) return;
  const std::int64_t line = static_cast<std::int64_t>(head) * p.blocks + row;
  if (thread < args.head_dim) query[thread] = p.query_means[line * args.head_dim + thread];
  __syncthreads();
  const int kv_head = (args.head_base + head) / args.group - args.kv_base;
  for (int j = thread; j <= row; j += kThreads) {
    const float* key = p.key_means + (static_cast<std::int64_t>(kv_head) * p.blocks + j) * args.head_dim;
    float dot = 0.0f;
    for (int c = 0; c < args.head_dim; c += 4) {
      const float4 x = *reinterpret_cast<const float4*>(key + c);
      dot += query[c] * x.x;
      dot += query[c + 1] * x.y;
      dot += query[c + 2] * x.z;
      dot += query[c + 3] * x.w;
    }
    p.map[line * p.map_stride + j] = args.scale * dot;
  }
}

__global__ void map_softmax_kernel(const __grid_constant__ BlockMapParams p) {
  __shared__ double parts[kWarps];
  const int head = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  if (p.only_heads[head] == 0) return;
  float* line = p.map + (static_cast<std::int64_t>(head) * p.blocks + row) * p.map_stride;
  double top = -INFINITY, sum = 0.0;
  for (int j = thread; j <= row; j += kThreads) top = fmax(top, static_cast<double>(line[j]));
  top = block_total(top, true, parts);
  for (int j = thread; j <= row; j += kThreads) sum += exp(static_cast<double>(line[j]) - top);
  sum = block_total(sum, false, parts);
  for (int j = thread; j < p.map_stride; j += kThreads)
    line[j] = j <= row ? static_cast<float>(exp(static_cast<double>(line[j]) - top) / sum) : 0.0f;
}

struct SlashBitsArgs {
  SlashListsParams kept;
  int block, tokens;
  const int* skip_heads;
  std::uint32_t* bits;
  std::int64_t words;
};

/// One block of threads per (row block, head).
__global__ void slash_bits_kernel(const __grid_constant__ SlashBitsArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto* row_bits = reinterpret_cast<unsigned*>(raw);
  const int head = static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x), words = static_cast<int>(args.words);
  if (args.skip_heads != nullptr && args.skip_heads[head] != 0) return;
  for (int w = thread; w < words; w += kThreads) row_bits[w] = 0;
  __syncthreads();
  const auto set = [&](int b) { atomicOr(row_bits + b / 32, 1u << (b & 31)); };
  if (thread == 0) {
    set(0);
    set(row);
  }
  const std::int32_t* columns = args.kept.columns + head * args.kept.column_stride;
  // Sorted: neighbours often mean the same block, which the first of them sets.
  for (int i = thread; i < args.kept.column_counts[head]; i += kThreads) {
    const int b = columns[i] / args.block;
    if (b <= row && (i == 0 || columns[i - 1] / args.block != b)) set(b);
  }
  const int first = row * args.block, last = min(first + args.block, args.tokens) - 1;
  const std::int32_t* offsets = args.kept.offsets + head * args.kept.offset_stride;
  for (int i = thread; i < args.kept.offset_counts[head]; i += kThreads) {
    if (offsets[i] > last) break;
    const int high = (last - offsets[i]) / args.block, low = max(first - offsets[i], 0) / args.block;
    if (i == 0 || (last - offsets[i - 1]) / args.block != high) set(high);
    if (i == 0 || max(first - offsets[i - 1], 0) / args.block != low) set(low);
  }
  __syncthreads();
  std::uint32_t* to =
      args.bits + (static_cast<std::int64_t>(head) * static_cast<int>(gridDim.x) + row) * args.words;
  for (int w = thread; w < words; w += kThreads) to[w] = row_bits[w];
}

}  // namespace

void mean_blocks_cuda(const HeadsView& x, int block, float* means, cudaStream_t stream) {
  const MeanArgs args{static_cast<const __nv_bfloat16*>(x.data),
                      x.head_stride,
                      x.token_stride,
                      static_cast<int>(x.tokens),
                      block,
                      x.head_dim,
                      means};
  const dim3 grid(static_cast<unsigned>((x.tokens + block - 1) / block), static_cast<unsigned>(x.heads));
  mean_blocks_kernel<<<grid, static_cast<unsigned>(x.head_dim), 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void block_estimate_cuda(const PrefillInput& input, const BlockEstimateParams& params, cudaStream_t stream) {
  const LayerInfo& info = input.info;
  EstimateArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(input.q.data);
  args.head_stride = input.q.head_stride, args.token_stride = input.q.token_stride;
  args.column_sum = params.column_sum, args.key_means = params.key_means;
  args.tokens = static_cast<int>(input.q.tokens);
  args.rows = params.rows, args.block = params.block;
  args.blocks = (args.tokens + params.block - 1) / params.block;
  args.head_dim = info.head_dim;
  args.group = info.q_heads_total / info.kv_heads_total;
  args.head_base = info.q_head_begin, args.kv_base = info.kv_head_begin;
  args.scale = static_cast<double>(info.scale), args.tau = params.tau;
  args.scratch = params.scratch, args.near_truth = params.near_truth;
  const auto heads = static_cast<unsigned>(info.q_heads);
  query_sum_kernel<<<heads, kThreads, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
  const dim3 grid(static_cast<unsigned>((args.blocks + kWarps - 1) / kWarps), heads);
  estimate_kernel<<<grid, kThreads, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
  divergence_kernel<<<heads, kThreads, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void block_map_scores_cuda(const LayerInfo& info, const BlockMapParams& params, cudaStream_t stream) {
  const MapArgs args{params,
                     info.head_dim,
                     info.q_heads_total / info.kv_heads_total,
                     info.q_head_begin,
                     info.kv_head_begin,
                     info.scale};
  const dim3 grid(static_cast<unsigned>(params.blocks), static_cast<unsigned>(info.q_heads));
  map_scores_kernel<<<grid, kThreads, 0, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void block_map_softmax_cuda(const LayerInfo& info, const BlockMapParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.blocks), static_cast<unsigned>(info.q_heads));
  map_softmax_kernel<<<grid, kThreads, 0, stream>>>(params);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void slash_bits_cuda(const SlashListsParams& kept, int block, const int* skip_heads, std::uint32_t* bits,
                     std::int64_t words, cudaStream_t stream) {
  const SlashBitsArgs args{kept, block, static_cast<int>(kept.tokens), skip_heads, bits, words};
  const dim3 grid(static_cast<unsigned>((kept.tokens + block - 1) / block),
                  static_cast<unsigned>(kept.heads));
  slash_bits_kernel<<<grid, kThreads, static_cast<unsigned>(words) * 4, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
