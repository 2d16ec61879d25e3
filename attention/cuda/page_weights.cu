// Exact weights of pages: what the decode oracles and twilight choose by. One pass over the candidates' keys
// leaves each page's largest score and sum per query head, and the same for runs of pages; a second one joins
// them.
#include "attention/cuda/mma.cuh"
#include "attention/cuda/page_util.cuh"
#include "attention/cuda/softmax.cuh"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kWarps = 4;
constexpr int kRunPages = 64;  ///< pages of a block of the first pass
constexpr int kRows = 16;      ///< query heads of a block: the rows of an mma
constexpr int kJoinThreads = 256;

struct Args {
  PageCandidates candidates;
  float2* pages;        ///< [lists, score stride, group]: largest score, sum of exp(score - largest)
  float2* runs;         ///< [lists, runs, group]: the same of kRunPages pages
  std::int64_t stride;  ///< of scores
  int most_runs, group, parts;
};

__device__ inline int candidate_count(const Args& args, const DevicePagedHead& head, int list) {
  return args.candidates.lists != nullptr ? args.candidates.counts[list] : page_count(head);
}
/// exp(part - whole); nothing seen weighs 0.
__device__ inline float relative(float part, float whole) {
  return part == -INFINITY ? 0.0f : exp2_fast((part - whole) * kLog2e);
}
/// Adds one (largest, sum) to another.
__device__ inline float2 join(float2 a, float2 b) {
  const float top = fmaxf(a.x, b.x);
  return make_float2(top, fmaf(a.y, relative(a.x, top), b.y * relative(b.x, top)));
}

/// Keys of one page straight in registers, as the B operands of mma: lane l holds channels 8 (l % 4) + 32 j
/// of keys l / 4 and l / 4 + 8. The sum over channels runs in another order than they stand in memory, for q
/// alike.
template <int kDim>
struct KeyPage {
  uint4 key[2][kDim / 32];
  __device__ void load(const __nv_bfloat16* page, int valid, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) {
        const int token = half * 8 + lane / 4;
        key[half][j] = make_uint4(0, 0, 0, 0);
        if (token < valid)
          key[half][j] = reinterpret_cast<const uint4*>(page)[token * (kDim / 8) + j * 4 + lane % 4];
      }
  }
};

/// Grid: runs of pages, kv heads * parts, rows.
template <int kDim>
__global__ void __launch_bounds__(kWarps * 32)
    weigh_pages_kernel(const __grid_constant__ DecodeChoice choice, const __grid_constant__ Args args) {
  __shared__ float2 shared[kWarps][kRows];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int run = static_cast<int>(blockIdx.x), row = static_cast<int>(blockIdx.z);
  const int kv = static_cast<int>(blockIdx.y) / args.parts;
  const LayerInfo& info = choice.info;
  const int list = row * info.kv_heads + kv;
  const DevicePagedHead head = choice.heads[list];
  const int begin = run * kRunPages, end = min(begin + kRunPages, candidate_count(args, head, list));
  if (begin >= end) return;
  const QueryHeads served(info, kv);
  const int first_head = static_cast<int>(blockIdx.y) % args.parts * kRows;  // of the group
  const int heads = min(kRows, served.end - served.begin - first_head);
  const auto* queries = static_cast<const uint4*>(choice.q) +
                        (std::int64_t{row} * info.q_heads + served.begin + first_head) * (kDim / 8);

  // This warp's pages: begin + warp + 4 i; lane i knows the i-th one.
  int number = 0, id = 0;
  const int mine = (end - begin - warp + kWarps - 1) / kWarps;
  if (lane < mine) {
    const int place = begin + warp + lane * kWarps;
    number = args.candidates.lists != nullptr ? args.candidates.lists[list * args.candidates.stride + place]
                                              : place;
    id = head.page_ids[number];
  }
  uint4 q[2][kDim / 32];
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const int h = half * 8 + lane / 4;
      q[half][j] = make_uint4(0, 0, 0, 0);
      if (h < heads) q[half][j] = queries[h * (kDim / 8) + j * 4 + lane % 4];
    }

  float2 whole[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
  bool finite = true;
  const auto fetch = [&](KeyPage<kDim>& page, int i) {
    const int of_lane = min(i, 31);
    const auto from = static_cast<std::int64_t>(__shfl_sync(~0u, id, of_lane)) * choice.page_elements;
    const int valid = static_cast<int>(head.tokens) - __shfl_sync(~0u, number, of_lane) * kPageTokens;
    if (i < mine) page.load(static_cast<const __nv_bfloat16*>(choice.pool) + from, valid, lane);
    return valid;
  };
  KeyPage<kDim> page;
  int valid = fetch(page, 0);
  for (int i = 0; i < mine; ++i) {
    float s[8] = {};
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) {
      const std::uint32_t low[4] = {q[0][j].x, q[1][j].x, q[0][j].y, q[1][j].y};
      const std::uint32_t high[4] = {q[0][j].z, q[1][j].z, q[0][j].w, q[1][j].w};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        mma(s + 4 * half, low, page.key[half][j].x, page.key[half][j].y);
        mma(s + 4 * half, high, page.key[half][j].z, page.key[half][j].w);
      }
    }
    const int cached = valid;
    valid = fetch(page, i + 1);  // in flight during what follows
    if (info.softcap > 0.0f) {
      apply_softcap(s, info.scale, info.softcap);
    } else {
#pragma unroll
      for (float& x : s) x *= info.scale;
    }
    float2* to = args.pages + (list * args.stride + begin + warp + i * kWarps) * args.group + first_head;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int h = lane / 4 + r * 8;
      float top = -INFINITY;
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        const int at = x / 2 * 4 + r * 2 + x % 2, token = x / 2 * 8 + lane % 4 * 2 + x % 2;
        if (token >= cached) {
          s[at] = -INFINITY;
        } else if (h < heads && !(fabsf(s[at]) < INFINITY)) {
          finite = false;
        }
        top = fmaxf(top, s[at]);
      }
      top = quad_max(top);
      float sum = 0.0f;
