// window_scores_cuda: workspace, the two passes, and the sums that join their pieces in a fixed order.
#include "attention/cuda/window_scores_launch.h"

#include <algorithm>
#include <cmath>

#include "core/cuda_launch.cuh"

namespace lacuna {

namespace {

/// Few rows: several heads share a block, so that no warp is idle.
WindowShape shape_of(const LayerInfo& info, int rows) {
  WindowShape shape;
  shape.warps_per_head = rows <= kWarpRows ? 1 : rows <= 2 * kWarpRows ? 2 : kWindowWarps;
  shape.row_blocks = (rows + shape.block_rows() - 1) / shape.block_rows();
  const int group = info.q_heads_total / info.kv_heads_total;
  shape.slots_per_kv = (group + shape.heads_per_block() - 1) / shape.heads_per_block();
  return shape;
}

struct Layout {
  int rows, spans;
  WindowShape shape;
  std::size_t row_part, row_shift, column_sum, column_max, diagonal, total = 0;

  Layout(const LayerInfo& info, std::int64_t tokens, int window, bool diagonals) {
    rows = static_cast<int>(std::min<std::int64_t>(window, tokens));
    shape = shape_of(info, rows);
    spans = static_cast<int>((tokens + kWindowSpan - 1) / kWindowSpan);
    const auto heads = static_cast<std::size_t>(info.q_heads);
    const auto padded = static_cast<std::size_t>(shape.rows_padded()),
               blocks = static_cast<std::size_t>(shape.row_blocks);
    const std::size_t columns = blocks == 1 ? 0 : heads * blocks * static_cast<std::size_t>(tokens);
    row_part = take(heads * static_cast<std::size_t>(spans) * padded * sizeof(float2));
    row_shift = take(heads * padded * sizeof(float));
    column_sum = take(columns * sizeof(float));
    column_max = take(columns * sizeof(float));
    diagonal = take(!diagonals ? 0
                               : heads * blocks * static_cast<std::size_t>(spans) *
                                     static_cast<std::size_t>(shape.diagonals()) * sizeof(float));
  }

 private:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = total;
    total += (bytes + 255) / 256 * 256;
    return at;
  }
};

constexpr int kJoinWarps = 8;

/// Lane: one of 32 rows of a head; warps take spans in turn, then meet in order.
__global__ void join_rows_kernel(const float2* part, float* shift, int rows, int rows_padded, int spans,
                                 int* not_finite) {
  wait_for_previous();
  let_next_start();
  __shared__ float2 of_warp[kJoinWarps][32];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int row = static_cast<int>(blockIdx.x) * 32 + lane, head = static_cast<int>(blockIdx.y);
  const float2* from = part + static_cast<std::int64_t>(head) * spans * rows_padded + row;
  float top = -INFINITY, sum = 0.0f;
  const auto merge = [&](float2 other) {
    const float high = fmaxf(top, other.x);
    const float a = top == -INFINITY ? sum : sum * exp2f(top - high);
    const float b = other.x == -INFINITY ? other.y : other.y * exp2f(other.x - high);
    sum = a + b;  // NaN stays NaN: it is how a bad score is noticed
    top = high;
  };
#pragma unroll 4
  for (int span = warp; span < spans; span += kJoinWarps)
    merge(from[static_cast<std::int64_t>(span) * rows_padded]);
  of_warp[warp][lane] = make_float2(top, sum);
  __syncthreads();
  if (warp > 0) return;
  for (int w = 1; w < kJoinWarps; ++w) merge(of_warp[w][lane]);
  // Rows that see nothing, and bad ones, weigh nothing.
  shift[static_cast<std::int64_t>(head) * rows_padded + row] = sum > 0.0f ? top + log2f(sum) : INFINITY;
  if (not_finite != nullptr && row < rows && !isfinite(sum)) not_finite[head] = 1;
}

__global__ void join_columns_kernel(const float* part, float* to, std::int64_t count, int row_blocks,
                                    bool maximum) {
  wait_for_previous();
  let_next_start();
  const auto i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float x = part[i];
  for (int block = 1; block < row_blocks; ++block) {
    const float y = part[block * count + i];
    x = maximum ? fmaxf(x, y) : x + y;
  }
  to[i] = x;
}

__global__ void join_diagonals_kernel(const float* part, float* to, int q_heads, int tokens, int first_row,
                                      int row_blocks, int block_rows, int spans) {
  wait_for_previous();
  let_next_start();
  const int diagonals = block_rows + kWindowSpan - 1;
  const int head = static_cast<int>(blockIdx.y);
  const int offset = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (offset >= tokens) return;
  float total = 0.0f;
  for (int block = 0; block < row_blocks; ++block) {
    const int block_row = first_row + block * block_rows;
    // Spans whose entry for this diagonal, offset - block_row + first_key + kWindowSpan - 1, exists.
    const int low = max(0, (block_row - offset) / kWindowSpan);
    for (int span = low; span < spans; ++span) {
      const int entry = offset - block_row + span * kWindowSpan + kWindowSpan - 1;
      if (entry >= diagonals) break;
      if (entry >= 0)
        total +=
            part[((static_cast<std::int64_t>(block) * q_heads + head) * spans + span) * diagonals + entry];
    }
  }
  to[static_cast<std::int64_t>(head) * tokens + offset] = total;
}

unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>((threads + 255) / 256); }

