// Decode attention over ragged page lists. One block reads a run of pages of one kv head for up to 16 of its
// query heads packed into one 16-row mma; every warp streams pages of its own through a cp.async ring. Runs
// are combined in a fixed order by the block that finishes last.
#pragma once

#include "attention/cuda/decode_launch.h"
#include "attention/cuda/mma.cuh"
#include "attention/cuda/softmax.cuh"
#include "core/cuda.h"

namespace lacuna {

template <int kHeadDim_>
struct DecodeTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kPitch =
      kHeadDim + 8;  ///< an odd number of 16-byte units: ldmatrix meets no bank conflict
  static constexpr int kStages = kHeadDim <= 64 ? 4 : kHeadDim <= 128 ? 3 : 2;
  static constexpr int kRows = 16;

  struct Shared {
    union {
      __nv_bfloat16 ring[kWarps][kStages][2][kPageTokens * kPitch];
      float o[kWarps][kRows][kHeadDim];
    };
    float max[kWarps][kRows];
    float sum[kWarps][kRows];
    int last;
  };
  static_assert(sizeof(float) * kRows * kHeadDim <=
                sizeof(__nv_bfloat16) * 2 * kStages * kPageTokens * kPitch);
};

/// The pages that one (sequence, head group) reads, cut into runs.
struct DecodeRuns {
  const std::int32_t* list;  ///< null: pages first_page, first_page + 1, ...
  const std::int32_t* page_ids;
  int tokens, first_key, first_page, pages, pages_per_run, runs;

  __device__ DecodeRuns(const DecodeArgs& args, int batch, int kv_head, int list_row) {
    const DevicePagedHead head = args.heads[batch * args.kv_heads + kv_head];
    page_ids = head.page_ids;
    tokens = static_cast<int>(head.tokens);
    first_key = args.window > 0 ? max(0, tokens - args.window) : 0;
    list = nullptr;
    first_page = first_key / kPageTokens;
    pages = (tokens + kPageTokens - 1) / kPageTokens - first_page;
    if (args.lists != nullptr) {
      const int count = args.list_counts[list_row];
      if (count >= 0) {
        list = args.lists + list_row * args.list_stride;
        pages = count;
      }
    }
    pages_per_run = max(kDecodeMinRunPages, (pages + args.splits - 1) / args.splits);
    runs = (pages + pages_per_run - 1) / pages_per_run;
  }
};

/// Weight of a partial result whose maximum is `part` in a whole whose maximum is `whole`; nothing seen
/// weighs 0.
__device__ inline float merge_weight(float part, float whole, float scale_log2) {
  return part == -INFINITY ? 0.0f : exp2_fast((part - whole) * scale_log2);
}

template <class T>
__global__ void __launch_bounds__(T::kThreads) decode_kernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int run = static_cast<int>(blockIdx.x);
  const int slot = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z);

  // Query heads [head, head + rows) of this block, all served by kv_head.
  int head, rows, kv_head, list_row;
  if (args.lists_per_q_head) {
    head = slot;
    rows = 1;
    kv_head = (args.head_base + head) / args.group - args.kv_base;
    list_row = batch * args.q_heads + head;
  } else {
    kv_head = slot / args.parts;
    const int begin = max(0, (kv_head + args.kv_base) * args.group - args.head_base);
    const int end = min(args.q_heads, (kv_head + args.kv_base + 1) * args.group - args.head_base);
    head = begin + slot % args.parts * T::kRows;
    rows = min(T::kRows, end - head);
    list_row = batch * args.kv_heads + kv_head;
  }
  if (rows <= 0) return;
  const DecodeRuns work(args, batch, kv_head, list_row);
  __nv_bfloat16* out = args.out + (static_cast<std::int64_t>(batch) * args.q_heads + head) * T::kHeadDim;
  if (run >= max(work.runs, 1)) return;
  if (work.runs == 0) {  // nothing to read: zeros
    for (int i = static_cast<int>(threadIdx.x); i < rows * T::kHeadDim; i += T::kThreads)
      out[i] = __float2bfloat16(0.0f);
    return;
  }

  const int begin = run * work.pages_per_run;
  const int count = min(work.pages_per_run, work.pages - begin);
  const int mine = count > warp ? (count - warp + T::kWarps - 1) / T::kWarps : 0;  // pages of this warp
  float o[T::kHeadDim / 2];
