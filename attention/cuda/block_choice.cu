// Which key blocks of a row of scores stay, as one bit per block, and tile lists from such bits. One block of
// threads per row, its scores in registers or shared memory; the threshold is found by histograms
// (radix.cuh).
#include <cstdint>

#include "attention/cuda/list_scan.cuh"
#include "attention/cuda/radix.cuh"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

using Search = RankSearch<std::uint32_t>;
using Threshold = Cut<std::uint32_t>;

/// A longer row's mantissas could overflow the sums of one block.
constexpr int kLongestRow = 1 << 20;

/// Where a row's keys stay while they are searched. kRegisters: up to kHeld words of each warp. kShared: in
/// shared memory, each thread's apart, which leaves registers for more rows at a time. kMemory: nowhere, they
/// are read again in every pass.
enum class Keep { kRegisters, kShared, kMemory };
constexpr int kHeld = 8;
/// Longest row kept in shared memory: 64 KiB.
constexpr int kLongestShared = 16384;

/// One row of scores. A warp owns neighbouring words of 32 entries.
template <int kThreads, Keep kKeep>
struct ChoiceRow {
  static constexpr int kWarps = kThreads / 32;
  const std::uint32_t* scores;
  int n, force_first, force_last;
  int words, per_warp;
  std::uint32_t* shared;  ///< [per_warp][kThreads]
  std::uint32_t held[kKeep == Keep::kRegisters ? kHeld : 1];

  __device__ ChoiceRow(const BlockChoiceParams& params, int head, int strip_row, std::uint32_t* space)
      : n(params.row_entries > 0 ? params.row_entries : params.first_row + strip_row + 1),
        force_first(params.force_first),
        force_last(params.force_last),
        shared(space + threadIdx.x) {
    scores = reinterpret_cast<const std::uint32_t*>(
        params.scores +
        (static_cast<std::int64_t>(head) * params.strip_rows + strip_row) * params.score_stride);
    words = (n + 31) / 32;
    per_warp = (words + kWarps - 1) / kWarps;
    if constexpr (kKeep == Keep::kRegisters) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j) held[j] = j < per_warp ? read(j) : 0;
    } else if constexpr (kKeep == Keep::kShared) {
#pragma unroll 8
      for (int j = 0; j < per_warp; ++j) shared[j * kThreads] = read(j);
    }
  }
  __device__ std::uint32_t read(int j) const {
    const int i = entry(j);
    return i < n ? order_key(scores[i]) : 0;
  }
  __device__ int first_word() const { return (static_cast<int>(threadIdx.x) >> 5) * per_warp; }
  __device__ int entry(int j) const { return (first_word() + j) * 32 + (static_cast<int>(threadIdx.x) & 31); }
  __device__ bool forced(int i) const { return i < force_first || i >= n - force_last; }
  /// body(key, i, j) for word j of the warp, lane by lane; all lanes call it, i < n or not.
  template <class Body>
  __device__ void for_words(const Body& body) const {
    if constexpr (kKeep == Keep::kRegisters) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j)
        if (j < per_warp) body(held[j], entry(j), j);
    } else {
#pragma unroll 4
      for (int j = 0; j < per_warp; ++j)
        body(kKeep == Keep::kShared ? shared[j * kThreads] : read(j), entry(j), j);
    }
  }
};

template <int kThreads>
__device__ void clear_bins(unsigned* bins) {
  for (int bin = static_cast<int>(threadIdx.x) * 4; bin < kBins; bin += kThreads * 4)
    *reinterpret_cast<uint4*>(bins + bin) = uint4{0, 0, 0, 0};
}

/// The cut behind the count best, forced ones among them.
template <int kThreads, Keep kKeep>
__device__ Threshold find_count(const ChoiceRow<kThreads, kKeep>& row, int count) {
  __shared__ SearchShared<kThreads> shared;
  alignas(16) __shared__ unsigned counts[kBins];
  const int forced = min(row.n, row.force_first + row.force_last), k = min(count, row.n) - forced;
  if (k <= 0) return Threshold::none();
  if (k >= row.n - forced) return Threshold::all();
  Search search{0, static_cast<unsigned>(k), 0};
  for (int digit = 0; search.done == 0; ++digit) {
    clear_bins<kThreads>(counts);
    __syncthreads();
    const Digits<std::uint32_t> digits(digit);
    row.for_words([&](std::uint32_t key, int i, int) {
      if (i < row.n && digits.matches(key, search.prefix) && !row.forced(i))
        atomicAdd(&counts[digits.of(key)], 1u);
    });
    __syncthreads();
    next_digit<kThreads>(search, digit, counts, shared);
  }
  return search.cut();
}

