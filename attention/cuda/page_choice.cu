// From scores of pages to lists of pages, one block per list.
#include <cmath>
#include <type_traits>

#include "attention/cuda/page_util.cuh"
#include "core/cuda.h"
#include "core/cuda_launch.cuh"

namespace lacuna {

namespace {

using u64 = unsigned long long;

/// Order-preserving map of floats to unsigned integers; a larger float is a larger integer.
__device__ inline std::uint32_t sortable(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float number_of(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}
/// The weight behind a key, 0 for what is not in (0, 2], in units of 2^-60: sums of these are exact, so that
/// they depend on no order, and equal weights end a prefix where equal numbers do.
__device__ inline u64 fixed_point(std::uint32_t key) {
  const float x = __uint_as_float(key ^ 0x80000000u);
  return (key & 0x80000000u) != 0 && x > 0.0f && x <= 2.0f ? static_cast<u64>(x * 0x1p60f) : 0;
}

constexpr int kBins = 2048;
constexpr int kFew = 64;  ///< entries that are ranked by comparing each with each

template <int kThreads>
struct Shared {
  unsigned histogram[kBins];
  unsigned low[2][kThreads / 32], high[2][kThreads / 32], warp_count[kThreads / 32];
  unsigned bin, remaining, inside;  ///< the bin with the k-th best, what is left of k, entries in the bin
  unsigned few, threshold, wanted;
  std::uint32_t key[kFew];
  u64 parts[2][3][kThreads / 32];
  u64 warp_total[kThreads / 32];
};

/// Which entries are taken: those with larger keys than `threshold` and the first `wanted` equal to it.
struct Cut {
  std::uint32_t threshold;
  unsigned wanted;
};

/// One list while it is made. A thread owns a run of neighbours: kHeld of them in registers, or, when the row
/// is too long for that (0), as many as it takes, read again in every pass.
template <int kThreads, int kHeld>
struct Row {
  const float* scores;
  int n;  ///< entries to choose from
  int begin, count;
  std::uint32_t held[kHeld > 0 ? kHeld : 1];

  __device__ Row(const float* from, int entries) : scores(from), n(entries) {
    const int per_thread = kHeld > 0 ? kHeld : (n + kThreads - 1) / kThreads;
    begin = static_cast<int>(threadIdx.x) * per_thread;
    count = max(0, min(per_thread, n - begin));
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; j += 4) {
        // Rows are whole words of four.
        const float4 x = j < count ? *reinterpret_cast<const float4*>(scores + begin + j) : float4{};
        held[j] = sortable(x.x), held[j + 1] = sortable(x.y);
        held[j + 2] = sortable(x.z), held[j + 3] = sortable(x.w);
      }
    }
  }
  template <class Body>
  __device__ void for_own(const Body& body) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int j = 0; j < kHeld; ++j)
        if (j < count) body(held[j], begin + j);
    } else {
      for (int j = 0; j < count; ++j) body(sortable(scores[begin + j]), begin + j);
    }
  }
};

/// Cuts the keys from low to high into kBins ranges, in their order.
struct Bins {
  std::uint32_t low, high;
  float begin, scale;  ///< 0: by key
  int shift;

  /// `linear`: ranges of equal width in numbers, where floats allow it. Scores of one head then spread over
  /// many bins, so that few threads meet in one. Rounding keeps the order, and low and high are never in one
  /// bin.
  __device__ Bins(std::uint32_t from, std::uint32_t to, bool linear) : low(from), high(to), scale(0.0f) {
    begin = number_of(low);
    const float width = number_of(high) - begin;
    if (linear && width >= 1e-30f && width <= 1e30f) scale = static_cast<float>(kBins) / width;
    shift = 0;
    while (scale == 0.0f && (high - low) >> shift >= kBins) ++shift;
  }
  __device__ bool contains(std::uint32_t key) const { return low <= key && key <= high; }
  __device__ int of(std::uint32_t key) const {
    if (scale > 0.0f) return min(static_cast<int>((number_of(key) - begin) * scale), kBins - 1);
    return static_cast<int>((key - low) >> shift);
  }
};
/// Smallest and largest key among the block's. Calls alternate between two places in shared memory.
template <int kThreads>
__device__ inline void block_range(std::uint32_t& low, std::uint32_t& high, Shared<kThreads>& shared,
                                   int place) {
  constexpr int kWarps = kThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  low = __reduce_min_sync(~0u, low);
  high = ~__reduce_min_sync(~0u, ~high);
  if (lane == 0) shared.low[place][warp] = low, shared.high[place][warp] = high;
  __syncthreads();
  low = __reduce_min_sync(~0u, lane < kWarps ? shared.low[place][lane] : ~0u);
  high = ~__reduce_min_sync(~0u, lane < kWarps ? ~shared.high[place][lane] : ~0u);
}