#pragma unroll
      for (int x = 0; x < 4; ++x) sum += exp2_fast((s[x / 2 * 4 + r * 2 + x % 2] - top) * kLog2e);
      const float2 part = make_float2(top, quad_sum(sum));
      whole[r] = join(whole[r], part);
      if (lane % 4 == 0 && h < heads) to[h] = part;
    }
  }
  if (!finite) choice.not_finite[row] = 1;
  if (lane % 4 == 0) {
    shared[warp][lane / 4] = whole[0];
    shared[warp][lane / 4 + 8] = whole[1];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < heads) {
    float2 sum = shared[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sum = join(sum, shared[w][threadIdx.x]);
    args.runs[(std::int64_t{list} * args.most_runs + run) * args.group + first_head + threadIdx.x] = sum;
  }
}

/// Grid: blocks of pages, lists. A thread per page.
__global__ void __launch_bounds__(kJoinThreads)
    join_pages_kernel(const __grid_constant__ DecodeChoice choice, const __grid_constant__ Args args,
                      float* weights) {
  __shared__ float top[kMaxPageGroup], inverse[kMaxPageGroup];
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const int list = static_cast<int>(blockIdx.y);
  const int count = candidate_count(args, choice.heads[list], list);
  const int begin = static_cast<int>(blockIdx.x) * kJoinThreads;
  if (begin >= count) return;
  const int runs = (count + kRunPages - 1) / kRunPages;
  for (int g = warp; g < args.group; g += kJoinThreads / 32) {
    float2 sum = make_float2(-INFINITY, 0.0f);
    for (int r = lane; r < runs; r += 32)
      sum = join(sum, args.runs[(std::int64_t{list} * args.most_runs + r) * args.group + g]);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      sum = join(sum,
                 make_float2(__shfl_xor_sync(~0u, sum.x, distance), __shfl_xor_sync(~0u, sum.y, distance)));
    if (lane == 0) {
      top[g] = sum.x;
      inverse[g] = 1.0f / (sum.y * static_cast<float>(args.group));
    }
  }
  __syncthreads();
  const int i = begin + static_cast<int>(threadIdx.x);
  if (i >= count) return;
  const float2* from = args.pages + (list * args.stride + i) * args.group;
  float weight = 0.0f;
  for (int g = 0; g < args.group; ++g)
    weight = fmaf(from[g].y * relative(from[g].x, top[g]), inverse[g], weight);
  weights[list * args.stride + i] = weight;
}

/// Everything that follows from the host fields of a DecodeChoice.
struct Plan {
  int group, parts;
  std::int64_t lists, stride, runs;
  std::size_t page_bytes, run_bytes;
  explicit Plan(const DecodeChoice& choice) {
    group = choice.info.q_heads_total / choice.info.kv_heads_total;
    parts = (group + kRows - 1) / kRows;
    lists = std::int64_t{choice.rows} * choice.info.kv_heads;
    stride = page_score_stride(choice.max_tokens);
    runs = (stride + kRunPages - 1) / kRunPages;
    const auto aligned = [](std::int64_t floats) {
      return (static_cast<std::size_t>(floats) * 4 + 255) / 256 * 256;
    };
    page_bytes = aligned(lists * stride * group * 2);
    run_bytes = aligned(lists * runs * group * 2);
  }
};

template <int kDim>
void launch_weigh(const DecodeChoice& choice, const Args& args, const dim3& grid, cudaStream_t stream) {
  weigh_pages_kernel<kDim><<<grid, kWarps * 32, 0, stream>>>(choice, args);
}

}  // namespace

std::size_t page_weights_workspace_bytes(const DecodeChoice& choice) {
  const Plan plan(choice);
  return plan.page_bytes + plan.run_bytes;
}

void page_weights_cuda(const DecodeChoice& choice, const PageCandidates& candidates, float* weights,
                       CudaWorkspace workspace, cudaStream_t stream) {
  const Plan plan(choice);
  auto* base = static_cast<char*>(workspace.data);
  const Args args{.candidates = candidates,
                  .pages = reinterpret_cast<float2*>(base),
                  .runs = reinterpret_cast<float2*>(base + plan.page_bytes),
                  .stride = plan.stride,
                  .most_runs = static_cast<int>(plan.runs),
                  .group = plan.group,
                  .parts = plan.parts};
  const dim3 grid(static_cast<unsigned>(plan.runs), static_cast<unsigned>(choice.info.kv_heads * plan.parts),
                  static_cast<unsigned>(choice.rows));
  switch (choice.info.head_dim) {
    case 64:
      launch_weigh<64>(choice, args, grid, stream);
      break;
    case 96:
      launch_weigh<96>(choice, args, grid, stream);
      break;
    case 128:
      launch_weigh<128>(choice, args, grid, stream);
      break;
    default:
      launch_weigh<256>(choice, args, grid, stream);
      break;
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
  const dim3 joins(static_cast<unsigned>((plan.stride + kJoinThreads - 1) / kJoinThreads),
                   static_cast<unsigned>(plan.lists));
  join_pages_kernel<<<joins, kJoinThreads, 0, stream>>>(choice, args, weights);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
