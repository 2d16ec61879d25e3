// Tiles of bfloat16 rows in shared memory that cp.async writes and ldmatrix reads without bank conflicts.
#pragma once

namespace lacuna {

/// The element at which 16-byte piece `piece` of a row begins. Rows are not padded: with a pitch that is an
/// odd multiple of 16 bytes cp.async fetches the sectors of every odd row twice.
template <int kRowElements>
__device__ inline int swizzled(int row, int piece) {
  constexpr int kPieces = kRowElements / 8;
  static_assert(kPieces % 4 == 0);
  return row * kRowElements + (kPieces % 8 == 0 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3)) * 8;
}

}  // namespace lacuna