#pragma unroll
  for (float& x : o) x = 0.0f;
  SoftmaxState softmax;
  const float scale_log2 = (args.softcap > 0.0f ? 1.0f : args.scale) * kLog2e;

  // Lane l remembers page number and id of this warp's pages 32 n + l.
  int page_number = 0, page_id = 0;
  const auto look_up = [&](int base) {
    const int i = base + lane;
    if (i < mine) {
      const int index = begin + warp + i * T::kWarps;
      page_number = work.list != nullptr ? work.list[index] : work.first_page + index;
      page_id = work.page_ids[page_number];
    }
  };
  constexpr int kPieces = T::kHeadDim / 8;
  int numbers[T::kStages];  // page numbers in the ring
  const auto load = [&](int i, int stage) {
    if (i < mine) {
      if (i % 32 == 0) look_up(i);
      const int number = __shfl_sync(~0u, page_number, i % 32);
      const auto id = static_cast<std::int64_t>(__shfl_sync(~0u, page_id, i % 32));
      const auto* from = args.pool + id * args.page_elements;
      const int valid = work.tokens - number * kPageTokens;
      auto& to = shared.ring[warp][stage];
#pragma unroll
      for (int j = 0; j < 2 * kPageTokens * kPieces / 32; ++j) {
        const int piece = j * 32 + lane;
        const int row = piece / kPieces;  // 0..15 of k, 16..31 of v
        const int channel = piece % kPieces * 8;
        // Rows past the end are zero-filled, so that whatever the page holds there cannot reach the sum.
        copy_async_16(to[row / kPageTokens] + (row % kPageTokens) * T::kPitch + channel,
                      from + row * T::kHeadDim + channel, row % kPageTokens < valid);
      }
    }
    copy_async_commit();
  };
  const auto number_of = [&](int i) {
    const int index = begin + warp + i * T::kWarps;
    return work.list != nullptr ? work.list[index] : work.first_page + index;
  };
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; ++stage) {
    load(stage, stage);
    numbers[stage] = stage < mine ? number_of(stage) : 0;
  }
  numbers[T::kStages - 1] = 0;

  // q as the A operand of mma; rows beyond the group are zero.
  std::uint32_t q[T::kHeadDim / 16][4];
  const auto* q_row = reinterpret_cast<const std::uint32_t*>(
      args.q + (static_cast<std::int64_t>(batch) * args.q_heads + head) * T::kHeadDim);
