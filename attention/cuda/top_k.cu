// Top-k and top-p of long rows: many blocks per row find the threshold by histograms of digits in global
// memory, 11 bits at a time, then write what lies above it in order. See radix.cuh.
//
// One launch per digit and two for the choice, whatever the number of rows: a kernel begins by reading what
// the one before it has counted. 56 rows of 131072 floats (29 MB) stay in the second-level cache, so a pass
// costs about 29 MB at its speed, and all passes together a tenth of a millisecond.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "attention/cuda/top_k_row.cuh"
#include "core/cuda_launch.cuh"

namespace lacuna {

namespace {

constexpr int kThreads = kTopKThreads, kWarps = kThreads / 32;

/// Adds one digit of the entries that share the prefix found so far to the mass histogram.
__global__ void __launch_bounds__(kThreads)
    mass_kernel(const __grid_constant__ TopKCalls<std::uint32_t> calls, int digit) {
  wait_for_previous();
  let_next_start();
  __shared__ unsigned counts[kBins], low[kBins], high[kBins];
  __shared__ SearchShared<kThreads> shared;
  const TopKRow<std::uint32_t> row(calls);
  if (row.skip || row.params.mass < 0) return;
  TopKMassSpace& space = *row.mass_space;
  MassSearch search{0, 0, 0.0, row.params.mass, 0, 0};
  const bool of_row = !(row.params.mass_total > 0);
  if (!of_row) search.target *= row.params.mass_total;
  if (digit > 0) {
    search = space.steps[digit - 1];
    const Key64* mantissas = space.mantissas[digit - 1];
    next_digit<kThreads>(
        search, digit - 1, space.counts[digit - 1], [&](int bin) { return mantissas[bin]; }, of_row, true,
        shared);
  }
  if (row.leader()) space.steps[digit] = search;
  if (search.missing != 0) return;
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads)
    counts[bin] = low[bin] = high[bin] = 0;
  __syncthreads();
  const Digits<std::uint32_t> digits(digit);
  row.for_entries([&](std::uint32_t key, int i, int) {
    if (i >= row.end || !digits.matches(key, search.prefix)) return;
    const unsigned bin = digits.of(key);
    const std::uint32_t mantissa = mantissa_of_key(key);
    atomicAdd(&counts[bin], 1u);
    atomicAdd(&low[bin], mantissa & 4095u);
    atomicAdd(&high[bin], mantissa >> 12);
  });
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
    if (counts[bin] == 0) continue;
    atomicAdd(&space.counts[digit][bin], counts[bin]);
    atomicAdd(&space.mantissas[digit][bin], (Key64{high[bin]} << 12) + low[bin]);
  }
}

/// The search for the count as it stands before `digit`; the whole block calls it.
template <class Key>
__device__ RankSearch<Key> search_before(const TopKRow<Key>& row, int digit, SearchShared<kThreads>& shared) {
  RankSearch<Key> search{};
  if (digit > 0) {
    search = row.space.steps[digit - 1];
    next_digit<kThreads>(search, digit - 1, row.space.counts[digit - 1], shared);
  } else {
    int least = 0;
    if constexpr (sizeof(Key) == 4) {
      if (row.params.mass >= 0) {  // how many entries the mass needs, before any is forced
        constexpr int kLast = Digits<Key>::kCount - 1;
        MassSearch mass = row.mass_space->steps[kLast];
        const Key64* mantissas = row.mass_space->mantissas[kLast];
        next_digit<kThreads>(
            mass, kLast, row.mass_space->counts[kLast], [&](int bin) { return mantissas[bin]; }, false, true,
            shared);
        least = mass.missing != 0 ? row.n : static_cast<int>(mass.before + equal_needed(mass, true));
      }
    }
    search = row.start(least);
  }
  if (row.leader()) row.space.steps[digit] = search;
  return search;
}

/// Adds one digit of the entries that may be chosen and share the prefix found so far to the histogram.
template <class Key>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const __grid_constant__ TopKCalls<Key> calls, int digit) {
  wait_for_previous();
  let_next_start();
  __shared__ unsigned counts[kBins];
  __shared__ SearchShared<kThreads> shared;
  const TopKRow<Key> row(calls);
  if (row.skip) return;
  const RankSearch<Key> search = search_before(row, digit, shared);
  if (search.done != 0) return;
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) counts[bin] = 0;
  __syncthreads();
  const Digits<Key> digits(digit);
  row.for_entries([&](Key key, int i, int) {
    if (i < row.end && digits.matches(key, search.prefix) && !row.forced(i))
      atomicAdd(&counts[digits.of(key)], 1u);
  });
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads)
    if (counts[bin] != 0) atomicAdd(&row.space.counts[digit][bin], counts[bin]);
}

