// Long rows as the blocks of top_k.cu see them, and what those blocks tell each other.
#pragma once

#include <cstdint>

#include "attention/cuda/radix.cuh"
#include "attention/cuda/select_cuda.h"

namespace lacuna {

inline constexpr int kTopKThreads = 256;
inline constexpr int kTopKWords = 32;                         ///< of 32 entries, that a warp looks at
inline constexpr int kTopKChunk = kTopKThreads * kTopKWords;  ///< entries of a block

/// What a row's blocks tell each other. All zero at first.
template <class Key>
struct alignas(16) TopKRowSpace {
  unsigned counts[Digits<Key>::kCount][kBins];
  RankSearch<Key> steps[Digits<Key>::kCount + 1];  ///< before each digit, and at the end
};
struct alignas(16) TopKMassSpace {
  unsigned counts[Digits<std::uint32_t>::kCount][kBins];
  Key64 mantissas[Digits<std::uint32_t>::kCount][kBins];
  MassSearch steps[Digits<std::uint32_t>::kCount];
};

/// Choices of one kind: float rows with everything that TopKParams knows, or rows of doubles.
template <class Key>
struct TopKCalls {
  TopKParams params[2];
  int rows_of_first;
  int chunks;                 ///< of the longest row
  TopKRowSpace<Key>* space;   ///< [rows]
  TopKMassSpace* mass_space;  ///< [rows], or null: no row is chosen by mass
  uint2* chunk_counts;        ///< [rows, chunks]: above the threshold, and equal to it
};

/// A row as one block sees it.
template <class Key>
struct TopKRow {
  const TopKParams& params;
  const Key* scores;
  int index;          ///< among the rows of its call
  int n, begin, end;  ///< entries, and those of this block
  bool skip;
  TopKRowSpace<Key>& space;
  TopKMassSpace* mass_space;
  uint2* chunk_counts;

  __device__ explicit TopKRow(const TopKCalls<Key>& calls)
      : params(calls.params[static_cast<int>(blockIdx.y) < calls.rows_of_first ? 0 : 1]),
        space(calls.space[blockIdx.y]),
        mass_space(calls.mass_space == nullptr ? nullptr : calls.mass_space + blockIdx.y),
        chunk_counts(calls.chunk_counts + static_cast<std::int64_t>(blockIdx.y) * calls.chunks) {
    index = static_cast<int>(blockIdx.y) -
            (static_cast<int>(blockIdx.y) < calls.rows_of_first ? 0 : calls.rows_of_first);
    scores = reinterpret_cast<const Key*>(params.scores) + index * params.score_stride;
    n = params.row_n != nullptr ? min(params.row_n[index], params.n) : params.n;
    begin = static_cast<int>(blockIdx.x) * kTopKChunk;
    end = min(begin + kTopKChunk, n);
    // The first block works for empty rows as well.
    skip = (begin >= n && blockIdx.x > 0) || (params.only_rows != nullptr && params.only_rows[index] == 0);
  }

  __device__ bool leader() const { return blockIdx.x == 0 && threadIdx.x == 0; }
  __device__ bool forced(int i) const { return i < params.first || i >= n - params.last; }
  __device__ int forced_count() const { return min(n, params.first + params.last); }
  /// body(key, i, word) for a warp's neighbouring entries, lane by lane; all lanes call it, i < end or not.
  template <class Body>
  __device__ void for_entries(const Body& body) const {
    const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
    const int first = begin + warp * kTopKWords * 32 + lane;
#pragma unroll 8
    for (int word = 0; word < kTopKWords; ++word) {
      const int i = first + word * 32;
      body(i < end ? order_key(scores[i]) : Key{0}, i, word);
    }
  }
  /// How many entries the count asks for before digits are looked at, `least` of them for a mass.
  __device__ RankSearch<Key> start(int least) const {
    using Search = RankSearch<Key>;
    const int k = min(n, max(max(params.k, least), params.first + params.last)) - forced_count();
    if (k >= n - forced_count()) return Search::finished(Cut<Key>::all());
    if (k <= 0) return Search::finished(Cut<Key>::none());
    return {0, static_cast<unsigned>(k), 0};
  }
};

}  // namespace lacuna