/// Finds the bin of the k-th best, from the best on, and leaves the histogram empty.
template <int kThreads>
__device__ inline void find_bin(unsigned k, Shared<kThreads>& shared) {
  constexpr int kWarps = kThreads / 32, kEach = kBins / kThreads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  unsigned counts[kEach], sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int bin = kBins - 1 - (thread * kEach + j);
    sum += counts[j] = shared.histogram[bin];
    shared.histogram[bin] = 0;
  }
  unsigned until = sum;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned other = __shfl_up_sync(~0u, until, distance);
    if (lane >= distance) until += other;
  }
  if (lane == 31) shared.warp_count[warp] = until;
  __syncthreads();
  unsigned earlier = lane < min(warp, kWarps) ? shared.warp_count[lane] : 0;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) earlier += __shfl_xor_sync(~0u, earlier, distance);
  unsigned before = earlier + until - sum;
  if (before < k && k <= earlier + until) {  // one thread
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (before < k && k <= before + counts[j]) {
        shared.bin = static_cast<unsigned>(kBins - 1 - (thread * kEach + j));
        shared.remaining = k - before;
        shared.inside = counts[j];
        shared.few = 0;
      }
      before += counts[j];
    }
  }
  __syncthreads();
}

/// The k best, 0 < k < n: histograms of finer and finer ranges, until few enough are left to compare each
/// with each.
template <int kThreads, int kHeld>
__device__ Cut best(const Row<kThreads, kHeld>& row, unsigned k, Shared<kThreads>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kBins; i += kThreads) shared.histogram[i] = 0;
  std::uint32_t low = ~0u, high = 0;
  row.for_own([&](std::uint32_t key, int) {
    low = min(low, key);
    high = max(high, key);
  });
  block_range<kThreads>(low, high, shared, 0);
  for (int pass = 0;; ++pass) {
    if (low == high) return {low, k};
    const Bins bins(low, high, pass == 0);
    const auto bin_of = [&](std::uint32_t key) { return bins.contains(key) ? bins.of(key) : -1; };
    int own_bins[kHeld > 0 ? kHeld : 1];
    row.for_own([&](std::uint32_t key, int i) {
      const int found = bin_of(key);
      if (found >= 0) atomicAdd(&shared.histogram[found], 1u);
      if (kHeld > 0) own_bins[i - row.begin] = found;
    });
    __syncthreads();
    find_bin<kThreads>(k, shared);
    const auto bin = static_cast<int>(shared.bin);
    const unsigned inside = shared.inside;
    k = shared.remaining;
    low = ~0u, high = 0;
    row.for_own([&](std::uint32_t key, int i) {
      if ((kHeld > 0 ? own_bins[i - row.begin] : bin_of(key)) != bin) return;
      low = min(low, key);
      high = max(high, key);
      if (inside <= kFew) shared.key[atomicAdd(&shared.few, 1u)] = key;
    });
    block_range<kThreads>(low, high, shared, pass + 1 & 1);
    if (k == inside) return {low - 1, 0};  // all of them
    if (inside > kFew) continue;
    if (thread < static_cast<int>(inside)) {
      const std::uint32_t mine = shared.key[thread];
      unsigned above = 0, equal = 0, before = 0;
      for (unsigned i = 0; i < inside; ++i) {
        const std::uint32_t other = shared.key[i];
        above += other > mine ? 1u : 0u;
        equal += other == mine ? 1u : 0u;
        before += other == mine && i < static_cast<unsigned>(thread) ? 1u : 0u;
      }
      // One of the equal ones tells.
      if (before == 0 && above < k && k <= above + equal) shared.threshold = mine, shared.wanted = k - above;
    }
    __syncthreads();
    return {shared.threshold, shared.wanted};
  }
}

