// Choice by rank or by mass: keys that sort as numbers do, histograms of their digits, and the search of a
// histogram, from the largest digit down, for the place where a rank or a mass lies.
//
// Counts are integers, and so are sums of mantissas, because all entries of a bin have one exponent: neither
// depends on the order in which threads and blocks add. Masses of bins meet in double in a fixed order.
#pragma once

#include <cmath>
#include <cstdint>

namespace lacuna {

/// Keys are searched from the top, 11 bits at a time: 3 digits of a float, 6 of a double.
inline constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

using Key64 = unsigned long long;

/// From the bits of a float or double to an integer of the same order. Both zeros have one key; a NaN lies
/// beyond infinity, on the side of its sign.
template <class Key>
__device__ inline Key order_key(Key bits) {
  constexpr Key kSign = Key{1} << (8 * sizeof(Key) - 1);
  return (bits & kSign) != 0 && bits != kSign ? ~bits : bits | kSign;
}
/// The bits behind a key.
__device__ inline std::uint32_t bits_of_key(std::uint32_t key) {
  return (key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key;
}

template <class Key>
struct Digits {
  static constexpr int kBits = 8 * static_cast<int>(sizeof(Key));
  static constexpr int kCount = (kBits + kDigitBits - 1) / kDigitBits;

  int digit;
  __device__ explicit Digits(int d) : digit(d) {}
  __device__ int shift() const { return max(0, kBits - kDigitBits * (digit + 1)); }
  __device__ unsigned of(Key key) const {
    const int width = kBits - kDigitBits * digit - shift();
    return static_cast<unsigned>(key >> shift()) & ((1u << width) - 1);
  }
  /// Whether the digits before this one are those of `prefix`.
  __device__ bool matches(Key key, Key prefix) const {
    return digit == 0 || (key ^ prefix) >> (kBits - kDigitBits * digit) == 0;
  }
  __device__ Key with(Key prefix, unsigned value) const {
    return prefix | static_cast<Key>(value) << shift();
  }
};

/// Entries with keys above `threshold` are chosen, and the first `wanted` of those equal to it.
template <class Key>
struct Cut {
  Key threshold;
  unsigned wanted;

  __device__ static Cut all() { return {0, ~0u}; }
  __device__ static Cut none() { return {~Key{0}, 0}; }
  /// Everything from `key` on.
  __device__ static Cut from(Key key) { return key == 0 ? all() : Cut{key - 1, 0}; }
};

/// A search for the entry of some rank, before a digit has been looked at or, when `done`, after the last.
template <class Key>
struct RankSearch {
  Key prefix;
  unsigned rank;  ///< 1: the largest of those with this prefix
  int done;

  __device__ Cut<Key> cut() const { return {prefix, rank}; }
  __device__ static RankSearch finished(const Cut<Key>& cut) { return {cut.threshold, cut.wanted, 1}; }
};

/// A search for the shortest prefix of the sorted row whose sum is above `target`, or reaches it.
struct MassSearch {
  std::uint32_t prefix;
  unsigned before;  ///< entries with larger keys, and what they weigh:
  double mass_before;
  double target;
  unsigned inside;  ///< entries with this prefix
  int missing;      ///< not even the whole row has enough
};

template <int kThreads>
struct SearchShared {
  unsigned warp_count[kThreads / 32];
  double warp_mass[kThreads / 32];
  int warp_first[kThreads / 32];
  unsigned digit, before, inside;
  double mass_before;
};

template <class Value>
__device__ inline Value inclusive_scan(Value value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const Value other = __shfl_up_sync(~0u, value, distance);
    if ((static_cast<int>(threadIdx.x) & 31) >= distance) value += other;
  }
  return value;
}

/// A thread's own run of bins, largest digit first.
template <int kThreads>
struct OwnBins {
  static constexpr int kCount = kBins / kThreads;
  int top;
  unsigned counts[kCount];

