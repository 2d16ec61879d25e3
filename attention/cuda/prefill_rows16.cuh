// Prefill attention over lists of 16- and 32-row blocks, mma.sync on sm_80 and later. Eight warps hold two
// slices of 16 rows each (one at head_dim 256), one more warp streams K and V through a ring in shared
// memory.
//
// The unit is a piece of 16 keys. The loader walks the union of all slices' lists and fills the ring with the
// pieces that somebody visits, four to a stage; a warp multiplies only the pieces on the lists of its own two
// slices, with both at once where both want one, and takes a stage up when it is ready for it: warps run
// apart as far as the ring is long. docs/kernels.md has the estimate behind these sizes.
#pragma once

#include <cfloat>

#include "attention/cuda/prefill_launch.h"
#include "attention/cuda/prefill_rows16_bits.cuh"
#include "attention/cuda/ring.cuh"
#include "attention/cuda/softmax.cuh"

namespace lacuna {

template <int kHeadDim_, int kWarps_, int kCluster_, bool kSoftcap_>
struct Rows16Traits {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarps = kWarps_;      ///< that multiply
  static constexpr int kCluster = kCluster_;  ///< blocks that stream the same pieces together
  static constexpr bool kSoftcap = kSoftcap_;
  static constexpr int kPerWarp = kHeadDim > 128 ? 1 : 2;
  static constexpr int kSlices = kWarps * kPerWarp;
  static constexpr int kRows = kSlices * kSliceRows;
  static constexpr int kChunks = (kHeadDim + 63) / 64;  ///< 128-byte wide pieces of a row
  static constexpr int kChunkBytes = kPieceKeys * 128;
  static constexpr int kPieceBytes = 2 * kChunks * kChunkBytes;  ///< K, then V
  static constexpr int kStagePieces = 4;  ///< two keys of a stage to each lane of the loader
  static constexpr int kStageBytes = kStagePieces * kPieceBytes;
  static constexpr int kMaxStages = 12;
  /// Steps of 16 channels whose query fragments wait in shared memory: registers do not hold all.
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kKeptSteps = kHeadDim < 128 ? kSteps : kHeadDim > 128 ? kSteps - 4 : kSteps - 2;