/// Three sums over the block; every thread gets them. Calls alternate between two places in shared memory.
template <int kThreads>
__device__ inline void block_sums(u64 (&value)[3], Shared<kThreads>& shared, int place) {
  constexpr int kWarps = kThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value[c] += __shfl_xor_sync(~0u, value[c], distance);
    if (lane == 0) shared.parts[place][c][warp] = value[c];
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    value[c] = lane < kWarps ? shared.parts[place][c][lane] : 0;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value[c] += __shfl_xor_sync(~0u, value[c], distance);
  }
}

/// The shortest prefix of the sorted row that holds a share of `mass` of its sum.
template <int kThreads, int kHeld>
__device__ Cut prefix_of_mass(const Row<kThreads, kHeld>& row, double mass, Shared<kThreads>& shared) {
  u64 sums[3] = {0, 0, 0};
  row.for_own([&](std::uint32_t key, int) { sums[0] += fixed_point(key); });
  block_sums<kThreads>(sums, shared, 0);
  const double needed = mass * static_cast<double>(sums[0]);
  if (!(needed > 0.0)) return {0xFFFFFFFFu, 0};
  // The largest key t such that entries from t on hold the mass; keys of weights have their top bit set.
  std::uint32_t t = 0x80000000u;
  int place = 1;
  for (int shift = 28; shift >= 0; shift -= 2, place ^= 1) {
    sums[0] = sums[1] = sums[2] = 0;
    row.for_own([&](std::uint32_t key, int) {
      const u64 weight = fixed_point(key);
#pragma unroll
      for (int c = 0; c < 3; ++c)
        if (key >= (t | static_cast<std::uint32_t>(c + 1) << shift)) sums[c] += weight;
    });
    block_sums<kThreads>(sums, shared, place);
    std::uint32_t digit = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c)
      if (static_cast<double>(sums[c]) >= needed) digit = static_cast<std::uint32_t>(c) + 1;
    t |= digit << shift;
  }
  sums[0] = sums[1] = sums[2] = 0;
  row.for_own([&](std::uint32_t key, int) {
    if (key > t) sums[0] += fixed_point(key);
    if (key == t) ++sums[1];
  });
  block_sums<kThreads>(sums, shared, place);
  // Entries equal to t weigh the same: how many of them are needed, by division and then exactly.
  const u64 above = sums[0], weight = fixed_point(t);
  const auto equal = static_cast<double>(sums[1]);
  const double estimate = ceil((needed - static_cast<double>(above)) / static_cast<double>(weight));
  auto wanted = static_cast<unsigned>(fmin(fmax(estimate, 1.0), equal));
  while (wanted > 1 && static_cast<double>(above + (wanted - 1) * weight) >= needed) --wanted;
  while (wanted < sums[1] && static_cast<double>(above + wanted * weight) < needed) ++wanted;
  return {t, wanted};
}

struct ChoiceArgs {
  const DevicePagedHead* heads;
  const DecodeBudget* budgets;
  const float* scores;
  std::int64_t score_stride;
  PageCandidates candidates;
  std::int32_t* lists;
  std::int32_t* counts;
  std::int64_t list_stride;
  int lists_per_row, kv_heads;
  bool settled;                   ///< DecodeChoice::settled
  const char* pool;               ///< null: chosen pages are not read ahead
  std::int64_t page_step;         ///< bytes from page to page
  unsigned page_bytes;            ///< of keys and values
  DecodeCounters* counters;       ///< null: not counted
  int first_reader, end_reader;   ///< DecodeChoice
  int group, head_base, kv_base;  ///< kv head of query head h: (head_base + h) / group - kv_base
};

/// Into the second-level cache, ahead of the kernel that will read it.
__device__ inline void read_ahead(const void* from, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}
/// More than a good part of that cache is not read ahead.
constexpr std::int64_t kReadAheadBytes = 16 << 20;

