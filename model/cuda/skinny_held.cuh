// Products of so few rows that a block holds all of x in shared memory (skinny.cu): x is read and normed once
// per block, and nothing but weights is under way afterwards. Read by every warp and step from the
// second-level cache, the same few lines of x would be wanted by all multiprocessors at the same time.
//
// Wants attention/cuda/mma.cuh before it, which the emulator replaces.
//
// The grid is as many blocks as the device holds at once. A block takes unit after unit, and its ring of
// weights runs on from one to the next.
#pragma once

#include "core/cuda.h"
#include "core/cuda_launch.cuh"
#include "model/cuda/skinny.h"
#include "model/cuda/skinny_ends.cuh"
#include "model/cuda/vector.cuh"

namespace lacuna::skinny {

constexpr int kHeldRows = 8;
constexpr int kUnitPieces = 2 * kOctet * kSlabPieces;  ///< of 16 bytes: a warp's weights of one step

/// Shared memory: ring [depth][kWarps][kUnitPieces], x [rows][pitch], sums [2][kWarps][rows][16], squares
/// [kWarps][kHeldRows].
struct HeldLayout {
  int slabs = 0;
  int pitch = 0;  ///< pieces: half a line more than a row, so that two rows are in different banks
  int sums = 0;   ///< floats of one warp