  struct Entry {
    alignas(8) std::uint16_t keys[kSlices][kStagePieces];  ///< which keys of a piece each slice visits
    std::uint16_t wanted[kSlices];  ///< bit i: piece i is visited, bit 8 + i: but not every cell of it
    std::int32_t key[kStagePieces * kPieceKeys];  ///< where every key stands in the prompt
    int kind;
  };
  /// Behind the stages, which begin at a multiple of 1024 bytes.
  struct Shared {
    uint4 q[kWarps][kPerWarp][kSteps > kKeptSteps ? kSteps - kKeptSteps : 1][32];
    float2 level[kWarps][kPerWarp][32];
    SliceBits<kSlices> bits[2];
    Entry entry[kMaxStages];
    std::uint64_t full[kMaxStages], empty[kMaxStages];
    std::uint64_t bits_full[2], bits_empty[2];
  };
  /// The most stages that fit; 0 when not even one does.
  static int stages(int shared_bytes) {
    const int left = shared_bytes - static_cast<int>(sizeof(Shared)) - 1024;
    return left < kStageBytes ? 0 : left / kStageBytes < kMaxStages ? left / kStageBytes : kMaxStages;
  }
  static int shared_bytes(int stages) {
    return stages * kStageBytes + static_cast<int>(sizeof(Shared)) + 1024;
  }
};

/// The rows of one block: kCluster blocks side by side make a work item, numbered kv head by kv head (all
/// multiprocessors read the same K and V), within one from the last rows to the first (longest first).
template <class T>
struct Rows16Item {
  int head, first_row;  ///< of the cluster
  int own;              ///< this block's first slice among the cluster's
  __device__ explicit Rows16Item(const PrefillArgs& args) {
    constexpr int kRows = T::kRows * T::kCluster;
    const int work = static_cast<int>(blockIdx.x) / T::kCluster;
    const int row_tiles = (args.tokens + kRows - 1) / kRows;
    const int per_pass = row_tiles * args.pass_heads;
    const int inside = work % per_pass;
    first_row = (row_tiles - 1 - inside / args.pass_heads) * kRows;
    head = work / per_pass * args.pass_heads + inside % args.pass_heads;
    own = static_cast<int>(blockIdx.x) % T::kCluster * T::kSlices;
  }
};

template <class T>
struct Rows16Ring {
  unsigned char* stage_bytes;
  typename T::Shared* shared;
  int stages;
  __device__ unsigned char* piece(int stage, int i) const {
    return stage_bytes + stage * T::kStageBytes + i * T::kPieceBytes;
  }
};
template <class T>
__device__ inline Rows16Ring<T> rows16_ring(unsigned char* raw, int stages) {
  unsigned char* base = ring::aligned(raw);
  return {base, reinterpret_cast<typename T::Shared*>(base + stages * T::kStageBytes), stages};
}

/// All lanes write a buffer of bits and all lanes read it, so each tells for itself.
inline constexpr int kBitsArrivals = 32;

/// Fills the two buffers of bits in turn. The last buffer says that there are no more.
template <class T>
__device__ void rows16_expand(const PrefillArgs& args, const Rows16Item<T>& item,
                              typename T::Shared& shared) {
  SliceWalker<T::kSlices, T::kSlices * T::kCluster> walker;
  walker.open(args.lists, item.head, item.first_row, args.tokens, args.window, item.own);
  ring::Place place;
  bool more = true;
  while (more) {
    ring::wait(&shared.bits_empty[place.stage], place.parity ^ 1);
    more = walker.expand(&shared.bits[place.stage]);
    ring::arrive(&shared.bits_full[place.stage]);
    place.advance(2);
  }
}

/// The warp that keeps the ring filled. `Copies` moves the bytes of a stage and arrives at its full barrier,
/// every lane for what it wrote of the entry.
template <class T, class Copies>
class Rows16Loader {
 public:
  __device__ Rows16Loader(const PrefillArgs& args, const Rows16Item<T>& item, const Rows16Ring<T>& ring,
                          const Copies& copies)
      : args_(args), item_(item), ring_(ring), copies_(copies) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
  }

  /// With kOwnBits this warp expands the lists itself, otherwise another one runs rows16_expand.
  template <bool kOwnBits>
  __device__ void run() {
    auto& shared = *ring_.shared;
    if constexpr (kOwnBits) {
      SliceWalker<T::kSlices, T::kSlices * T::kCluster> walker;
      walker.open(args_.lists, item_.head, item_.first_row, args_.tokens, args_.window, item_.own);
      while (walker.expand(&shared.bits[0])) {
        stream(shared.bits[0]);
        __syncwarp();
      }
    } else {
      ring::Place place;
      while (true) {
        ring::wait(&shared.bits_full[place.stage], place.parity);
        if (shared.bits[place.stage].start == INT_MAX) break;
        stream(shared.bits[place.stage]);
        ring::arrive(&shared.bits_empty[place.stage]);
        place.advance(2);
      }
    }
    if (args_.lists.column_begin != nullptr) stream_columns();
    const int none[T::kStagePieces] = {};
    post(0, kTileEnd, none, 0, 0, 0);
  }

 private:
  __device__ void stream(const SliceBits<T::kSlices>& bits) {
    std::uint64_t now = bits.pieces[0] | static_cast<std::uint64_t>(bits.pieces[1]) << 32;
    std::uint64_t later = bits.pieces[2] | static_cast<std::uint64_t>(bits.pieces[3]) << 32;
    const int start = bits.start, slice = lane_ - item_.own;
    const bool own = slice >= 0 && slice < T::kSlices;
    int base = 0;
    while (true) {
      int first[T::kStagePieces] = {};
      int count = 0;
      std::uint64_t mask = 0;
#pragma unroll
      for (int i = 0; i < T::kStagePieces; ++i) {
        if (now == 0) {
          now = later;
          later = 0;
          base = 64;
        }
        if (now == 0) continue;
        const int p = base + __ffsll(static_cast<long long>(now)) - 1;
        now &= now - 1;
        first[i] = start + p * kPieceKeys;
        if (own) mask |= static_cast<std::uint64_t>(bits.piece(slice, p)) << (16 * i);
        count = i + 1;
      }
      if (count == 0) return;
      // Lane l has keys l and 32 + l of the stage.
      const int low = (lane_ < kPieceKeys ? first[0] : first[1]) + lane_ % kPieceKeys;
      const int high = (lane_ < kPieceKeys ? first[2] : first[3]) + lane_ % kPieceKeys;
      post(count, kTileRange, first, mask, low, high);
    }
  }