/// Which of a warp's entries of one word are above the cut and which equal to it, one bit per lane.
template <class Key>
__device__ inline uint2 votes_of(const TopKRow<Key>& row, const Cut<Key>& cut, Key key, int i) {
  const bool above = i < row.end && (key > cut.threshold || row.forced(i));
  const bool equal = i < row.end && !above && key == cut.threshold;
  return {__ballot_sync(~0u, above), __ballot_sync(~0u, equal)};
}

/// Counts what each chunk has above the threshold and equal to it.
template <class Key>
__global__ void __launch_bounds__(kThreads) tally_kernel(const __grid_constant__ TopKCalls<Key> calls) {
  wait_for_previous();
  let_next_start();
  __shared__ SearchShared<kThreads> shared;
  __shared__ uint2 parts[kWarps];
  const TopKRow<Key> row(calls);
  if (row.skip) return;
  const Cut<Key> cut = search_before(row, Digits<Key>::kCount, shared).cut();
  uint2 sum{0, 0};
  row.for_entries([&](Key key, int i, int) {
    const uint2 votes = votes_of(row, cut, key, i);
    sum.x += static_cast<unsigned>(__popc(votes.x));
    sum.y += static_cast<unsigned>(__popc(votes.y));
  });
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) sum.x += parts[w].x, sum.y += parts[w].y;
  row.chunk_counts[blockIdx.x] = sum;
}

/// Writes the chosen indices, or their bits.
template <class Key>
__global__ void __launch_bounds__(kThreads) write_kernel(const __grid_constant__ TopKCalls<Key> calls) {
  wait_for_previous();
  let_next_start();
  __shared__ uint2 parts[kWarps], earlier[kWarps];
  const TopKRow<Key> row(calls);
  if (row.skip) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const Cut<Key> cut = row.space.steps[Digits<Key>::kCount].cut();
  const TopKParams& params = row.params;

  // What lies before this chunk and, within it, before this warp.
  uint2 before{0, 0}, own{0, 0};
  for (int chunk = thread; chunk < static_cast<int>(blockIdx.x); chunk += kThreads)
    before.x += row.chunk_counts[chunk].x, before.y += row.chunk_counts[chunk].y;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    before.x += __shfl_xor_sync(~0u, before.x, distance);
    before.y += __shfl_xor_sync(~0u, before.y, distance);
  }
  row.for_entries([&](Key key, int i, int) {
    const uint2 votes = votes_of(row, cut, key, i);
    own.x += static_cast<unsigned>(__popc(votes.x));
    own.y += static_cast<unsigned>(__popc(votes.y));
  });
  if (lane == 0) earlier[warp] = before, parts[warp] = own;
  __syncthreads();
  before = {0, 0};
  for (int w = 0; w < kWarps; ++w) {
    before.x += earlier[w].x, before.y += earlier[w].y;
    if (w < warp) before.x += parts[w].x, before.y += parts[w].y;
  }

  const unsigned lower = (1u << lane) - 1;
  std::int32_t* indices =
      params.indices == nullptr ? nullptr : params.indices + row.index * params.index_stride;
  row.for_entries([&](Key key, int i, int) {
    const uint2 votes = votes_of(row, cut, key, i);
    const unsigned equal_before = before.y + static_cast<unsigned>(__popc(votes.y & lower));
    const bool take =
        (votes.x >> lane & 1u) != 0 || ((votes.y >> lane & 1u) != 0 && equal_before < cut.wanted);
    if (indices != nullptr && take)
      indices[before.x + static_cast<unsigned>(__popc(votes.x & lower)) + min(equal_before, cut.wanted)] = i;
    const unsigned word = __ballot_sync(~0u, take);
    if (params.bits != nullptr && lane == 0 && i < row.n)
      params.bits[row.index * params.bit_words + i / 32] |= word;
    before.x += static_cast<unsigned>(__popc(votes.x));
    before.y += static_cast<unsigned>(__popc(votes.y));
  });
  const bool last = row.end == row.n && thread == kThreads - 1;
  if (last && params.counts != nullptr)
    params.counts[row.index] = static_cast<std::int32_t>(before.x + min(before.y, cut.wanted));
}

