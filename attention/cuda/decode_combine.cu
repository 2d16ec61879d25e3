// The second kernel of decode attention: adds up the runs of each row, in their order.
#include "attention/cuda/decode_work.cuh"
#include "core/cuda.h"
#include "core/cuda_launch.cuh"

namespace lacuna {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kQuads = 8;                   ///< of channels of one block, 4 each
constexpr int kGroups = kThreads / kQuads;  ///< threads that share a quad
constexpr int kLoads = kDecodeMaxRuns / kGroups;
constexpr int kStates = kDecodeMaxRuns / kThreads;
static_assert(kDecodeMaxRuns % kThreads == 0);

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

/// Grid: query heads, pieces of 32 channels, batch.
__global__ void __launch_bounds__(kThreads)
    combine_runs_kernel(const __grid_constant__ DecodeArgs args, int head_dim) {
  __shared__ float weights[kDecodeMaxRuns], tops[kWarps], totals[kWarps];
  __shared__ float4 sums[kWarps][kQuads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int head = static_cast<int>(blockIdx.x), batch = static_cast<int>(blockIdx.z);
  let_next_start();
  int slot = head, row = 0, slots = args.q_heads;
  if (!args.lists_per_q_head) {
    const int kv_head = (args.head_base + head) / args.group - args.kv_base;
    const int in_group = head - max(0, (kv_head + args.kv_base) * args.group - args.head_base);
    slot = kv_head * args.parts + in_group / kDecodeRows;
    row = in_group % kDecodeRows;
    slots = args.kv_heads * args.parts;
  }
  const DecodeSlot served(args, batch, slot);
  const std::int64_t group = static_cast<std::int64_t>(batch) * slots + slot;
  const float2* states = args.partial_state + (group * args.rows + row) * args.runs;
  const int quads = head_dim / 4;  // of a row
  const int quad = static_cast<int>(blockIdx.y) * kQuads + thread % kQuads;
  const auto* from =
      reinterpret_cast<const float4*>(args.partial_o) + (group * args.runs * args.rows + row) * quads + quad;
  const int step = args.rows * quads;
  if (!args.settled) wait_for_previous();
  const DevicePagedHead paged = args.heads[batch * args.kv_heads + served.kv_head];
  wait_for_previous();

  // All loads in flight at once, before it is known how many runs there are: the states, one or two per
  // thread, and the thread's share of the sums. What no run wrote is thrown away.
  float2 state[kStates];
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    const int run = k * kThreads + thread;
    state[k] = run < args.runs ? states[run] : float2{};
  }
  float4 value[kLoads];
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    const int run = j * kGroups + thread / kQuads;
    value[j] = run < args.runs ? from[run * step] : float4{};
  }
  const int runs = DecodeCut(DecodePages(args, paged, served.list_row).pages, args).runs;
  if (runs <= 1) return;
#pragma unroll
  for (int k = 0; k < kStates; ++k)
    if (k * kThreads + thread >= runs) state[k] = make_float2(-INFINITY, 0.0f);

  float top = state[0].x;
#pragma unroll
  for (int k = 1; k < kStates; ++k) top = fmaxf(top, state[k].x);
  top = warp_max(top);
  if (lane == 0) tops[warp] = top;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) top = fmaxf(top, tops[w]);
  const float scale_log2 = weight_scale(args);
  float total = 0.0f;
#pragma unroll
  for (int k = 0; k < kStates; ++k) {
    const float weight = merge_weight(state[k].x, top, scale_log2);
    total = fmaf(state[k].y, weight, total);
    weights[k * kThreads + thread] = weight;
  }
  total = warp_sum(total);
  if (lane == 0) totals[warp] = total;
  __syncthreads();

  float4 sum{};
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    const int run = j * kGroups + thread / kQuads;
    if (run < runs) add_weighted(sum, value[j], weights[run]);
  }
#pragma unroll
  for (int distance = kQuads; distance < 32; distance *= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, distance);
    sum.y += __shfl_xor_sync(~0u, sum.y, distance);
    sum.z += __shfl_xor_sync(~0u, sum.z, distance);
    sum.w += __shfl_xor_sync(~0u, sum.w, distance);
  }
  if (lane < kQuads) sums[warp][lane] = sum;
  __syncthreads();
  if (thread >= kQuads) return;
  total = totals[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) {
    total += totals[w];
    add_weighted(sum, sums[w][thread], 1.0f);
  }
  store_bf16(args.out + (static_cast<std::int64_t>(batch) * args.q_heads + head) * head_dim + quad * 4, sum,
             total > 0.0f ? 1.0f / total : 0.0f);
}

}  // namespace

void launch_combine(const DecodeArgs& args, int head_dim, int batch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.q_heads), static_cast<unsigned>(head_dim / (4 * kQuads)),
                  static_cast<unsigned>(batch));
  launch_dependent(combine_runs_kernel, grid, kThreads, 0, stream, args, head_dim);
}

}  // namespace lacuna