  __device__ void stream_columns() {
    const auto* columns = args_.lists.columns + args_.lists.column_begin[item_.head];
    const int count =
        static_cast<int>(args_.lists.column_begin[item_.head + 1] - args_.lists.column_begin[item_.head]);
    const int row = item_.first_row + lane_ * kSliceRows;
    const bool listed = lane_ < T::kSlices * T::kCluster && row < args_.tokens;
    const auto* masks = args_.lists.column_masks;
    if (listed)
      masks += (item_.head * args_.lists.row_blocks + row / args_.lists.row_block) * args_.lists.mask_words;
    for (int tile = 0; tile * kTileKeys < count; ++tile) {
      const std::uint64_t wanted = listed ? masks[tile] : 0;
      const std::uint32_t any[2] = {__reduce_or_sync(~0u, static_cast<std::uint32_t>(wanted)),
                                    __reduce_or_sync(~0u, static_cast<std::uint32_t>(wanted >> 32))};
      int first[T::kStagePieces] = {};
      int pieces = 0;
      std::uint64_t mask = 0;
#pragma unroll
      for (int i = 0; i < kTileKeys / kPieceKeys; ++i) {
        if (((any[i / 2] >> (i % 2 * 16)) & 0xFFFFu) == 0) continue;
#pragma unroll
        for (int to = 0; to < T::kStagePieces; ++to)
          if (to == pieces) first[to] = tile * kTileKeys + i * kPieceKeys;
        mask |= ((wanted >> (16 * i)) & 0xFFFFu) << (16 * pieces);
        ++pieces;
      }
      if (pieces == 0) continue;
      const int low = (lane_ < kPieceKeys ? first[0] : first[1]) + lane_ % kPieceKeys;
      const int high = (lane_ < kPieceKeys ? first[2] : first[3]) + lane_ % kPieceKeys;
      post(pieces, kTileColumns, first, mask, low < count ? columns[low] : INT_MAX,
           high < count ? columns[high] : INT_MAX);
    }
  }

  /// Writes the entry of the next stage, and starts its copies. `keys`: what this lane's slice visits, 16
  /// bits for each piece; low, high: the two keys of the stage that this lane knows.
  __device__ void post(int count, int kind, const int (&first)[T::kStagePieces], std::uint64_t keys, int low,
                       int high) {
    auto& shared = *ring_.shared;
    const int slice = lane_ - item_.own;
    const int row = item_.first_row + lane_ * kSliceRows;
    std::uint32_t wanted = 0;
#pragma unroll
    for (int i = 0; i < T::kStagePieces; ++i) {
      const int smallest = __shfl_sync(~0u, i < 2 ? low : high, i % 2 * kPieceKeys);
      const int largest = __shfl_sync(~0u, i < 2 ? low : high, (i % 2 + 1) * kPieceKeys - 1);
      const auto mask = static_cast<std::uint32_t>(keys >> (16 * i)) & 0xFFFFu;
      const bool whole = mask == 0xFFFFu && largest <= row &&
                         (args_.window == 0 || smallest > row + kSliceRows - 1 - args_.window);
      if (mask != 0) wanted |= (whole ? 1u : 0x101u) << i;
    }
    ring::wait(&shared.empty[place_.stage], place_.parity ^ 1);
    auto& entry = shared.entry[place_.stage];
    if (slice >= 0 && slice < T::kSlices) {
      *reinterpret_cast<std::uint64_t*>(entry.keys[slice]) = keys;
      entry.wanted[slice] = static_cast<std::uint16_t>(wanted);
    }
    entry.key[lane_] = low;
    entry.key[lane_ + 32] = high;
    if (lane_ == 0) entry.kind = kind;
    __syncwarp();
    copies_.load(ring_.piece(place_.stage, 0), &shared.full[place_.stage], count, kind, first);
    place_.advance(ring_.stages);
  }

