// Block-sparse selection: mean-pool, score block pairs with tensor cores, keep the best, write tile lists.
//
// Pooled means are split into a bfloat16 and the bfloat16 of what that loses, and three products are added,
// so that scores carry 16 bits of each mean: the choice then differs from fp32 only where scores are closer
// than 2^-15 of their terms.
#include <cuda_bf16.h>

#include <algorithm>

#include "attention/cuda/list_scan.cuh"
#include "attention/cuda/mma.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

/// Query blocks whose scores are held at once.
constexpr int kStripRows = 128;

struct Layout {
  int blocks, blocks_padded, top;
  std::size_t q_high, q_low, k_high, k_low, scores, kept, counts, row_n, total = 0;

  Layout(const LayerInfo& info, std::int64_t tokens, int block, int top_blocks) {
    blocks = static_cast<int>((tokens + block - 1) / block);
    blocks_padded = (blocks + 63) / 64 * 64;
    top = std::min(std::max(top_blocks, 3), blocks);
    const auto padded = static_cast<std::size_t>(blocks_padded),
               dim = static_cast<std::size_t>(info.head_dim);
    const auto q_heads = static_cast<std::size_t>(info.q_heads),
               kv_heads = static_cast<std::size_t>(info.kv_heads);
    q_high = take(q_heads * padded * dim * 2);
    q_low = take(q_heads * padded * dim * 2);
    k_high = take(kv_heads * padded * dim * 2);
    k_low = take(kv_heads * padded * dim * 2);
    const std::size_t rows = q_heads * kStripRows;
    scores = take(rows * padded * sizeof(float));
    // Every row's chosen blocks, because ranges can be placed only once all are counted.
    kept = take(q_heads * static_cast<std::size_t>(blocks) * static_cast<std::size_t>(top) *
                sizeof(std::int32_t));
    counts = take(q_heads * static_cast<std::size_t>(blocks) * sizeof(std::int32_t));
    row_n = take(rows * sizeof(std::int32_t));
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
  float* scores;        ///< [q_heads, kStripRows, blocks_padded]
  std::int32_t* row_n;  ///< [q_heads, kStripRows]: causal blocks of the row
  int* not_finite;      ///< [q_heads] or null
  int strip, blocks, blocks_padded, head_dim, group, head_base, kv_base;
};

/// 64 query blocks x 64 key blocks: 4 warps of 16 rows; operands straight from global memory, which the L1
/// cache serves.
__global__ void __launch_bounds__(128) score_kernel(const __grid_constant__ ScoreArgs args) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int head = static_cast<int>(blockIdx.z);
  const int local_row = static_cast<int>(blockIdx.y) * 64 + warp * 16;
  const int row = args.strip + local_row;
  const int column = static_cast<int>(blockIdx.x) * 64;
  if (blockIdx.x == 0 && lane < 16) {
    const int r = row + lane;
    args.row_n[head * kStripRows + local_row + lane] = r < args.blocks ? r + 1 : 0;
  }
  if (row >= args.blocks || column > row + 15) return;
  const int kv_head = (args.head_base + head) / args.group - args.kv_base;
  const auto words = [&](const __nv_bfloat16* base, std::int64_t r) {
    return reinterpret_cast<const std::uint32_t*>(base + r * args.head_dim);
  };
  const std::int64_t q_row = static_cast<std::int64_t>(head) * args.blocks_padded + row + lane / 4;
  const std::int64_t k_row = static_cast<std::int64_t>(kv_head) * args.blocks_padded + column + lane / 4;
  float s[32] = {};
  for (int step = 0; step < args.head_dim / 16; ++step) {
    const int word = step * 8 + (lane & 3);
    std::uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t r = q_row + (i & 1) * 8;
      high[i] = __ldg(words(args.q_high, r) + word + (i >> 1) * 4);
      low[i] = __ldg(words(args.q_low, r) + word + (i >> 1) * 4);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const std::int64_t r = k_row + j * 8;
      const std::uint32_t k_high[2] = {__ldg(words(args.k_high, r) + word),
                                       __ldg(words(args.k_high, r) + word + 4)};
      const std::uint32_t k_low[2] = {__ldg(words(args.k_low, r) + word),
                                      __ldg(words(args.k_low, r) + word + 4)};
      mma(s + j * 4, high, k_high[0], k_high[1]);
      mma(s + j * 4, high, k_low[0], k_low[1]);
      mma(s + j * 4, low, k_high[0], k_high[1]);
    }
  }
  if (args.not_finite != nullptr) {
    bool bad = false;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int r = row + lane / 4 + ((i >> 1) & 1) * 8;
      const int c = column + i / 4 * 8 + (lane & 3) * 2 + (i & 1);
      if (r < args.blocks && c <= r) bad = bad || !isfinite(s[i]);
    }
    if (bad) args.not_finite[head] = 1;
  }
  float* to = args.scores +
              (static_cast<std::int64_t>(head) * kStripRows + local_row + lane / 4) * args.blocks_padded +
              column + (lane & 3) * 2;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    *reinterpret_cast<float2*>(to + j * 8) = make_float2(s[j * 4], s[j * 4 + 1]);
    *reinterpret_cast<float2*>(to + 8 * args.blocks_padded + j * 8) = make_float2(s[j * 4 + 2], s[j * 4 + 3]);
  }
}