int chunks_of(std::int64_t n) {
  return static_cast<int>(std::max<std::int64_t>(1, (n + kTopKChunk - 1) / kTopKChunk));
}
std::size_t rounded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class Key>
std::size_t space_bytes(std::int64_t rows, std::int64_t n, bool mass) {
  const auto count = static_cast<std::size_t>(rows);
  return rounded(count * sizeof(TopKRowSpace<Key>)) + (mass ? rounded(count * sizeof(TopKMassSpace)) : 0) +
         rounded(count * static_cast<std::size_t>(chunks_of(n)) * sizeof(uint2));
}

template <class Key>
void choose(TopKCalls<Key> calls, int rows, CudaWorkspace workspace, cudaStream_t stream) {
  if (rows == 0) return;
  const TopKParams(&params)[2] = calls.params;
  const bool mass = params[0].mass >= 0 || params[1].mass >= 0;
  const int n = std::max(params[0].n, params[1].n);
  const std::size_t bytes = space_bytes<Key>(rows, n, mass);
  if (workspace.bytes < bytes) throw_cuda(cudaErrorMemoryAllocation, "top-k: workspace too small");
  LACUNA_CUDA_TRY(cudaMemsetAsync(workspace.data, 0, bytes, stream));
  auto* at = static_cast<unsigned char*>(workspace.data);
  const auto take = [&](std::size_t size) { return std::exchange(at, at + rounded(size)); };
  const auto count = static_cast<std::size_t>(rows);
  calls.space = reinterpret_cast<TopKRowSpace<Key>*>(take(count * sizeof(TopKRowSpace<Key>)));
  if (mass) calls.mass_space = reinterpret_cast<TopKMassSpace*>(take(count * sizeof(TopKMassSpace)));
  calls.chunks = chunks_of(n);
  calls.chunk_counts = reinterpret_cast<uint2*>(at);

  const dim3 grid(static_cast<unsigned>(calls.chunks), static_cast<unsigned>(rows));
  if constexpr (sizeof(Key) == 4) {
    for (int digit = 0; mass && digit < Digits<Key>::kCount; ++digit)
      launch_dependent(mass_kernel, grid, kThreads, 0, stream, calls, digit);
  }
  for (int digit = 0; digit < Digits<Key>::kCount; ++digit)
    launch_dependent(count_kernel<Key>, grid, kThreads, 0, stream, calls, digit);
  launch_dependent(tally_kernel<Key>, grid, kThreads, 0, stream, calls);
  launch_dependent(write_kernel<Key>, grid, kThreads, 0, stream, calls);
}

}  // namespace

std::size_t top_k_workspace_bytes(std::int64_t rows, std::int64_t n, bool mass) {
  return space_bytes<std::uint32_t>(rows, n, mass);
}
std::size_t double_top_k_workspace_bytes(std::int64_t rows, std::int64_t n) {
  return space_bytes<Key64>(rows, n, false);
}

void top_k_cuda(const TopKParams& params, CudaWorkspace workspace, cudaStream_t stream) {
  choose(TopKCalls<std::uint32_t>{{params, {}}, params.rows, 0, nullptr, nullptr, nullptr}, params.rows,
         workspace, stream);
}

void top_k_pair_cuda(const TopKParams& first, const TopKParams& second, CudaWorkspace workspace,
                     cudaStream_t stream) {
  choose(TopKCalls<std::uint32_t>{{first, second}, first.rows, 0, nullptr, nullptr, nullptr},
         first.rows + second.rows, workspace, stream);
}

void double_top_k_cuda(const DoubleTopKParams& params, CudaWorkspace workspace, cudaStream_t stream) {
  TopKParams same;
  same.scores = reinterpret_cast<const float*>(params.scores);  // strides count entries, whatever their type
  same.score_stride = params.n;
  same.rows = params.rows, same.n = params.n, same.k = params.k;
  same.first = params.first, same.last = params.last;
  same.indices = params.indices, same.index_stride = params.index_stride;
  choose(TopKCalls<Key64>{{same, {}}, params.rows, 0, nullptr, nullptr, nullptr}, params.rows, workspace,
         stream);
}

}  // namespace lacuna
