// Block-sparse selection: mean-pool, score block pairs with tensor cores, keep the best, write tile lists.
//
// Pooled means are split into a bfloat16 and the bfloat16 of what that loses, and three products are added,
// so that scores carry 16 bits of each mean: the choice then differs from fp32 only where scores are closer
// than 2^-15 of their terms.
//
// Blocks of 16, 131072 tokens, 28 heads of 128, that is 8192 rows of 4096 scores on average, 940 million in
// all: 722 GFLOP of mma (0.9 ms at 790 TFLOP/s), 1.07 GB of queries and keys (0.25 ms), and 3.8 GB of scores
// written and read once, strip by strip, mostly in the second-level cache (1.7 ms at the memory's 4.3 TB/s).
#include <cuda_bf16.h>

#include <algorithm>

#include "attention/cuda/mma.cuh"
#include "attention/cuda/select_cuda.h"
#include "attention/cuda/swizzle.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

/// Query blocks whose scores are held at once.
constexpr int kStripRows = 128;

struct Layout {
  int blocks, blocks_padded, top, words;
  std::size_t q_high, q_low, k_high, k_low, scores, bits, total = 0;

  Layout(const LayerInfo& info, std::int64_t tokens, int block, int top_blocks) {
    blocks = static_cast<int>((tokens + block - 1) / block);
    blocks_padded = (blocks + kStripRows - 1) / kStripRows * kStripRows;
    top = std::min(std::max(top_blocks, 3), blocks);
    words = (blocks + 31) / 32;
    const auto padded = static_cast<std::size_t>(blocks_padded),
               dim = static_cast<std::size_t>(info.head_dim);
    const auto q_heads = static_cast<std::size_t>(info.q_heads),
               kv_heads = static_cast<std::size_t>(info.kv_heads);
    q_high = take(q_heads * padded * dim * 2);
    q_low = take(q_heads * padded * dim * 2);
    k_high = take(kv_heads * padded * dim * 2);
    k_low = take(kv_heads * padded * dim * 2);
    scores = take(q_heads * kStripRows * padded * sizeof(float));
    // Every row's choice, because ranges can be placed only once all are counted.
    bits = take(q_heads * static_cast<std::size_t>(blocks) * static_cast<std::size_t>(words) *
                sizeof(std::uint32_t));
  }

 private:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = total;
    total += (bytes + 255) / 256 * 256;
    return at;
  }
};

struct PoolArgs {
  const __nv_bfloat16* x;
  std::int64_t head_stride, token_stride;
  int tokens, block, blocks_padded, head_dim;
  __nv_bfloat16 *high, *low;  ///< [heads, blocks_padded, head_dim]
};

/// One block of threads per (pooled row, head): a thread per channel pair. Sums in fp32, ascending, as
/// mean_pool does.
__global__ void pool_kernel(const __grid_constant__ PoolArgs args) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int channel = static_cast<int>(threadIdx.x) * 2;
  const int begin = row * args.block, end = min(begin + args.block, args.tokens);
  float a = 0.0f, b = 0.0f;
  const auto* from = args.x + head * args.head_stride + channel;
#pragma unroll 8
  for (int t = begin; t < end; ++t) {
    const auto pair = *reinterpret_cast<const __nv_bfloat162*>(from + t * args.token_stride);
    a += __bfloat162float(pair.x);
    b += __bfloat162float(pair.y);
  }
  if (end > begin) {
    a /= static_cast<float>(end - begin);
    b /= static_cast<float>(end - begin);
  }
  const std::int64_t at =
      (static_cast<std::int64_t>(head) * args.blocks_padded + row) * args.head_dim + channel;
  const auto high = __floats2bfloat162_rn(a, b);
  *reinterpret_cast<__nv_bfloat162*>(args.high + at) = high;
  *reinterpret_cast<__nv_bfloat162*>(args.low + at) =
      __floats2bfloat162_rn(a - __bfloat162float(high.x), b - __bfloat162float(high.y));
}