  __host__ __device__ explicit HeldLayout(const SkinnyProduct& p)
      : slabs((p.inputs + kSlab - 1) / kSlab),
        pitch(slabs * kSlabPieces + kSlabPieces / 2),
        sums(p.rows * 2 * kOctet) {}
  __host__ __device__ int bytes(int rows, int depth) const {
    return (depth * kWarps * kUnitPieces + rows * pitch) * 16 + (2 * sums + kHeldRows) * kWarps * 4;
  }
};

/// What a block of at most kHeldRows rows does; `raw` is its shared memory.
template <int kDepth, bool kNorm, class End>
__device__ inline void held_product(const SkinnyProduct& args, const End& end, unsigned char* raw) {
  const HeldLayout layout(args);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int group = lane / 4, quarter = lane % 4;
  auto* ring = reinterpret_cast<uint4*>(raw) + warp * kUnitPieces;
  auto* held = reinterpret_cast<uint4*>(raw) + kDepth * kWarps * kUnitPieces;
  auto* partial = reinterpret_cast<float*>(held + args.rows * layout.pitch);
  auto* row_squares = partial + 2 * kWarps * layout.sums;
  const int pieces = args.inputs / kVector;
  const int steps = (layout.slabs - warp + kWarps - 1) / kWarps;  // the same in a warp; may be 0
  const auto units = static_cast<int>((args.outputs + 2 * kOctet - 1) / (2 * kOctet));
  const int begin = static_cast<int>(blockIdx.x), stride = static_cast<int>(gridDim.x);

  // A lane copies one piece of every fourth output, eight lanes a line. Of odd outputs the two halves of a
  // line change places, so that the lanes that read 16 bytes of two outputs each find all banks. Outputs that
  // do not exist repeat the first; their results are not stored.
  const auto* weights = reinterpret_cast<const uint4*>(args.w);
  const int row = lane / 8, piece = lane % 8;
  uint4* const copied = ring + row * kSlabPieces + (piece ^ (row % 2 * 4));
  unsigned from[4];
  const auto locate = [&](int unit) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t output = end.octet(args, unit, i / 2) + i % 2 * 4 + row;
      from[i] = static_cast<unsigned>((End::kWhole || output < args.outputs ? output : 0) * pieces);
    }
  };
  int next_unit = begin, next_step = 0, next_stage = 0;
  locate(next_unit);
  const auto fetch = [&] {
    if (next_unit < units) {
      const int at = (warp + next_step * kWarps) * kSlabPieces + piece;
      const bool inside = at < pieces;
      uint4* to = copied + next_stage * kWarps * kUnitPieces;
#pragma unroll
      for (int i = 0; i < 4; ++i) copy_async_16(to + i * 32, weights + from[i] + (inside ? at : 0), inside);
      if (++next_step == steps) {
        next_step = 0;
        next_unit += stride;
        if (next_unit < units) locate(next_unit);
      }
      next_stage = next_stage + 1 == kDepth ? 0 : next_stage + 1;
    }
    copy_async_commit();
  };
  if (steps > 0)
    for (int i = 0; i < kDepth - 1; ++i) fetch();

  // The warp's pieces of a row are numbered 0 to own - 1; the first 64 pieces of the norm come now.
  const int own = steps * kSlabPieces;
  const auto place = [&](int i) { return (warp + i / kSlabPieces * kWarps) * kSlabPieces + i % kSlabPieces; };
  float norm[2][kVector] = {};
  const auto load_norm = [&](int base) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int i = base + k * 32 + lane;
      if (i < own && place(i) < pieces) load_floats(args.norm + place(i) * kVector, norm[k]);
    }
  };
  if (kNorm) load_norm(0);
  let_next_start();
  wait_for_previous();

  // A warp's own part of x. Blocks begin at different places, for the sake of the second-level cache.
  const auto* x = reinterpret_cast<const uint4*>(args.x);
  const int turned = steps > 0 ? begin % steps * kSlabPieces : 0;
  for (int r = 0; r < args.rows; ++r) {
    for (int i = lane; i < own; i += 32) {
      const int at = place(i + turned < own ? i + turned : i + turned - own);
      copy_async_16(held + r * layout.pitch + at, x + r * pieces + (at < pieces ? at : 0), at < pieces);
    }
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  if (kNorm) {
    float squares = 0.0f;
    if (group < args.rows) {
      const uint4* values_at = held + group * layout.pitch + quarter;
#pragma unroll 4
      for (int i = 0; i < 2 * steps; ++i) {  // pieces beyond the row are 0
        float values[kVector];
        unpack(values_at[place(i * 4)], values);
#pragma unroll
        for (int e = 0; e < kVector; ++e) squares += values[e] * values[e];
      }
    }
    squares = sum_of_lanes(squares, 4);
    if (quarter == 0) row_squares[warp * kHeldRows + group] = squares;
    __syncwarp();
    for (int base = 0; base < own; base += 64) {
      if (base > 0) load_norm(base);
      for (int r = 0; r < args.rows; ++r) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int i = base + k * 32 + lane;
          if (i >= own || place(i) >= pieces) continue;
          uint4* to = held + r * layout.pitch + place(i);
          float values[kVector];
          unpack(*to, values);
#pragma unroll
          for (int e = 0; e < kVector; ++e) values[e] *= norm[k][e];
          *to = pack(values);
        }
      }
    }
    __syncwarp();
  }

  const uint4* b_from = held + (group < args.rows ? group : 0) * layout.pitch + warp * kSlabPieces + quarter;
  const uint4* a_from = ring + group * kSlabPieces;
  const int halves[2] = {quarter ^ (group % 2 * 4), (quarter + 4) ^ (group % 2 * 4)};
  int stage = 0, turn = 0;
  for (int unit = begin; unit < units; unit += stride, ++turn) {
    float sums[4] = {};
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<kDepth - 2>();
      __syncwarp();  // other lanes copied, and all have used the stage that is filled next
      const uint4* a = a_from + stage * kWarps * kUnitPieces;
      const uint4* b = b_from + step * kWarps * kSlabPieces;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 upper = a[halves[h]], lower = a[kUnitPieces / 2 + halves[h]], row_values = b[4 * h];
        const std::uint32_t low[4] = {upper.x, lower.x, upper.y, lower.y};
        const std::uint32_t high[4] = {upper.z, lower.z, upper.w, lower.w};
        mma(sums, low, row_values.x, row_values.y);
        mma(sums, high, row_values.z, row_values.w);
      }
      fetch();
      stage = stage + 1 == kDepth ? 0 : stage + 1;
    }
    // Two sets of sums: who finishes this unit has done so before the barrier of the next.
    float* unit_sums = partial + turn % 2 * kWarps * layout.sums;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = quarter * 2 + e % 2;
      if (r < args.rows) unit_sums[warp * layout.sums + r * 2 * kOctet + e / 2 * kOctet + group] = sums[e];
    }
    __syncthreads();
    const int i = (thread + kThreads - turn % kWarps * 32) % kThreads;  // one row: every warp in its turn
    if (i < args.rows * kOctet) {
      const int r = i / kOctet, output = i % kOctet;
      const float* sum = unit_sums + r * 2 * kOctet + output;
      float both[2] = {sum[0], sum[kOctet]};
#pragma unroll
      for (int v = 1; v < kWarps; ++v) {
        both[0] += sum[v * layout.sums];
        both[1] += sum[v * layout.sums + kOctet];
      }
      if (kNorm) {
        float squares = row_squares[r];
#pragma unroll
        for (int v = 1; v < kWarps; ++v) squares += row_squares[v * kHeldRows + r];
        const float scale = row_factor(args, squares);
        both[0] *= scale;
        both[1] *= scale;
      }
      end.finish(args, r, unit, output, both);
    }
  }
  copy_async_wait<0>();
}

}  // namespace lacuna::skinny
