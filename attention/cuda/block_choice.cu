// Which key blocks of a row of scores stay, as one bit per block, and tile lists from such bits. The
// threshold is found two bits of the float at a time by counting, as in top_k.cu: no atomics, sums in a fixed
// order.
#include <cmath>
#include <cstdint>

#include "attention/cuda/list_scan.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

constexpr int kMaxWarps = 32;

/// Order-preserving map of floats to unsigned integers; a larger float is a larger integer.
__device__ std::uint32_t order_key(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ double value_of_key(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

struct ChoiceShared {
  int counts[3][kMaxWarps];
  double masses[3][kMaxWarps];
  int int_total[3];
  double double_total[3];
  int warp_equal[kMaxWarps];
};

/// Sums over the block in a fixed order; every thread gets the result.
template <int kThreads, int kCount, class Value>
__device__ void sum_over_block(Value (&value)[kCount], Value (*parts)[kMaxWarps], Value* totals) {
  constexpr int kWarps = kThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    for (int distance = 16; distance > 0; distance /= 2)
      value[c] += __shfl_down_sync(~0u, value[c], distance);
    if (lane == 0) parts[c][warp] = value[c];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < kCount) {
    Value total{0};
    for (int w = 0; w < kWarps; ++w) total += parts[threadIdx.x][w];
    totals[threadIdx.x] = total;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kCount; ++c) value[c] = totals[c];
}

/// One row of scores, with forced entries above everything.
struct ChoiceRow {
  const float* scores;
  int n;
  bool force_first, force_last;
  __device__ bool forced(int i) const { return (force_first && i == 0) || (force_last && i == n - 1); }
  __device__ std::uint32_t key(int i) const { return forced(i) ? 0xFFFFFFFFu : order_key(scores[i]); }
};

/// The entries with keys above t, and the first `wanted` of those equal to t, are the k best.
template <int kThreads>
__device__ void find_count(const ChoiceRow& row, int k, ChoiceShared& shared, std::uint32_t& t, int& wanted) {
  t = 0;
  for (int shift = 30; shift >= 0; shift -= 2) {
    int counts[3] = {0, 0, 0};
    for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) {
      const std::uint32_t key = row.key(i);
#pragma unroll
      for (int c = 0; c < 3; ++c)
        counts[c] += key >= (t | (static_cast<std::uint32_t>(c + 1) << shift)) ? 1 : 0;
    }
    sum_over_block<kThreads>(counts, shared.counts, shared.int_total);
    std::uint32_t digit = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c)
      if (counts[c] >= k) digit = static_cast<std::uint32_t>(c) + 1;
    t |= digit << shift;
  }
  int above[1] = {0};
  for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) above[0] += row.key(i) > t ? 1 : 0;
  sum_over_block<kThreads>(above, shared.counts, shared.int_total);
  wanted = k - above[0];
}

/// The same for the shortest prefix of the sorted row whose sum is above the target (`strictly`) or reaches
/// it.
template <int kThreads>
__device__ void find_mass(const ChoiceRow& row, double mass, double mass_total, bool strictly,
                          ChoiceShared& shared, std::uint32_t& t, int& wanted) {
  const auto enough = [&](double sum, double target) { return strictly ? sum > target : sum >= target; };
  double total[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) total[0] += row.scores[i];
  sum_over_block<kThreads>(total, shared.masses, shared.double_total);
  const double target = mass * (mass_total > 0 ? mass_total : total[0]);
  t = 0;
  if (enough(0.0, target)) {  // nothing is wanted
    t = 0xFFFFFFFFu;
    wanted = 0;
    return;
  }
  for (int shift = 30; shift >= 0; shift -= 2) {
    double masses[3] = {0.0, 0.0, 0.0};
    for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) {
      const float score = row.scores[i];
      const std::uint32_t key = order_key(score);
#pragma unroll
      for (int c = 0; c < 3; ++c)
        if (key >= (t | (static_cast<std::uint32_t>(c + 1) << shift))) masses[c] += score;
    }
    sum_over_block<kThreads>(masses, shared.masses, shared.double_total);
    std::uint32_t digit = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c)
      if (enough(masses[c], target)) digit = static_cast<std::uint32_t>(c) + 1;
    t |= digit << shift;
  }
  int counts[1] = {0};
  double above[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < row.n; i += kThreads) {
    const std::uint32_t key = order_key(row.scores[i]);
    counts[0] += key == t ? 1 : 0;
    if (key > t) above[0] += row.scores[i];
  }
  sum_over_block<kThreads>(counts, shared.counts, shared.int_total);
  sum_over_block<kThreads>(above, shared.masses, shared.double_total);
  // All entries of the group weigh the same: what the key stands for.
  const double value = value_of_key(t), missing = target - above[0];
  double more = counts[0];
  if (value > 0) more = strictly ? floor(missing / value) + 1.0 : ceil(missing / value);
  wanted = static_cast<int>(fmax(0.0, fmin(more, static_cast<double>(counts[0]))));
}