struct EmitArgs {
  const std::int32_t* kept;    ///< [q_heads, blocks, top]
  const std::int32_t* counts;  ///< [q_heads, blocks]
  int rows, top, block, tokens;
};

/// Neighbouring blocks become one range.
template <bool kWrite>
__global__ void emit_kernel(const __grid_constant__ EmitArgs args, const __grid_constant__ TileListsOut out) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= args.rows) return;
  const std::int32_t* kept = args.kept + static_cast<std::int64_t>(row) * args.top;
  const int count = args.counts[row];
  std::int64_t at = kWrite ? out.range_begin[row] : 0;
  for (int i = 0; i < count;) {
    int j = i + 1;
    while (j < count && kept[j] == kept[j - 1] + 1) ++j;
    if constexpr (kWrite) {
      const int start = kept[i] * args.block;
      const int end = min((kept[j - 1] + 1) * args.block, args.tokens);
      if (at < out.max_ranges) out.ranges[at] = {start, end - start};
    }
    ++at;
    i = j;
  }
  if constexpr (!kWrite) out.range_begin[row + 1] = at;
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
  auto* kept = reinterpret_cast<std::int32_t*>(base + layout.kept);
  auto* counts = reinterpret_cast<std::int32_t*>(base + layout.counts);
  auto* row_n = reinterpret_cast<std::int32_t*>(base + layout.row_n);
  for (int strip = 0; strip < layout.blocks; strip += kStripRows) {
    const ScoreArgs args{half(layout.q_high),
                         half(layout.q_low),
                         half(layout.k_high),
                         half(layout.k_low),
                         scores,
                         row_n,
                         not_finite,
                         strip,
                         layout.blocks,
                         layout.blocks_padded,
                         info.head_dim,
                         info.q_heads_total / info.kv_heads_total,
                         info.q_head_begin,
                         info.kv_head_begin};
    const int last = std::min(strip + kStripRows, layout.blocks);
    const dim3 grid(static_cast<unsigned>((last + 63) / 64), kStripRows / 64,
                    static_cast<unsigned>(info.q_heads));
    score_kernel<<<grid, 128, 0, stream>>>(args);
    LACUNA_CUDA_TRY(cudaGetLastError());
    TopKParams choice;
    choice.scores = scores;
    choice.score_stride = layout.blocks_padded;
    choice.row_n = row_n;
    choice.k = layout.top;
    choice.first = 1, choice.last = 2;
    choice.n = last;
    choice.index_stride = layout.top;
    // Rows of one head follow each other in scores, and in kept at another distance: one call for all heads.
    choice.rows = info.q_heads * kStripRows;
    choice.rows_per_group = kStripRows;
    choice.rows_used = last - strip;
    choice.group_rows_out = layout.blocks;
    choice.indices = kept + static_cast<std::int64_t>(strip) * layout.top;
    choice.counts = counts + strip;
    top_k_cuda(choice, stream);
  }

  const EmitArgs emit{kept,       counts, info.q_heads * layout.blocks,
                      layout.top, block,  static_cast<int>(input.q.tokens)};
  const auto grid = static_cast<unsigned>((emit.rows + 127) / 128);
  emit_kernel<false><<<grid, 128, 0, stream>>>(emit, out);
  LACUNA_CUDA_TRY(cudaGetLastError());
  launch_list_scan(out, emit.rows, stream);
  emit_kernel<true><<<grid, 128, 0, stream>>>(emit, out);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