struct ScoreArgs {
  const __nv_bfloat16 *q_high, *q_low, *k_high, *k_low;
  float* scores;    ///< [q_heads, kStripRows, blocks_padded]
  int* not_finite;  ///< [q_heads] or null
  int strip, blocks, blocks_padded, head_dim, group, head_base, kv_base;
};

constexpr int kTile = 128;     ///< query blocks and key blocks of a tile: as many as a strip has rows
constexpr int kChannels = 32;  ///< of a stage
static_assert(kTile == kStripRows);

/// Channels of both parts of a tile's means.
struct ScoreStage {
  __nv_bfloat16 q_high[kTile * kChannels], q_low[kTile * kChannels], k_high[kTile * kChannels],
      k_low[kTile * kChannels];
};

__device__ void load_means(const __nv_bfloat16* from, int head_dim, __nv_bfloat16* to) {
  constexpr int kPieces = kChannels / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kPieces; i += static_cast<int>(blockDim.x))
    copy_async_16(to + swizzled<kChannels>(i / kPieces, i % kPieces),
                  from + static_cast<std::int64_t>(i / kPieces) * head_dim + i % kPieces * 8);
}

/// 128 query blocks x 128 key blocks: 8 warps of 32 x 64, channels in two stages of 32.
__global__ void __launch_bounds__(256, 2) score_kernel(const __grid_constant__ ScoreArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto* stages = reinterpret_cast<ScoreStage*>(raw);
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int head = static_cast<int>(blockIdx.x), column = static_cast<int>(blockIdx.y) * kTile;
  const int kv_head = (args.head_base + head) / args.group - args.kv_base;
  const std::int64_t q_from =
      (static_cast<std::int64_t>(head) * args.blocks_padded + args.strip) * args.head_dim;
  const std::int64_t k_from =
      (static_cast<std::int64_t>(kv_head) * args.blocks_padded + column) * args.head_dim;
  const auto load = [&](int first) {
    ScoreStage& stage = stages[first / kChannels & 1];
    load_means(args.q_high + q_from + first, args.head_dim, stage.q_high);
    load_means(args.q_low + q_from + first, args.head_dim, stage.q_low);
    load_means(args.k_high + k_from + first, args.head_dim, stage.k_high);
    load_means(args.k_low + k_from + first, args.head_dim, stage.k_low);
    copy_async_commit();
  };
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 64;
  const bool causal = column + warp_column <= args.strip + warp_row + 31;
  float s[2][32] = {};
  load(0);
  for (int first = 0; first < args.head_dim; first += kChannels) {
    copy_async_wait<0>();
    __syncthreads();
    if (first + kChannels < args.head_dim) load(first + kChannels);
    if (!causal) continue;
    const ScoreStage& stage = stages[first / kChannels & 1];
#pragma unroll
    for (int step = 0; step < kChannels / 16; ++step) {
      const int q_at = swizzled<kChannels>(warp_row + (lane & 15), step * 2 + (lane >> 4));
      const int k_at =
          swizzled<kChannels>(warp_column + (lane >> 4) * 8 + (lane & 7), step * 2 + ((lane >> 3) & 1));
      std::uint32_t high[2][4], low[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_matrix(high[m], stage.q_high + q_at + m * 16 * kChannels);
        load_matrix(low[m], stage.q_low + q_at + m * 16 * kChannels);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        std::uint32_t k[4];
        load_matrix(k, stage.k_high + k_at + j * 16 * kChannels);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            mma(s[m] + j * 8 + half * 4, high[m], k[half * 2], k[half * 2 + 1]);
            mma(s[m] + j * 8 + half * 4, low[m], k[half * 2], k[half * 2 + 1]);
          }
        load_matrix(k, stage.k_low + k_at + j * 16 * kChannels);
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            mma(s[m] + j * 8 + half * 4, high[m], k[half * 2], k[half * 2 + 1]);
      }
    }
  }
  if (!causal) return;
  bool bad = false;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int local = warp_row + m * 16 + r * 8 + lane / 4, row = args.strip + local;
      float* to = args.scores + (static_cast<std::int64_t>(head) * kStripRows + local) * args.blocks_padded +
                  column + warp_column + (lane & 3) * 2;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 pair = make_float2(s[m][j * 4 + 2 * r], s[m][j * 4 + 2 * r + 1]);
        const int c = column + warp_column + j * 8 + (lane & 3) * 2;
        if (row < args.blocks)
          bad = bad || (c <= row && !isfinite(pair.x)) || (c + 1 <= row && !isfinite(pair.y));
        *reinterpret_cast<float2*>(to + j * 8) = pair;
      }
    }
  if (bad && args.not_finite != nullptr) args.not_finite[head] = 1;
}

}  // namespace

