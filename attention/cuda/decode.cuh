// Decode attention over ragged page lists. One block reads a run of pages of one kv head for up to 16 of its
// query heads packed into one 16-row mma; every warp streams pages of its own through a cp.async ring. A
// second kernel adds the runs up in a fixed order.
#pragma once

#include "attention/cuda/decode_work.cuh"
#include "attention/cuda/mma.cuh"
#include "core/cuda.h"
#include "core/cuda_launch.cuh"

namespace lacuna {

template <int kHeadDim_>
struct DecodeTraits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarps = kHeadDim <= 128 ? 4 : 2;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = kHeadDim <= 64 ? 3 : 2;
  static constexpr int kBlocks = 3;  ///< on one multiprocessor
  static constexpr int kRows = kDecodeRows;
  static constexpr int kPieces = kHeadDim / 8;  ///< of 16 bytes in a row of K or V
  static constexpr int kQuads = kHeadDim / 4;   ///< of a row of output
  static constexpr int kPitch = kHeadDim + 8;   ///< of a row of output in shared memory

  struct Shared {
    union {
      __nv_bfloat16 ring[kWarps][kStages][2][kPageTokens * kHeadDim];
      float o[kWarps][kRows][kPitch];
    };
    int number[kWarps][kStages];  ///< of the pages in the ring
    bool alone;                   ///< There is no other run.
    float max[kWarps][kRows];
    float sum[kWarps][kRows];
  };

  /// Where a piece of a row stands in the ring, in elements: eight rows' pieces at the same place lie in
  /// different banks, and both pieces of a 32-byte sector stay in one sector. (Rows with a padded pitch meet
  /// no conflicts either, but cp.async then fetches every sector of an odd row twice.)
  __device__ static int place(int row, int piece) {
    const int swizzled = kPieces % 8 == 0 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3);
    return row * kHeadDim + swizzled * 8;
  }
};

/// Grid: slots, runs, batch.
template <class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    decode_kernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename T::Shared*>(raw);
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int run = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z);
  let_next_start();
  // Without lists, pages that no running kernel writes may come in at once.
  const bool early = args.settled && args.lists == nullptr;
  if (!args.settled) wait_for_previous();
  const DecodeSlot slot(args, batch, static_cast<int>(blockIdx.x));
  if (slot.rows <= 0) return wait_for_previous();
  const int rows = slot.rows;
  const DevicePagedHead head = args.heads[batch * args.kv_heads + slot.kv_head];
  if (!early) wait_for_previous();
  const DecodePages work(args, head, slot.list_row);
  const DecodeCut cut(work.pages, args);
  if (run >= max(cut.runs, 1)) return wait_for_previous();
  __nv_bfloat16* out = args.out + (static_cast<std::int64_t>(batch) * args.q_heads + slot.head) * T::kHeadDim;
  if (cut.runs == 0) {  // nothing to read: zeros
    wait_for_previous();
    for (int i = static_cast<int>(threadIdx.x); i < rows * T::kHeadDim; i += T::kThreads)
      out[i] = __float2bfloat16(0.0f);
    return;
  }

  if (threadIdx.x == 0) shared.alone = cut.runs == 1;
  const int begin = cut.begin(run);
  const int count = min(cut.length(run), work.pages - begin);
  const int mine = count > warp ? (count - warp + T::kWarps - 1) / T::kWarps : 0;  // pages of this warp
  float o[T::kHeadDim / 2];
