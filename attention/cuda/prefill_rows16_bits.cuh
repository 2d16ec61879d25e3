// Tile lists as bits: which of 2048 keys each of up to 32 slices of 16 rows visits. One warp expands them
// while the kernel runs, 32 ranges at a time, so that the order of the lists in memory is read once and in
// long pieces.
#pragma once

#include <vector_types.h>

#include <climits>
#include <cstdint>

#include "attention/cuda/prefill_args.h"

namespace lacuna {

/// Keys that are expanded at a time, and their pieces.
inline constexpr int kBitKeys = 2048;
inline constexpr int kBitPieces = kBitKeys / kPieceKeys;

/// What one expansion leaves for the loader.
template <int kSlices>
struct SliceBits {
  static constexpr int kWords = kBitKeys / 32 + 1;  ///< odd, so that slices lie in different banks
  std::uint32_t keys[kSlices][kWords];              ///< bit k of a row: key start + k is visited
  std::uint32_t pieces[kBitPieces / 32];  ///< bit p: some slice, of other blocks of the cluster too,
                                          ///< visits piece p
  int start;                              ///< INT_MAX: no more

  __device__ std::uint32_t piece(int slice, int p) const {
    return (keys[slice][p / 2] >> (p % 2 * 16)) & 0xFFFFu;
  }
};

/// One warp walks together; lane l < kAll keeps the place in the list of slice l. kSlices of them, from slice
/// `own` on, are this block's.
template <int kSlices, int kAll>
class SliceWalker {
 public:
  static_assert(kAll <= 32);

  __device__ void open(const ListArgs& args, int head, int first_row, int rows, int window, int own) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
    first_row_ = first_row, rows_ = rows, window_ = window, own_ = own;
    const int row = first_row + lane_ * kSliceRows;
    ranges_ = nullptr;
    left_ = 0;
    next_ = INT_MAX;
    if (lane_ < kAll && row < rows) {
      const std::int64_t block = head * args.row_blocks + row / args.row_block;
      const std::int64_t begin = args.range_begin[block];
      ranges_ = reinterpret_cast<const int2*>(args.ranges) + begin;  // KeyRange: start, width
      left_ = static_cast<int>(args.range_begin[block + 1] - begin);
      if (left_ > 0) next_ = first_key(lane_);
    }
  }

  /// Expands the next 2048 keys that any slice may visit. False, and start INT_MAX, when there are none.
  __device__ bool expand(SliceBits<kSlices>* to) {
    const int least = static_cast<int>(__reduce_min_sync(~0u, static_cast<unsigned>(next_)));
    if (least == INT_MAX) {
      if (lane_ == 0) to->start = INT_MAX;
      __syncwarp();
      return false;
    }
    const int low = least / kBitKeys * kBitKeys;
    std::uint32_t* words = &to->keys[0][0];
    for (int i = lane_; i < kSlices * SliceBits<kSlices>::kWords; i += 32) words[i] = 0;
    __syncwarp();
    std::uint32_t pieces[kBitPieces / 32] = {};
#pragma unroll 1
    for (int base = 0; base < kAll; base += kAtOnce) {
      int2 found[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) found[i] = fetch(base + i, low);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) take(base + i, found[i], low, to, pieces);
    }
#pragma unroll
    for (int w = 0; w < kBitPieces / 32; ++w) {
      const std::uint32_t all = __reduce_or_sync(~0u, pieces[w]);
      if (lane_ == 0) to->pieces[w] = all;
    }
    if (lane_ == 0) to->start = low;
    __syncwarp();
    return true;
  }

 private:
  static constexpr int kAtOnce = 4;  ///< slices whose ranges are under way together

  /// The first key that a window leaves to some row of a slice.
  __device__ int first_key(int slice) const {
    return window_ > 0 ? max(0, first_row_ + slice * kSliceRows - window_ + 1) : 0;
  }
  /// This lane's of the 32 ranges that follow in a slice's list; start INT_MAX where there is none.
  __device__ int2 fetch(int slice, int low) const {
    const auto* ranges =
        reinterpret_cast<const int2*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(ranges_), slice));
    const int left = __shfl_sync(~0u, left_, slice);
    const int next = __shfl_sync(~0u, next_, slice);
    int2 none;
    none.x = INT_MAX, none.y = 0;
    return next < low + kBitKeys && lane_ < left ? __ldg(ranges + lane_) : none;
  }

  /// Sets the bits of one slice.
  __device__ void take(int slice, int2 range, int low, SliceBits<kSlices>* to,
                       std::uint32_t (&pieces)[kBitPieces / 32]) {
    const int high = low + kBitKeys;
    const int end_key = min(first_row_ + slice * kSliceRows + kSliceRows, rows_);
    if (__shfl_sync(~0u, next_, slice) >= high) return;
    while (true) {
      const bool valid = range.x != INT_MAX;
      const int stop = valid ? range.x + range.y : INT_MAX;
      const int from = max(range.x, max(first_key(slice), low)) - low;
      const int to_key = min(min(stop, end_key), high) - low;
      if (from < to_key) mark(slice - own_, from, to_key, to, pieces);
      // Sorted and disjoint: what lies before `high` as a whole is a prefix.
      const int consumed = __popc(__ballot_sync(~0u, stop <= high));
      if (lane_ == slice) ranges_ += consumed, left_ -= consumed;
      if (consumed < 32) {
        const int start = __shfl_sync(~0u, range.x, consumed);
        if (lane_ == slice) next_ = start >= end_key ? INT_MAX : max(start, high);
        return;
      }
      range = fetch(slice, low);
    }
  }

  /// Keys [from, to_key) of the expansion.
  __device__ void mark(int slice, int from, int to_key, SliceBits<kSlices>* to,
                       std::uint32_t (&pieces)[kBitPieces / 32]) const {
    if (slice >= 0 && slice < kSlices) {
      const int last = to_key - 1;
      for (int w = from / 32; w <= last / 32; ++w)
        atomicOr(&to->keys[slice][w], span(from - w * 32, last - w * 32));
    }
    const int first_piece = from / kPieceKeys, last_piece = (to_key - 1) / kPieceKeys;
#pragma unroll
    for (int w = 0; w < kBitPieces / 32; ++w)
      if (first_piece < (w + 1) * 32 && last_piece >= w * 32)
        pieces[w] |= span(first_piece - w * 32, last_piece - w * 32);
  }
  /// Bits first..last of a word, cut to it.
  static __device__ std::uint32_t span(int first, int last) {
    first = max(first, 0);
    last = min(last, 31);
    return (~0u >> (31 - (last - first))) << first;
  }

  const int2* ranges_;  ///< what is left of a list
  int left_, next_;
  int lane_, first_row_, rows_, window_, own_;
};

}  // namespace lacuna