/// The cut behind the shortest prefix of the sorted row with enough mass.
template <int kThreads, Keep kKeep>
__device__ Threshold find_mass(const ChoiceRow<kThreads, kKeep>& row, const BlockChoiceParams& params) {
  __shared__ SearchShared<kThreads> shared;
  alignas(16) __shared__ unsigned counts[kBins], low[kBins], high[kBins];
  if (params.mass == 0 && !params.strictly) return Threshold::none();
  const bool of_row = !(params.mass_total > 0);
  MassSearch search{0, 0, 0.0, params.mass * (of_row ? 1.0 : params.mass_total), 0, 0};
  for (int digit = 0; digit < Digits<std::uint32_t>::kCount; ++digit) {
    clear_bins<kThreads>(counts);
    clear_bins<kThreads>(low);
    clear_bins<kThreads>(high);
    __syncthreads();
    const Digits<std::uint32_t> digits(digit);
    row.for_words([&](std::uint32_t key, int i, int) {
      if (i >= row.n || !digits.matches(key, search.prefix)) return;
      const unsigned bin = digits.of(key);
      const std::uint32_t mantissa = mantissa_of_key(key);
      atomicAdd(&counts[bin], 1u);
      atomicAdd(&low[bin], mantissa & 4095u);
      atomicAdd(&high[bin], mantissa >> 12);
    });
    __syncthreads();
    next_digit<kThreads>(
        search, digit, counts, [&](int bin) { return (Key64{high[bin]} << 12) + low[bin]; }, of_row,
        params.strictly, shared);
    if (search.missing != 0) return Threshold::all();
  }
  return {search.prefix, equal_needed(search, params.strictly)};
}

/// How many entries equal to the threshold earlier warps have; forced ones only count for a mass, whose order
/// knows none.
template <bool kMass, int kThreads, Keep kKeep>
__device__ unsigned equal_in_earlier_warps(const ChoiceRow<kThreads, kKeep>& row, std::uint32_t threshold) {
  __shared__ unsigned per_warp[kThreads / 32];
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  unsigned own = 0, before = 0;
  row.for_words([&](std::uint32_t key, int i, int) {
    const bool equal = i < row.n && key == threshold && (kMass || !row.forced(i));
    own += static_cast<unsigned>(__popc(__ballot_sync(~0u, equal)));
  });
  if ((threadIdx.x & 31) == 0) per_warp[warp] = own;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += per_warp[w];
  return before;
}

/// One block per row.
template <int kThreads, Keep kKeep, bool kMass>
__global__ void __launch_bounds__(kThreads)
    block_choice_kernel(const __grid_constant__ BlockChoiceParams params) {
  extern __shared__ __align__(128) unsigned char raw[];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int head = static_cast<int>(blockIdx.y), strip_row = static_cast<int>(blockIdx.x);
  if (params.only_heads != nullptr && params.only_heads[head] == 0) return;
  const ChoiceRow<kThreads, kKeep> row(params, head, strip_row, reinterpret_cast<std::uint32_t*>(raw));
  Threshold cut;
  if constexpr (kMass) {
    cut = find_mass(row, params);
  } else {
    cut = find_count(row, params.count);
  }
  unsigned equal_before = 0;
  if (cut.wanted != 0 && cut.wanted != ~0u) equal_before = equal_in_earlier_warps<kMass>(row, cut.threshold);

  const std::int64_t line =
      static_cast<std::int64_t>(head) * params.row_blocks + params.first_row + strip_row;
  std::uint32_t* bits = params.bits + line * params.words;
  const auto store = [&](int word, std::uint32_t value) {
    if (word < row.words) bits[word] = params.add ? bits[word] | value : value;
  };
  std::uint32_t mine = 0;  // lane l keeps every 32nd word of the warp, so that they are written side by side
  row.for_words([&](std::uint32_t key, int i, int j) {
    const bool forced = i < row.n && row.forced(i);
    const bool equal = i < row.n && key == cut.threshold && (kMass || !forced);
    const unsigned equals = __ballot_sync(~0u, equal);
    const unsigned rank = equal_before + static_cast<unsigned>(__popc(equals & ((1u << lane) - 1)));
    const bool take = forced || (i < row.n && key > cut.threshold) || (equal && rank < cut.wanted);
    const unsigned word = __ballot_sync(~0u, take);
    equal_before += static_cast<unsigned>(__popc(equals));
    if (lane == (j & 31)) mine = word;
    if ((j & 31) == 31) store(row.first_word() + j - 31 + lane, mine);
  });
  const int rest = row.per_warp & 31;
  if (lane < rest) store(row.first_word() + row.per_warp - rest + lane, mine);
  if (params.add) return;
  for (int word = row.words + static_cast<int>(threadIdx.x); word < params.words; word += kThreads)
    bits[word] = 0;
}