/// One block per row.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    block_choice_kernel(const __grid_constant__ BlockChoiceParams params) {
  constexpr int kWarps = kThreads / 32;
  __shared__ ChoiceShared shared;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int head = static_cast<int>(blockIdx.y);
  const int strip_row = static_cast<int>(blockIdx.x);
  if (params.only_heads != nullptr && params.only_heads[head] == 0) return;
  const int row_index = params.first_row + strip_row;
  const std::int64_t from = static_cast<std::int64_t>(head) * params.strip_rows + strip_row;
  const int n = params.row_entries > 0 ? params.row_entries : row_index + 1;
  ChoiceRow row{params.scores + from * params.score_stride, n, false, false};
  std::uint32_t t;
  int wanted;
  if (params.mass >= 0) {
    find_mass<kThreads>(row, params.mass, params.mass_total, params.strictly, shared, t, wanted);
  } else {
    row.force_first = params.force_first;
    row.force_last = params.force_last;
    find_count<kThreads>(row, min(params.count, n), shared, t, wanted);
  }
  const bool top_p = params.mass >= 0;
  ChoiceRow forced = row;
  forced.force_first = params.force_first;
  forced.force_last = params.force_last;

  std::uint32_t* bits =
      params.bits + (static_cast<std::int64_t>(head) * params.row_blocks + row_index) * params.words;
  int equal_seen = 0;
  for (int base = 0; base < params.words * 32; base += kThreads) {
    const int i = base + thread;
    const std::uint32_t key = i < n ? row.key(i) : 0;
    const bool equal = i < n && key == t;
    const unsigned equal_votes = __ballot_sync(~0u, equal);
    if (lane == 0) shared.warp_equal[warp] = __popc(equal_votes);
    __syncthreads();
    int before = equal_seen, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) before += shared.warp_equal[w];
      total += shared.warp_equal[w];
    }
    equal_seen += total;
    before += __popc(equal_votes & ((1u << lane) - 1));
    const bool take = i < n && (key > t || (equal && before < wanted) || (top_p && forced.forced(i)));
    const unsigned votes = __ballot_sync(~0u, take);
    if (lane == 0 && base / 32 + warp < params.words) {
      std::uint32_t* word = bits + base / 32 + warp;
      *word = params.add ? *word | votes : votes;
    }
    __syncthreads();
  }
}

template <bool kWrite>
__global__ void block_lists_kernel(const __grid_constant__ BlockBits params,
                                   const __grid_constant__ TileListsOut out, int row_blocks) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (slot >= static_cast<std::int64_t>(params.heads) * row_blocks) return;
  std::int64_t at = kWrite ? out.range_begin[slot] : 0;
  walk_bits(params.bits + slot * params.words, static_cast<int>(slot % row_blocks) + 1, params.block,
            static_cast<int>(params.tokens), [&](int start, int end) {
              if constexpr (kWrite) {
                if (at < out.max_ranges) out.ranges[at] = {start, end - start};
              }
              ++at;
            });
  if constexpr (!kWrite) out.range_begin[slot + 1] = at;
}

}  // namespace

void choose_blocks_cuda(const BlockChoiceParams& params, int heads, int rows, cudaStream_t stream) {
  if (heads == 0 || rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(heads));
  const int longest = params.row_entries > 0 ? params.row_entries : params.first_row + rows;
  if (longest <= 512) {
    block_choice_kernel<64><<<grid, 64, 0, stream>>>(params);
  } else if (longest <= 16384) {
    block_choice_kernel<256><<<grid, 256, 0, stream>>>(params);
  } else {
    block_choice_kernel<1024><<<grid, 1024, 0, stream>>>(params);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

void block_lists_cuda(const BlockBits& params, const TileListsOut& out, cudaStream_t stream) {
  const int row_blocks = static_cast<int>((params.tokens + params.block - 1) / params.block);
  const std::int64_t slots = static_cast<std::int64_t>(params.heads) * row_blocks;
  const auto grid = static_cast<unsigned>((slots + 127) / 128);
  block_lists_kernel<false><<<grid, 128, 0, stream>>>(params, out, row_blocks);
  LACUNA_CUDA_TRY(cudaGetLastError());
  launch_list_scan(out, slots, stream);
  block_lists_kernel<true><<<grid, 128, 0, stream>>>(params, out, row_blocks);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