template <int kThreads, int kHeld, bool kMass>
__global__ void __launch_bounds__(kThreads, 1) choose_pages_kernel(const __grid_constant__ ChoiceArgs args) {
  __shared__ Shared<kThreads> shared;
  let_next_start();
  if (!args.settled) wait_for_previous();
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5;
  const int list = static_cast<int>(blockIdx.x);
  const int row_index = list / args.lists_per_row, place = list % args.lists_per_row;
  const int kv =
      args.lists_per_row == args.kv_heads ? place : (args.head_base + place) / args.group - args.kv_base;
  const DevicePagedHead& head = args.heads[row_index * args.kv_heads + kv];
  const std::int32_t* pages = nullptr;
  int candidates;
  if (args.candidates.lists != nullptr) {
    pages = args.candidates.lists + list * args.candidates.stride;
    wait_for_previous();
    candidates = args.candidates.counts[list];
  } else {
    candidates = page_count(head);
  }
  const DecodeBudget budget = args.budgets[row_index];
  wait_for_previous();
  if (candidates == 0) {
    if (thread == 0) args.counts[list] = 0;
    return;
  }
  const int others = candidates - 1;  // all but the current page, which is always read
  const Row<kThreads, kHeld> row(args.scores + list * args.score_stride, kMass ? candidates : others);
  Cut cut{0, 0};
  bool everything = false;
  if constexpr (kMass) {
    cut = prefix_of_mass<kThreads, kHeld>(row, budget.mass, shared);
  } else if (budget.pages >= others) {
    everything = true;
  } else if (budget.pages > 0) {
    cut = best<kThreads, kHeld>(row, static_cast<unsigned>(budget.pages), shared);
  } else {
    cut.threshold = 0xFFFFFFFFu;
  }

  // Counts of the thread's run, above in the low half and equal in the high one, and of all runs before it.
  using Count = std::conditional_t<(kHeld > 0), std::uint32_t, u64>;
  constexpr int kHalf = sizeof(Count) * 4;
  constexpr bool kMasks = kHeld > 0 && !kMass;  // registers are short there
  static_assert(kHeld * kThreads < 1 << 16 && kHeld <= 32);
  [[maybe_unused]] unsigned above_mask = 0, equal_mask = 0;  // of what is held
  Count own = 0;
  row.for_own([&](std::uint32_t key, int i) {
    if (i >= others) return;
    const bool above = everything || key > cut.threshold, equal = !above && key == cut.threshold;
    if (kMasks) {
      above_mask |= (above ? 1u : 0u) << (i - row.begin);
      equal_mask |= (equal ? 1u : 0u) << (i - row.begin);
    } else {
      own += above ? Count{1} : equal ? Count{1} << kHalf : Count{0};
    }
  });
  if (kMasks) own = __popc(above_mask) + (static_cast<Count>(__popc(equal_mask)) << kHalf);
  Count until = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Count other = __shfl_up_sync(~0u, until, distance);
    if (lane >= distance) until += other;
  }
  if (lane == 31) shared.warp_total[warp] = until;
  __syncthreads();
  constexpr int kWarps = kThreads / 32;
  Count warps = lane < kWarps ? static_cast<Count>(shared.warp_total[lane]) : 0;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Count other = __shfl_up_sync(~0u, warps, distance);
    if (lane >= distance) warps += other;
  }
  constexpr Count kLow = (Count{1} << kHalf) - 1;
  const Count total = __shfl_sync(~0u, warps, 31), earlier = __shfl_sync(~0u, warps, max(0, warp - 1));
  const Count before = until - own + (warp > 0 ? earlier : 0);

  std::int32_t* to = args.lists + list * args.list_stride;
  const std::int64_t most_bytes = std::int64_t{budget.pages} * gridDim.x * args.page_bytes;
  const bool ahead = args.pool != nullptr && most_bytes <= kReadAheadBytes;
  unsigned equal_seen = static_cast<unsigned>(before >> kHalf);
  unsigned at = static_cast<unsigned>(before & kLow) + min(equal_seen, cut.wanted);
  const auto write = [&](int i) {
    const int page = pages != nullptr ? pages[i] : i;
    to[at++] = page;
    if (ahead) read_ahead(args.pool + head.page_ids[page] * args.page_step, args.page_bytes);
  };
  if (kMasks) {  // few of them
    for (unsigned left = above_mask | equal_mask; left != 0; left &= left - 1) {
      const int j = __popc((left & (0u - left)) - 1);  // the lowest bit
      if ((above_mask >> j & 1u) != 0 || equal_seen++ < cut.wanted) write(row.begin + j);
    }
  } else {
    row.for_own([&](std::uint32_t key, int i) {
      if (i >= others) return;
      if (everything || key > cut.threshold || (key == cut.threshold && equal_seen++ < cut.wanted)) write(i);
    });
  }
  if (thread == 0) {
    const unsigned chosen =
        static_cast<unsigned>(total & kLow) + min(static_cast<unsigned>(total >> kHalf), cut.wanted);
    to[chosen] = pages != nullptr ? pages[others] : others;
    args.counts[list] = static_cast<std::int32_t>(chosen) + 1;
    if (args.counters == nullptr) return;
    const bool shared_list = args.lists_per_row == args.kv_heads;
    const int readers =
        shared_list ? readers_of(args.kv_base + kv, args.group, args.first_reader, args.end_reader) : 1;
    count_list(args.counters[row_index], head, static_cast<int>(chosen) + 1, true, readers);
  }
}