/// One warp per row.
template <bool kWrite>
__global__ void block_lists_kernel(const __grid_constant__ BlockBits params,
                                   const __grid_constant__ TileListsOut out, int row_blocks) {
  const std::int64_t slot = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) >> 5;
  if (slot >= static_cast<std::int64_t>(params.heads) * row_blocks) return;
  const std::int64_t begin = kWrite ? out.range_begin[slot] : 0;
  const auto tokens = static_cast<int>(params.tokens);
  const int runs =
      warp_runs(params.bits + slot * params.words, static_cast<int>(slot % row_blocks) + 1,
                [&](int i, int start, int end) {
                  if (kWrite && begin + i < out.max_ranges)
                    out.ranges[begin + i] = {start * params.block,
                                             min(end * params.block, tokens) - start * params.block};
                });
  if (!kWrite && (threadIdx.x & 31) == 0) out.range_begin[slot + 1] = runs;
}

template <bool kMass>
void launch_choice(const BlockChoiceParams& params, int longest, const dim3& grid, cudaStream_t stream) {
  if (longest <= 4 * 32 * kHeld) {
    block_choice_kernel<128, Keep::kRegisters, kMass><<<grid, 128, 0, stream>>>(params);
  } else if (longest <= 8 * 32 * kHeld) {
    block_choice_kernel<256, Keep::kRegisters, kMass><<<grid, 256, 0, stream>>>(params);
  } else if (longest <= kLongestShared) {
    const auto kernel = block_choice_kernel<256, Keep::kShared, kMass>;
    const int bytes = (longest + 255) / 256 * 256 * static_cast<int>(sizeof(std::uint32_t));
    LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, 256, bytes, stream>>>(params);
  } else {
    block_choice_kernel<256, Keep::kMemory, kMass><<<grid, 256, 0, stream>>>(params);
  }
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace

void choose_blocks_cuda(const BlockChoiceParams& params, int heads, int rows, cudaStream_t stream) {
  if (heads == 0 || rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(heads));
  const int longest = params.row_entries > 0 ? params.row_entries : params.first_row + rows;
  if (longest > kLongestRow)
    throw_cuda(cudaErrorInvalidValue, "choice of blocks: a row of more than 2^20 scores");
  if (params.mass >= 0) {
    launch_choice<true>(params, longest, grid, stream);
  } else {
    launch_choice<false>(params, longest, grid, stream);
  }
}

void block_lists_cuda(const BlockBits& params, const TileListsOut& out, cudaStream_t stream) {
  const int row_blocks = static_cast<int>((params.tokens + params.block - 1) / params.block);
  const std::int64_t slots = static_cast<std::int64_t>(params.heads) * row_blocks;
  const auto grid = static_cast<unsigned>((slots * 32 + 127) / 128);
  block_lists_kernel<false><<<grid, 128, 0, stream>>>(params, out, row_blocks);
  LACUNA_CUDA_TRY(cudaGetLastError());
  launch_list_scan(out, slots, stream);
  block_lists_kernel<true><<<grid, 128, 0, stream>>>(params, out, row_blocks);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

}  // namespace lacuna