#pragma unroll
  for (float& x : o) x = 0.0f;
  SoftmaxState softmax;
  const float scale_log2 = weight_scale(args);

  // Lane l remembers page number and id of this warp's pages 32 n + l.
  int page_number = 0, page_id = 0;
  const auto look_up = [&](int base) {
    const int i = base + lane;
    if (i < mine) {
      page_number = work.number(begin + warp + i * T::kWarps);
      page_id = work.page_ids[page_number];
    }
  };
  const auto load = [&](int i, int stage) {  // this warp's i-th page
    if (i < mine) {
      if (i % 32 == 0) look_up(i);
      const int number = __shfl_sync(~0u, page_number, i % 32);
      const auto id = static_cast<std::int64_t>(__shfl_sync(~0u, page_id, i % 32));
      const auto* from = args.pool + id * args.page_elements;
      const int valid = work.tokens - number * kPageTokens;
      if (valid <= kPageTokens) wait_for_previous();  // an earlier kernel may be writing to the last page
      if (lane == 0) shared.number[warp][stage] = number;
      auto& to = shared.ring[warp][stage];
      int own = lane;
      // Otherwise addresses are kept in registers from page to page, more than there are.
      if constexpr (T::kHeadDim > 128) asm volatile("" : "+r"(own));
#pragma unroll
      for (int j = 0; j < 2 * kPageTokens * T::kPieces / 32; ++j) {
        const int piece = j * 32 + own;
        const int row = piece / T::kPieces;  // 0..15 of k, 16..31 of v
        // Rows past the end are zero-filled, so that whatever the page holds there cannot reach the sum.
        copy_async_16(to[0] + T::place(row, piece % T::kPieces), from + piece * 8, row % kPageTokens < valid);
      }
    }
    copy_async_commit();
  };
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; ++stage) load(stage, stage);
  wait_for_previous();

  // q as the A operand of mma; rows beyond the group are zero.
  std::uint32_t q[T::kHeadDim / 16][4];
  const auto* q_row = reinterpret_cast<const std::uint32_t*>(
      args.q + (static_cast<std::int64_t>(batch) * args.q_heads + slot.head) * T::kHeadDim);
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
    load(i + T::kStages - 1, stage == 0 ? T::kStages - 1 : stage - 1);
    const __nv_bfloat16* k = shared.ring[warp][stage][0];
    const __nv_bfloat16* v = shared.ring[warp][stage][1];

    float s[8] = {};
#pragma unroll
    for (int step = 0; step < T::kHeadDim / 16; ++step) {
      std::uint32_t b[4];
      load_matrix(b, k + T::place((lane >> 4) * 8 + (lane & 7), step * 2 + ((lane >> 3) & 1)));
      mma(s, q[step], b[0], b[1]);
      mma(s + 4, q[step], b[2], b[3]);
    }
    if (args.softcap > 0.0f) apply_softcap(s, args.scale, args.softcap);
    const int first = shared.number[warp][stage] * kPageTokens;
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
      load_matrix_transposed(b, v + T::place(((lane >> 3) & 1) * 8 + (lane & 7), j * 2 + (lane >> 4)));
      mma(o + j * 8, p, b[0], b[1]);
      mma(o + j * 8 + 4, p, b[2], b[3]);
    }
    __syncwarp();
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
    if (r * 8 >= rows) continue;
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 8; ++j)
      *reinterpret_cast<float2*>(&shared.o[warp][row][j * 8 + (lane & 3) * 2]) =
          make_float2(o[j * 4 + 2 * r], o[j * 4 + 2 * r + 1]);
  }
  __syncthreads();
  const std::int64_t group = static_cast<std::int64_t>(batch) * gridDim.x + blockIdx.x;
  auto* partial_o =
      reinterpret_cast<float4*>(args.partial_o) + (group * args.runs + run) * args.rows * T::kQuads;
  float2* partial_state = args.partial_state + group * args.rows * args.runs + run;
  for (int i = static_cast<int>(threadIdx.x); i < rows * T::kQuads; i += T::kThreads) {
    const int row = i / T::kQuads, quad = i % T::kQuads;
    float top = shared.max[0][row];
#pragma unroll
    for (int w = 1; w < T::kWarps; ++w) top = fmaxf(top, shared.max[w][row]);
    float total = 0.0f;
    float4 value{};
#pragma unroll
    for (int w = 0; w < T::kWarps; ++w) {
      const float weight = merge_weight(shared.max[w][row], top, scale_log2);
      total = fmaf(shared.sum[w][row], weight, total);
      add_weighted(value, *reinterpret_cast<const float4*>(&shared.o[w][row][quad * 4]), weight);
    }
    if (shared.alone) {
      store_bf16(out + i * 4, value, total > 0.0f ? 1.0f / total : 0.0f);
    } else {
      partial_o[i] = value;
      if (quad == 0) partial_state[row * args.runs] = make_float2(top, total);
    }
  }
}

template <int kHeadDim>
void launch_decode(const DecodeArgs& args, int batch, int slots, cudaStream_t stream) {
  using T = DecodeTraits<kHeadDim>;
  const auto kernel = decode_kernel<T>;
  constexpr int kBytes = static_cast<int>(sizeof(typename T::Shared));
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const dim3 grid(static_cast<unsigned>(slots), static_cast<unsigned>(args.runs),
                  static_cast<unsigned>(batch));
  launch_dependent(kernel, grid, T::kThreads, kBytes, stream, args);
}

}  // namespace lacuna