  const PrefillArgs& args_;
  const Rows16Item<T>& item_;
  const Rows16Ring<T>& ring_;
  const Copies& copies_;
  ring::Place place_;
  int lane_;
};

/// One warp and its slices.
template <class T, class Copies>
class Rows16Warp {
 public:
  __device__ Rows16Warp(const PrefillArgs& args, const Rows16Item<T>& item, const Rows16Ring<T>& ring)
      : args_(args), ring_(ring), head_(static_cast<unsigned>(item.head)) {
    lane_ = static_cast<int>(threadIdx.x) & 31;
    slice_ = (static_cast<int>(threadIdx.x) >> 5) * T::kPerWarp;
    row_ = item.first_row + (item.own + slice_) * kSliceRows;
    // Raw scores times this are exponents of two; a soft cap has applied the scale itself.
    scale_log2_ = (T::kSoftcap ? 1.0f : args.scale) * kLog2e;
    k_lane_ = lane_offset((lane_ >> 4) * 8 + (lane_ & 7), (lane_ >> 3) & 1);
    v_lane_ = lane_offset(((lane_ >> 3) & 1) * 8 + (lane_ & 7), lane_ >> 4);
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s) {
#pragma unroll
      for (float& x : o_[s]) x = 0.0f;
#pragma unroll
      for (float& x : sum_[s]) x = 0.0f;
      level(s) = float2{-FLT_MAX, -FLT_MAX};
      load_q(s);
    }
  }

  __device__ void run() {
    ring::Place place;
    while (true) {
      ring::wait(&ring_.shared->full[place.stage], place.parity);
      const auto& entry = ring_.shared->entry[place.stage];
      if (entry.kind == kTileEnd) break;
      std::uint32_t wanted;  // 16 bits per slice: pieces to visit, pieces to mask
      if constexpr (T::kPerWarp == 2) {
        wanted = *reinterpret_cast<const std::uint32_t*>(entry.wanted + slice_);
      } else {
        wanted = entry.wanted[slice_];
      }
      int piece = place.stage * T::kStageBytes;
#pragma unroll 1
      for (; (wanted & 0x000F000Fu) != 0; wanted >>= 1, piece += T::kPieceBytes) {
        const std::uint32_t which = wanted & 0x00010001u;
        if (which == 1u) {
          multiply<1>(piece, entry, wanted);
        } else if (T::kPerWarp > 1 && which == 0x00010000u) {
          multiply<T::kPerWarp>(piece, entry, wanted);
        } else if (T::kPerWarp > 1 && which != 0) {
          multiply<2 * T::kPerWarp - 1>(piece, entry, wanted);
        }
      }
      __syncwarp();
      Copies::release(&ring_.shared->empty[place.stage], lane_);
      place.advance(ring_.stages);
    }
    write();
  }

 private:
  /// Rows of 128 bytes whose 16-byte units are exclusive-ored with the row: as TMA's 128-byte swizzle.
  static __device__ int lane_offset(int key, int unit) { return key * 128 + ((unit ^ (key & 7)) * 16); }

  static __device__ void forget([[maybe_unused]] int& value) {
#ifndef LACUNA_EMULATED_GPU
    asm volatile("" : "+r"(value));
#endif
  }

  /// The fragments of 16 query rows; zeros past the prompt. What does not stay in registers is written and
  /// read by the same lane.
  __device__ void load_q(int s) {
    const auto* from = args_.q + head_ * args_.q_head_stride + (lane_ & 3) * 2;
    const int row = row_ + s * kSliceRows + lane_ / 4;
    const auto word = [&](int step, int i) {
      const int at = row + (i & 1) * 8;
      if (at >= args_.tokens) return 0u;
      return *reinterpret_cast<const std::uint32_t*>(from + at * args_.q_token_stride + step * 16 +
                                                     i / 2 * 8);
    };
#pragma unroll
    for (int step = 0; step < T::kKeptSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) q_[s][step][i] = word(step, i);
#pragma unroll
    for (int step = T::kKeptSteps; step < T::kSteps; ++step)
      parked(s, step) = uint4{word(step, 0), word(step, 1), word(step, 2), word(step, 3)};
  }
  __device__ void query(std::uint32_t (&a)[4], int s, int step) const {
    if (step < T::kKeptSteps) {
#pragma unroll
      for (int r = 0; r < 4; ++r) a[r] = q_[s][step][r];
    } else {
      const uint4 words = parked(s, step);
      a[0] = words.x, a[1] = words.y, a[2] = words.z, a[3] = words.w;
    }
  }
  __device__ float2& level(int s) const { return ring_.shared->level[slice_ / T::kPerWarp][s][lane_]; }
  __device__ uint4& parked(int s, int step) const {
    return ring_.shared->q[slice_ / T::kPerWarp][s][step - T::kKeptSteps][lane_];
  }

  /// One piece with the slices whose bit is set in kWhich.
  template <int kWhich>
  __device__ void multiply(int piece, const typename T::Entry& entry, std::uint32_t wanted) {
    constexpr bool kBoth = (kWhich & (kWhich - 1)) != 0;
    // Hides where these come from, so that the eight addresses made of them are not kept over the loop.
    int k_lane = k_lane_, v_lane = v_lane_;
    forget(k_lane);
    forget(v_lane);
    float score[T::kPerWarp][8], odd[8];
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s)
#pragma unroll
      for (float& x : score[s]) x = 0.0f;
