// Turns the tile lists of several 16-row slices into one stream of key tiles, while the kernel runs: a tile
// is loaded once for all slices, and each slice has a bit mask of the keys that its own list holds.
#pragma once

#include <vector_types.h>

#include <climits>
#include <cstdint>

#include "attention/cuda/prefill_args.h"

namespace lacuna {

enum TileKind : int { kTileRange = 0, kTileColumns = 1, kTileEnd = 2 };

template <int kSlices>
struct TileEntry {
  std::uint64_t mask[kSlices];
  int start;  ///< First key of a range tile, first index into the head's columns of a column tile.
  int first;  ///< Smallest and largest key that any slice sees.
  int last;
  int kind;
};

/// A tile as the warp that walks sees it: the mask is of the lane's own slice, the rest is the same in all
/// lanes.
struct Tile {
  std::uint64_t mask;
  int start, first, last, kind;
};

/// One warp walks together; lane l < kSlices keeps the place in the list of slice l. `next` returns tiles in
/// order: ranges left to right, then columns, then kTileEnd.
template <int kSlices>
class TileWalker {
 public:
  __device__ void open(const ListArgs& args, int head, int first_row, int rows, int window) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
    const int row = first_row + lane_ * kSliceRows;
    lo_ = INT_MAX;
    it_ = end_ = nullptr;
    masks_ = nullptr;
    tile_ = 0;
    columns_ = nullptr;
    column_count_ = 0;
    if (args.column_begin != nullptr) {
      columns_ = args.columns + args.column_begin[head];
      column_count_ = static_cast<int>(args.column_begin[head + 1] - args.column_begin[head]);
    }
    if (lane_ < kSlices && row < rows) {
      const std::int64_t block = head * args.row_blocks + row / args.row_block;
      const auto* ranges = reinterpret_cast<const int2*>(args.ranges);  // KeyRange: start, width
      it_ = ranges + args.range_begin[block];
      end_ = ranges + args.range_begin[block + 1];
      if (it_ != end_) ahead_ = __ldg(it_);
      first_key_ = window > 0 ? max(0, row - window + 1) : 0;
      end_key_ = min(row + kSliceRows, rows);
      if (column_count_ > 0) masks_ = args.column_masks + block * args.mask_words;
      fetch();
    }
  }

  __device__ Tile next() {
    Tile tile;
    const int start = static_cast<int>(__reduce_min_sync(~0u, static_cast<unsigned>(lo_)));
    if (start != INT_MAX) {
      tile.mask = take(start);
      tile.start = tile.first = start;
      tile.last = start + kTileKeys - 1;
      tile.kind = kTileRange;
      return tile;
    }
    for (; tile_ * kTileKeys < column_count_; ++tile_) {
      tile.mask = masks_ != nullptr ? masks_[tile_] : 0;
      if (!__any_sync(~0u, tile.mask != 0)) continue;
      tile.start = tile_ * kTileKeys;
      tile.first = columns_[tile.start];
      tile.last = columns_[min(tile.start + kTileKeys, column_count_) - 1];
      tile.kind = kTileColumns;
      ++tile_;
      return tile;
    }
    tile.mask = 0;
    tile.start = tile.first = tile.last = 0;
    tile.kind = kTileEnd;
    return tile;
  }
  /// The same for other warps to read, once they have met this one at a barrier.
  __device__ int next(TileEntry<kSlices>* entry) {
    const Tile tile = next();
    if (lane_ < kSlices) entry->mask[lane_] = tile.mask;
    if (lane_ == 0) {
      entry->start = tile.start;
      entry->first = tile.first;
      entry->last = tile.last;
      entry->kind = tile.kind;
    }
    __syncwarp();
    return tile.kind;
  }

  __device__ const std::int32_t* columns() const { return columns_; }
  __device__ int column_count() const { return column_count_; }

 private:
  /// The next range of this lane's list, cut to what its rows may see. The range after it is already under
  /// way.
  __device__ void fetch() {
    lo_ = INT_MAX;
    while (it_ != end_) {
      const int start = ahead_.x;
      const int stop = min(start + ahead_.y, end_key_);
      if (++it_ != end_) ahead_ = __ldg(it_);
      if (start >= end_key_) {
        it_ = end_;
        return;
      }
      const int from = max(start, first_key_);
      if (from < stop) {
        lo_ = from;
        hi_ = stop;
        return;
      }
    }
  }
  /// Consumes this lane's keys in [start, start + 64).
  __device__ std::uint64_t take(int start) {
    std::uint64_t mask = 0;
    while (lo_ < start + kTileKeys) {  // lo_ >= start: start is the minimum over the lanes
      const int count = min(hi_, start + kTileKeys) - lo_;
      mask |= (~std::uint64_t{0} >> (64 - count)) << (lo_ - start);
      if (hi_ <= start + kTileKeys) {
        fetch();
      } else {
        lo_ = start + kTileKeys;
      }
    }
    return mask;
  }

  const int2* it_;
  const int2* end_;
  int2 ahead_;
  const std::uint64_t* masks_;
  const std::int32_t* columns_;
  int column_count_;
  int lane_, lo_, hi_, first_key_, end_key_, tile_;
};

}  // namespace lacuna