void launch_pass(int head_dim, const WindowArgs& args, WindowPass pass, cudaStream_t stream) {
  switch (head_dim) {
    case 64:
      return launch_window_pass<64>(args, pass, stream);
    case 96:
      return launch_window_pass<96>(args, pass, stream);
    case 128:
      return launch_window_pass<128>(args, pass, stream);
    case 256:
      return launch_window_pass<256>(args, pass, stream);
    default:
      throw_cuda(cudaErrorInvalidValue, "window scores: head_dim must be 64, 96, 128 or 256");
  }
}

}  // namespace

std::size_t window_scores_workspace_bytes(const LayerInfo& info, std::int64_t tokens, int window,
                                          bool diagonals) {
  return Layout(info, tokens, window, diagonals).total;
}

void window_scores_cuda(const PrefillInput& input, int window, const WindowScoresOut& out,
                        CudaWorkspace workspace, cudaStream_t stream) {
  const LayerInfo& info = input.info;
  const Layout layout(info, input.q.tokens, window, out.diagonal_sum != nullptr);
  if (workspace.bytes < layout.total)
    throw_cuda(cudaErrorMemoryAllocation, "window scores: workspace too small");
  auto* base = static_cast<unsigned char*>(workspace.data);
  const bool split = layout.shape.row_blocks > 1;

  WindowArgs args{};
  args.q = static_cast<const __nv_bfloat16*>(input.q.data);
  args.k = static_cast<const __nv_bfloat16*>(input.k.data);
  args.q_head_stride = input.q.head_stride, args.q_token_stride = input.q.token_stride;
  args.k_head_stride = input.k.head_stride, args.k_token_stride = input.k.token_stride;
  args.tokens = static_cast<int>(input.q.tokens);
  args.q_heads = info.q_heads, args.kv_heads = info.kv_heads;
  args.group = info.q_heads_total / info.kv_heads_total;
  args.head_base = info.q_head_begin;
  args.kv_base = info.kv_head_begin;
  args.first_row = args.tokens - layout.rows;
  args.shape = layout.shape;
  args.spans = layout.spans;
  args.scale = info.scale;
  args.softcap = info.softcap;
  args.window = info.window;
  args.row_part = reinterpret_cast<float2*>(base + layout.row_part);
  args.row_shift = reinterpret_cast<float*>(base + layout.row_shift);
  if (out.column_sum != nullptr)
    args.column_sum = split ? reinterpret_cast<float*>(base + layout.column_sum) : out.column_sum;
  if (out.column_max != nullptr)
    args.column_max = split ? reinterpret_cast<float*>(base + layout.column_max) : out.column_max;
  if (out.diagonal_sum != nullptr) args.diagonal_part = reinterpret_cast<float*>(base + layout.diagonal);

  launch_pass(info.head_dim, args, WindowPass::kRows, stream);
  const dim3 row_grid(static_cast<unsigned>(layout.shape.rows_padded() / 32),
                      static_cast<unsigned>(info.q_heads));
  launch_dependent(join_rows_kernel, row_grid, 32 * kJoinWarps, 0, stream, args.row_part, args.row_shift,
                   layout.rows, layout.shape.rows_padded(), args.spans, out.not_finite);
  launch_pass(info.head_dim, args,
              args.diagonal_part != nullptr ? WindowPass::kDiagonals : WindowPass::kColumns, stream);
  const std::int64_t cells = static_cast<std::int64_t>(args.q_heads) * args.tokens;
  if (split && out.column_sum != nullptr) {
    launch_dependent(join_columns_kernel, blocks_for(cells), 256, 0, stream, args.column_sum, out.column_sum,
                     cells, layout.shape.row_blocks, false);
  }
  if (split && out.column_max != nullptr) {
    launch_dependent(join_columns_kernel, blocks_for(cells), 256, 0, stream, args.column_max, out.column_max,
                     cells, layout.shape.row_blocks, true);
  }
  if (out.diagonal_sum != nullptr) {
    const dim3 grid(blocks_for(args.tokens), static_cast<unsigned>(args.q_heads));
    launch_dependent(join_diagonals_kernel, grid, 256, 0, stream, args.diagonal_part, out.diagonal_sum,
                     args.q_heads, args.tokens, args.first_row, layout.shape.row_blocks,
                     layout.shape.block_rows(), args.spans);
  }
}

}  // namespace lacuna