#pragma unroll
    for (float& x : odd) x = 0.0f;
      // Two steps at a time: a slice alone adds each in a chain of its own, because a product waits for the
      // one before it in its chain.
#pragma unroll
    for (int pair = 0; pair < T::kSteps; pair += 2) {
      std::uint32_t b[2][4];  // keys 0..7 and 8..15, channels 0..7 and 8..15
#pragma unroll
      for (int i = 0; i < 2; ++i)
        load_matrix(b[i], ring_.stage_bytes + piece + ((pair + i) / 4) * T::kChunkBytes +
                              (k_lane ^ ((pair + i) % 4 * 32)));
#pragma unroll
      for (int half = 0; half < 4; half += 2)
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int s = 0; s < T::kPerWarp; ++s) {
            if ((kWhich >> s & 1) == 0) continue;
            std::uint32_t a[4];
            query(a, s, pair + i);
            mma((!kBoth && i != 0 ? odd : score[s]) + 2 * half, a, b[i][half], b[i][half + 1]);
          }
    }
    std::uint32_t p[T::kPerWarp][4];
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s) {
      if ((kWhich >> s & 1) == 0) continue;
      if constexpr (!kBoth) {
#pragma unroll
        for (int j = 0; j < 8; ++j) score[s][j] += odd[j];
      }
      if constexpr (T::kSoftcap) apply_softcap(score[s], args_.scale, args_.softcap);
      if ((wanted >> (16 * s + 8) & 1u) != 0) hide(score[s], s, entry, piece);
    }
    weigh<kWhich>(score);
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s) {
      if ((kWhich >> s & 1) == 0) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) p[s][j] = pack_bf16(score[s][2 * j], score[s][2 * j + 1]);
    }
    const unsigned char* v = ring_.stage_bytes + piece + T::kChunks * T::kChunkBytes;