#pragma unroll
  for (int step = 0; step < T::kHeadDim / 16; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i & 1) * 8;
      q[step][i] = row < rows ? q_row[row * (T::kHeadDim / 2) + step * 8 + (i >> 1) * 4 + (lane & 3)] : 0u;
    }

  int stage = 0;
  for (int i = 0; i < mine; ++i) {
    copy_async_wait<T::kStages - 2>();
    __syncwarp();
    const int next = i + T::kStages - 1;
    const int next_stage = stage == 0 ? T::kStages - 1 : stage - 1;
    load(next, next_stage);
    const int next_number = next < mine ? number_of(next) : 0;
    const __nv_bfloat16* k = shared.ring[warp][stage][0];
    const __nv_bfloat16* v = shared.ring[warp][stage][1];

    float s[8] = {};
#pragma unroll
    for (int step = 0; step < T::kHeadDim / 16; ++step) {
      std::uint32_t b[4];
      load_matrix(b, k + ((lane >> 4) * 8 + (lane & 7)) * T::kPitch + step * 16 + ((lane >> 3) & 1) * 8);
      mma(s, q[step], b[0], b[1]);
      mma(s + 4, q[step], b[2], b[3]);
    }
    if (args.softcap > 0.0f) apply_softcap(s, args.scale, args.softcap);
    const int first = numbers[0] * kPageTokens;
    if (first + kPageTokens > work.tokens || first < work.first_key) {
      const int low[2] = {work.first_key - first, work.first_key - first};
      const int high[2] = {work.tokens - 1 - first, work.tokens - 1 - first};
      mask_span(s, low, high);
    }
    float rescale[2];
    softmax.update(s, scale_log2, rescale);
    rescale_rows(o, rescale);
    std::uint32_t p[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) p[j] = pack_bf16(s[2 * j], s[2 * j + 1]);
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 16; ++j) {
      std::uint32_t b[4];
      load_matrix_transposed(b,
                             v + (((lane >> 3) & 1) * 8 + (lane & 7)) * T::kPitch + j * 16 + (lane >> 4) * 8);
      mma(o + j * 8, p, b[0], b[1]);
      mma(o + j * 8 + 4, p, b[2], b[3]);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j + 1 < T::kStages - 1; ++j) numbers[j] = numbers[j + 1];
    numbers[T::kStages - 2] = next_number;
    stage = stage == T::kStages - 1 ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  __syncthreads();

  // The warps' results meet in shared memory, in the order of the warps.
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + r * 8;
    const float sum = quad_sum(softmax.sum[r]);
    if ((lane & 3) == 0) {
      shared.max[warp][row] = softmax.max[r];
      shared.sum[warp][row] = sum;
    }
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 8; ++j) {
      shared.o[warp][row][j * 8 + (lane & 3) * 2] = o[j * 4 + 2 * r];
      shared.o[warp][row][j * 8 + (lane & 3) * 2 + 1] = o[j * 4 + 2 * r + 1];
    }
  }
  __syncthreads();
  const std::int64_t group = static_cast<std::int64_t>(batch) * gridDim.y + slot;
  float* partial_o = args.partial_o + group * args.splits * T::kRows * T::kHeadDim;
  float2* partial_state = args.partial_state + group * args.splits * T::kRows;
  for (int i = static_cast<int>(threadIdx.x); i < rows * T::kHeadDim; i += T::kThreads) {
    const int row = i / T::kHeadDim;
    const int channel = i % T::kHeadDim;
    float top = shared.max[0][row];
#pragma unroll
    for (int w = 1; w < T::kWarps; ++w) top = fmaxf(top, shared.max[w][row]);
    float total = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 0; w < T::kWarps; ++w) {
      const float weight = merge_weight(shared.max[w][row], top, scale_log2);
      total = fmaf(shared.sum[w][row], weight, total);
      value = fmaf(shared.o[w][row][channel], weight, value);
    }
    if (work.runs == 1) {
      out[i] = __float2bfloat16(total > 0.0f ? value / total : 0.0f);
    } else {
      partial_o[static_cast<std::int64_t>(run) * T::kRows * T::kHeadDim + i] = value;
      if (channel == 0) partial_state[run * T::kRows + row] = make_float2(top, total);
    }
  }
  if (work.runs == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.last = atomicAdd(args.counters + group, 1) == work.runs - 1;
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  // The weight of every run for every row, once; then each thread adds up channels with many loads in flight.
  float* weight = reinterpret_cast<float*>(raw);  // [runs][16]; the ring is done with
  for (int row = warp; row < rows; row += T::kWarps) {
    float top = -INFINITY;
    for (int r = lane; r < work.runs; r += 32) top = fmaxf(top, __ldcg(&partial_state[r * T::kRows + row]).x);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      top = fmaxf(top, __shfl_xor_sync(~0u, top, distance));
    float total = 0.0f;
    for (int r = lane; r < work.runs; r += 32) {
      const float2 state = __ldcg(&partial_state[r * T::kRows + row]);
      const float w = merge_weight(state.x, top, scale_log2);
      weight[r * T::kRows + row] = w;
      total = fmaf(state.y, w, total);
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(~0u, total, distance);
    const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    for (int r = lane; r < work.runs; r += 32) weight[r * T::kRows + row] *= inverse;
  }
  __syncthreads();
  const auto* quads = reinterpret_cast<const float4*>(partial_o);
  constexpr int kQuads = T::kRows * T::kHeadDim / 4;  // of one run
  for (int i = static_cast<int>(threadIdx.x); i < rows * T::kHeadDim / 4; i += T::kThreads) {
    const float* w = weight + i * 4 / T::kHeadDim;
    float4 value{};
#pragma unroll 16
    for (int r = 0; r < work.runs; ++r) {
      const float4 x = __ldcg(&quads[r * kQuads + i]);
      const float factor = w[r * T::kRows];
      value.x = fmaf(x.x, factor, value.x);
      value.y = fmaf(x.y, factor, value.y);
      value.z = fmaf(x.z, factor, value.z);
      value.w = fmaf(x.w, factor, value.w);
    }
    *reinterpret_cast<uint2*>(out + i * 4) =
        make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w));
  }
  if (threadIdx.x == 0) args.counters[group] = 0;  // ready for the next call, or the next replay of a graph
}

template <int kHeadDim>
void launch_decode(const DecodeArgs& args, int batch, int slots, int grid_runs, cudaStream_t stream) {
  using T = DecodeTraits<kHeadDim>;
  const auto kernel = decode_kernel<T>;
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Shared));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(grid_runs), static_cast<unsigned>(slots),
                  static_cast<unsigned>(batch));
  kernel<<<grid, T::kThreads, kBytes, stream>>>(args);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