std::size_t block_sparse_workspace_bytes(const LayerInfo& info, std::int64_t tokens, int block, int top) {
  return Layout(info, tokens, block, top).total;
}

void block_sparse_lists_cuda(const PrefillInput& input, int block, int top, const TileListsOut& out,
                             CudaWorkspace workspace, cudaStream_t stream, int* not_finite) {
  const LayerInfo& info = input.info;
  const Layout layout(info, input.q.tokens, block, top);
  if (workspace.bytes < layout.total)
    throw_cuda(cudaErrorMemoryAllocation, "block_sparse: workspace too small");
  auto* base = static_cast<unsigned char*>(workspace.data);
  const auto half = [&](std::size_t at) { return reinterpret_cast<__nv_bfloat16*>(base + at); };

  const auto pool = [&](const HeadsView& x, std::size_t high, std::size_t low) {
    const PoolArgs args{static_cast<const __nv_bfloat16*>(x.data),
                        x.head_stride,
                        x.token_stride,
                        static_cast<int>(x.tokens),
                        block,
                        layout.blocks_padded,
                        x.head_dim,
                        half(high),
                        half(low)};
    const dim3 grid(static_cast<unsigned>(layout.blocks_padded), static_cast<unsigned>(x.heads));
    pool_kernel<<<grid, static_cast<unsigned>(x.head_dim / 2), 0, stream>>>(args);
    LACUNA_CUDA_TRY(cudaGetLastError());
  };
  pool(input.q, layout.q_high, layout.q_low);
  pool(input.k, layout.k_high, layout.k_low);

  auto* scores = reinterpret_cast<float*>(base + layout.scores);
  auto* bits = reinterpret_cast<std::uint32_t*>(base + layout.bits);
  constexpr int kBytes = 2 * static_cast<int>(sizeof(ScoreStage));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(score_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  ScoreArgs args{half(layout.q_high),
                 half(layout.q_low),
                 half(layout.k_high),
                 half(layout.k_low),
                 scores,
                 not_finite,
                 0,
                 layout.blocks,
                 layout.blocks_padded,
                 info.head_dim,
                 info.q_heads_total / info.kv_heads_total,
                 info.q_head_begin,
                 info.kv_head_begin};
  BlockChoiceParams choice;
  choice.scores = scores;
  choice.score_stride = layout.blocks_padded;
  choice.strip_rows = kStripRows;
  choice.count = layout.top;
  choice.force_first = 1, choice.force_last = 2;
  choice.bits = bits;
  choice.row_blocks = layout.blocks;
  choice.words = layout.words;
  for (int strip = 0; strip < layout.blocks; strip += kStripRows) {
    const int rows = std::min(kStripRows, layout.blocks - strip);
    args.strip = choice.first_row = strip;
    const dim3 grid(static_cast<unsigned>(info.q_heads),
                    static_cast<unsigned>((strip + rows + kTile - 1) / kTile));
    score_kernel<<<grid, 256, kBytes, stream>>>(args);
    LACUNA_CUDA_TRY(cudaGetLastError());
    choose_blocks_cuda(choice, info.q_heads, rows, stream);
  }
  block_lists_cuda(
      {.bits = bits, .words = layout.words, .heads = info.q_heads, .tokens = input.q.tokens, .block = block},
      out, stream);
}

}  // namespace lacuna