  __device__ explicit OwnBins(const unsigned* histogram)
      : top(kBins - 1 - kCount * static_cast<int>(threadIdx.x)) {
#pragma unroll
    for (int j = 0; j < kCount; j += 4) {
      const uint4 x = *reinterpret_cast<const uint4*>(histogram + top - j - 3);
      counts[j] = x.w, counts[j + 1] = x.z, counts[j + 2] = x.y, counts[j + 3] = x.x;
    }
  }
};

/// One more digit of a search for a rank. The whole block calls it, after the histogram is complete;
/// 1 <= search.rank <= the histogram's sum.
template <int kThreads, class Key>
__device__ inline void next_digit(RankSearch<Key>& search, int digit, const unsigned* histogram,
                                  SearchShared<kThreads>& shared) {
  if (search.done != 0) return;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const OwnBins<kThreads> own(histogram);
  unsigned sum = 0;
#pragma unroll
  for (int j = 0; j < OwnBins<kThreads>::kCount; ++j) sum += own.counts[j];
  unsigned before = inclusive_scan(sum) - sum;
  if (lane == 31) shared.warp_count[warp] = before + sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += shared.warp_count[w];
  if (before < search.rank && search.rank <= before + sum) {  // one thread
#pragma unroll
    for (int j = 0; j < OwnBins<kThreads>::kCount; ++j) {
      if (before < search.rank && search.rank <= before + own.counts[j]) {
        shared.digit = static_cast<unsigned>(own.top - j);
        shared.before = before;
        shared.inside = own.counts[j];
      }
      before += own.counts[j];
    }
  }
  __syncthreads();
  search.prefix = Digits<Key>(digit).with(search.prefix, shared.digit);
  search.rank -= shared.before;
  // All entries with this prefix are needed: no more digits.
  if (search.rank == shared.inside) search = RankSearch<Key>::finished(Cut<Key>::from(search.prefix));
  if (digit + 1 == Digits<Key>::kCount) search.done = 1;
}

/// The mantissa of a key's number as an integer, in units of 2^(max(exponent, 1) - 150); of infinity and NaN
/// the fraction alone.
__device__ inline std::uint32_t mantissa_of_key(std::uint32_t key) {
  const std::uint32_t bits = bits_of_key(key), exponent = bits >> 23 & 255u;
  return (bits & 0x7FFFFFu) | (exponent != 0 && exponent != 255 ? 0x800000u : 0u);
}
/// What `count` entries weigh that share sign and exponent with `key`.
__device__ inline double mass_of_bin(std::uint32_t key, unsigned count, Key64 mantissas) {
  if (count == 0) return 0.0;
  const std::uint32_t bits = bits_of_key(key);
  const int exponent = static_cast<int>(bits >> 23 & 255u);
  double mass = ldexp(static_cast<double>(mantissas), max(exponent, 1) - 150);
  if (exponent == 255) mass = mantissas == 0 ? INFINITY : NAN;
  return (bits & 0x80000000u) != 0 ? -mass : mass;
}

/// One more digit of a search for a mass. mantissas(b) is the sum of bin b's mantissas. `of_row`: with the
/// first digit, the target is still a share of the row's sum. `strictly`: the sum must be above the target.
template <int kThreads, class Mantissas>
__device__ inline void next_digit(MassSearch& search, int digit, const unsigned* histogram,
                                  const Mantissas& mantissas, bool of_row, bool strictly,
                                  SearchShared<kThreads>& shared) {
  if (search.missing != 0) return;
  constexpr int kWarps = kThreads / 32, kCount = OwnBins<kThreads>::kCount;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  const Digits<std::uint32_t> digits(digit);
  const OwnBins<kThreads> own(histogram);
  const auto mass_of = [&](int j) {
    const int bin = own.top - j;
    return own.counts[j] == 0 ? 0.0
                              : mass_of_bin(digits.with(search.prefix, static_cast<unsigned>(bin)),
                                            own.counts[j], mantissas(bin));
  };
  unsigned sum = 0;
  double mass = 0.0;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    sum += own.counts[j];
    mass += mass_of(j);
  }
  unsigned until = inclusive_scan(sum);
  double mass_until = inclusive_scan(mass);
  if (lane == 31) {
    shared.warp_count[warp] = until;
    shared.warp_mass[warp] = mass_until;
  }
  __syncthreads();
  unsigned before = until - sum;
  double mass_before = __shfl_up_sync(~0u, mass_until, 1);
  if (lane == 0) mass_before = 0.0;
  double warps_before = search.mass_before, total = search.mass_before;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) warps_before = total;
    if (w < warp) before += shared.warp_count[w];
    total += shared.warp_mass[w];
  }
  mass_before += warps_before;
  mass_until += warps_before;
  if (of_row && digit == 0) search.target *= total;
  const auto enough = [&](double x) { return strictly ? x > search.target : x >= search.target; };
  // The first thread with enough; rounding must not make it two or none.
  const unsigned votes = __ballot_sync(~0u, enough(mass_until) && sum > 0);
  if (lane == 0)
    shared.warp_first[warp] = votes == 0 ? kThreads : warp * 32 + __popc((votes & (0u - votes)) - 1);
  __syncthreads();
  int first = kThreads;
  for (int w = kWarps - 1; w >= 0; --w)
    if (shared.warp_first[w] < kThreads) first = shared.warp_first[w];
  if (first == kThreads) {
    search.missing = 1;
    return;
  }
  if (static_cast<int>(threadIdx.x) == first) {
    bool found = false;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (found || own.counts[j] == 0) continue;
      shared.digit = static_cast<unsigned>(own.top - j);
      shared.before = before;
      shared.mass_before = mass_before;
      shared.inside = own.counts[j];
      before += own.counts[j];
      mass_before += mass_of(j);
      found = enough(mass_before);
    }
  }
  __syncthreads();
  search.prefix = digits.with(search.prefix, shared.digit);
  search.before += shared.before;
  search.mass_before = shared.mass_before;
  search.inside = shared.inside;
}

/// After the last digit: how many of the entries equal to the prefix are needed.
__device__ inline unsigned equal_needed(const MassSearch& search, bool strictly) {
  const auto value = static_cast<double>(__uint_as_float(bits_of_key(search.prefix)));
  const double missing = search.target - search.mass_before;
  if (strictly ? missing < 0 : missing <= 0) return 0;
  double more = search.inside;
  if (value > 0) more = strictly ? floor(missing / value) + 1.0 : ceil(missing / value);
  return static_cast<unsigned>(fmax(0.0, fmin(more, static_cast<double>(search.inside))));
}

}  // namespace lacuna