#pragma unroll
    for (int j = 0; j < T::kHeadDim / 16; ++j) {
      std::uint32_t b[4];  // channels 16 j + 0..7 and 8..15, keys 0..7 and 8..15
      load_matrix_transposed(b, v + (j / 4) * T::kChunkBytes + (v_lane ^ (j % 4 * 32)));
#pragma unroll
      for (int s = 0; s < T::kPerWarp; ++s) {
        if ((kWhich >> s & 1) == 0) continue;
        mma(o_[s] + j * 8, p[s], b[0], b[1]);
        mma(o_[s] + j * 8 + 4, p[s], b[2], b[3]);
      }
    }
  }

  /// Takes away the keys that a row does not visit: list, causal edge, window.
  __device__ void hide(float (&score)[8], int s, const typename T::Entry& entry, int piece) const {
    const int i = piece / T::kPieceBytes % T::kStagePieces;
    const int column = (lane_ & 3) * 2;
    const std::uint32_t listed = entry.keys[slice_ + s][i];
    const int row = row_ + s * kSliceRows + lane_ / 4;
    const int below = args_.window > 0 ? args_.window - 1 : INT_MAX / 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int at = column + (j >> 1) * 8 + (j & 1);
      const int key = entry.key[i * kPieceKeys + at];
      const int to = (j >> 1) * 4 + (j & 1);
      const bool visited = (listed >> at & 1u) != 0;
      if (!visited || key > row || key < row - below) score[to] = -INFINITY;
      if (!visited || key > row + 8 || key < row + 8 - below) score[to + 2] = -INFINITY;
    }
  }

  /// Scores to weights 2^(score - level). A row's level is a maximum that it had: it is raised, and what was
  /// summed so far scaled down, only when a score passes it by 2^8, so most pieces need no exchange between
  /// lanes. Any level gives the same quotient in the end.
  template <int kWhich>
  __device__ void weigh(float (&score)[T::kPerWarp][8]) {
    constexpr float kHeadroom = 8.0f;
    bool above = false;
    float top[T::kPerWarp][2], levels[T::kPerWarp][2];
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s) {
      if ((kWhich >> s & 1) == 0) continue;
      const float2 now = level(s);
      levels[s][0] = now.x, levels[s][1] = now.y;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* x = score[s] + 2 * r;
        top[s][r] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[4], x[5])) * scale_log2_;
        above |= top[s][r] > levels[s][r] + kHeadroom;
      }
    }
    if (__any_sync(~0u, above)) {
#pragma unroll
      for (int s = 0; s < T::kPerWarp; ++s) {
        if ((kWhich >> s & 1) == 0) continue;
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float raised = fmaxf(levels[s][r], quad_max(top[s][r]));
          factor[r] = exp2_fast(levels[s][r] - raised);
          levels[s][r] = raised;
          sum_[s][r] *= factor[r];
        }
        level(s) = float2{levels[s][0], levels[s][1]};
#pragma unroll
        for (int j = 0; j < T::kHeadDim / 2; ++j) o_[s][j] *= factor[(j >> 1) & 1];
      }
    }
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s) {
      if ((kWhich >> s & 1) == 0) continue;
#pragma unroll
      for (int j = 0; j < 8; ++j)
        score[s][j] = exp2_fast(fmaf(score[s][j], scale_log2_, -levels[s][(j >> 1) & 1]));
#pragma unroll
      for (int r = 0; r < 2; ++r)
        sum_[s][r] += (score[s][2 * r] + score[s][2 * r + 1]) + (score[s][4 + 2 * r] + score[s][5 + 2 * r]);
    }
  }

  __device__ void write() const {
#pragma unroll
    for (int s = 0; s < T::kPerWarp; ++s)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float sum = quad_sum(sum_[s][r]);
        const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;  // a row that visited nothing gets zeros
        const int row = row_ + s * kSliceRows + lane_ / 4 + r * 8;
        if (row >= args_.tokens) continue;
        auto* to = args_.out + head_ * args_.out_head_stride + row * args_.out_token_stride + (lane_ & 3) * 2;
#pragma unroll
        for (int j = 0; j < T::kHeadDim / 8; ++j)
          *reinterpret_cast<std::uint32_t*>(to + j * 8) =
              pack_bf16(o_[s][j * 4 + 2 * r] * inverse, o_[s][j * 4 + 2 * r + 1] * inverse);
      }
  }

  const PrefillArgs& args_;
  const Rows16Ring<T>& ring_;
  unsigned head_;
  int lane_, slice_, row_, k_lane_, v_lane_;
  float scale_log2_;
  float sum_[T::kPerWarp][2];
  std::uint32_t q_[T::kPerWarp][T::kKeptSteps][4];
  float o_[T::kPerWarp][T::kHeadDim / 2];
};

}  // namespace lacuna