template <bool kMass>
void launch_choice(const ChoiceArgs& args, unsigned lists, cudaStream_t stream) {
  if (args.score_stride <= 8 * 256) {
    launch_dependent(choose_pages_kernel<256, 8, kMass>, lists, 256, 0, stream, args);
  } else if (args.score_stride <= 8 * 1024) {
    launch_dependent(choose_pages_kernel<1024, 8, kMass>, lists, 1024, 0, stream, args);
  } else if (!kMass && args.score_stride <= 16 * 1024) {
    launch_dependent(choose_pages_kernel < 1024, kMass ? 0 : 16, kMass >, lists, 1024, 0, stream, args);
  } else {
    launch_dependent(choose_pages_kernel<1024, 0, kMass>, lists, 1024, 0, stream, args);
  }
}

/// Block: one kv head of one row.
__global__ void streaming_pages_kernel(const __grid_constant__ DecodeChoice choice) {
  let_next_start();
  wait_for_previous();
  const int list = static_cast<int>(blockIdx.x);
  const DecodeBudget budget = choice.budgets[list / choice.info.kv_heads];
  const DevicePagedHead head = choice.heads[list];
  const int pages = page_count(head);
  const int sinks = min(pages, (budget.sinks + kPageTokens - 1) / kPageTokens);
  const auto local =
      static_cast<int>((head.tokens > budget.pages ? head.tokens - budget.pages : 0) / kPageTokens);
  const int first_local = max(local, sinks);
  const int count = sinks + max(0, pages - first_local);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    choice.lists[list * choice.list_stride + i] = i < sinks ? i : first_local + i - sinks;
  if (threadIdx.x > 0) return;
  choice.counts[list] = count;
  if (choice.counters == nullptr) return;
  const LayerInfo& info = choice.info;
  const int kv = info.kv_head_begin + list % info.kv_heads, group = info.q_heads_total / info.kv_heads_total;
  count_list(choice.counters[list / info.kv_heads], head, count,
             count > 0 && (first_local < pages || sinks == pages),
             readers_of(kv, group, choice.first_reader, choice.end_reader));
}

}  // namespace

void choose_pages_cuda(const DecodeChoice& choice, PageRule rule, int lists_per_row, const float* scores,
                       const PageCandidates& candidates, std::int32_t* lists, std::int32_t* counts,
                       std::int64_t list_stride, cudaStream_t stream) {
  const LayerInfo& info = choice.info;
  const bool final = lists == choice.lists;  // attention reads these pages next
  const ChoiceArgs args{
      .heads = choice.heads,
      .budgets = choice.budgets,
      .scores = scores,
      .score_stride = page_score_stride(choice.max_tokens),
      .candidates = candidates,
      .lists = lists,
      .counts = counts,
      .list_stride = list_stride,
      .lists_per_row = lists_per_row,
      .kv_heads = info.kv_heads,
      .settled = choice.settled,
      .pool = final && rule == PageRule::kBest ? static_cast<const char*>(choice.pool) : nullptr,
      .page_step = choice.page_elements * 2,
      .page_bytes = static_cast<unsigned>(2 * kPageTokens * info.head_dim * 2),
      .counters = final ? choice.counters : nullptr,
      .first_reader = choice.first_reader,
      .end_reader = choice.end_reader,
      .group = info.q_heads_total / info.kv_heads_total,
      .head_base = info.q_head_begin,
      .kv_base = info.kv_head_begin};
  const auto blocks = static_cast<unsigned>(choice.rows * lists_per_row);
  if (rule == PageRule::kMass) {
    launch_choice<true>(args, blocks, stream);
  } else {
    launch_choice<false>(args, blocks, stream);
  }
}

void streaming_pages_cuda(const DecodeChoice& choice, cudaStream_t stream) {
  const auto lists = static_cast<unsigned>(choice.rows * choice.info.kv_heads);
  launch_dependent(streaming_pages_kernel, lists, 128, 0, stream, choice);
}

}  // namespace lacuna
