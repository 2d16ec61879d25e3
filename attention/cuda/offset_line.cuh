// Kept offsets of a head as bits on a line, and where ranges that begin on it end.
//
// For the rows [m, m + 64), offset o asks for the 64 keys from m - o on. With R row blocks, o lies at
// position 64 R - o of a line that is the same for all of them: a row block sees the line from position 64 R
// - m on, as its keys from 0 on. A range that begins at a position ends where the rule of
// methods/slash_lists.h says, whoever looks, and the next begins at the first offset behind it.
//
// The released rule looks at windows of 64 positions, one after another from the range's beginning, and ends
// the range with the first empty one. A window reaches over two neighbouring chunks of 64, and where the
// lowest offset of the second lies at or below the highest of the first, none between them is empty: whole
// runs of such chunks are passed over at once.
#pragma once

#include <climits>
#include <cstdint>

#include "attention/cuda/attention_cuda.h"

namespace lacuna {

inline constexpr int kLineChunk = 64;  ///< positions; rows of a block; keys that an offset asks for

struct alignas(16) LineChunk {
  unsigned long long offsets;  ///< one bit each
  int gap;                     ///< the first chunk from this one on that is not joined to the one before it
  int next;                    ///< the first chunk from this one on with an offset; INT_MAX: none
};

__device__ inline int lowest_bit(unsigned long long bits) {
  return __ffsll(static_cast<long long>(bits)) - 1;
}
__device__ inline int highest_bit(unsigned long long bits) {
  return 63 - __clzll(static_cast<long long>(bits));
}

/// Chunks of a line: those of the row blocks, offset 0, and one behind it.
inline int line_chunks(int row_blocks) { return row_blocks + 2; }

struct OffsetLine {
  const LineChunk* chunks;  ///< [line_chunks(row_blocks)]; offset 0 is the first of chunk row_blocks
  int row_blocks;
  bool exact;

  __device__ int zero() const { return row_blocks * kLineChunk; }  ///< where offset 0 is

  /// The first offset at position x or behind it, x <= zero(); -1: none.
  __device__ int from(int x) const {
    const unsigned long long rest = chunks[x / kLineChunk].offsets >> x % kLineChunk;
    if (rest != 0) return x + lowest_bit(rest);
    const int next = chunks[x / kLineChunk + 1].next;
    return next == INT_MAX ? -1 : next * kLineChunk + lowest_bit(chunks[next].offsets);
  }
  /// Where the range after one that ends at `end` begins; -1: nowhere. An offset at `end` would be part of
  /// it.
  __device__ int behind(int end) const { return end < zero() ? from(end + 1) : -1; }

  /// The end of the range that begins at x, as if an offset were there.
  __device__ int end_of(int x) const {
    const int bit = x % kLineChunk;
    for (int chunk = x / kLineChunk + 1;; ++chunk) {
      chunk = chunks[chunk].gap;
      const unsigned long long here = chunks[chunk].offsets;
      unsigned long long before = chunks[chunk - 1].offsets;
      if (exact) {
        if (chunk - 1 == x / kLineChunk) before |= 1ull << bit;
        if (here == 0 || before >> lowest_bit(here) == 0) return chunk * kLineChunk + highest_bit(before);
      } else if ((before >> bit >> 1 | here << (kLineChunk - 1 - bit)) == 0) {  // the window up to `bit`
        return chunk * kLineChunk + bit;
      }
    }
  }

  /// Whether every range that reaches the first of two neighbouring chunks goes on into the second.
  __device__ bool joined(unsigned long long before, unsigned long long here) const {
    return here != 0 && (exact ? before : before | 1) >> lowest_bit(here) != 0;
  }
  /// Whether a range begins at the offset at x wherever earlier ones have begun.
  __device__ bool always_begins(int x) const {
    const int chunk = x / kLineChunk, bit = x % kLineChunk;
    const auto at = [&](int c) { return c < 0 ? 0 : chunks[c].offsets; };
    if ((at(chunk) & ((1ull << bit) - 1)) != 0) return false;
    if (exact) return at(chunk - 1) >> bit == 0;
    return at(chunk - 1) == 0 && at(chunk - 2) >> bit >> 1 == 0;
  }
};

}  // namespace lacuna
