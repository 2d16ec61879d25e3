// Stands in for attention/cuda/hopper.cuh: copies and products happen at once, a warp of a warpgroup after
// the other. Nothing shows that waits for them are missing.
#pragma once

#include <cuda.h>

#include "attention/cuda/mma.cuh"
#include "tests/attention/cuda/emulator/emulator.h"

namespace lacuna::hopper {

/// What the stand-in for cuTensorMapEncodeTiled leaves in a CUtensorMap.
struct EmulatedMap {
  const unsigned char* data;
  std::int64_t size[3], stride[2];  ///< channels, tokens, heads; bytes
  int box_tokens;
};
static_assert(sizeof(EmulatedMap) <= sizeof(CUtensorMap));

inline std::uint64_t named[16];

inline void barrier_init(std::uint64_t* barrier, int arrivals) { emulator::signal_init(barrier, arrivals); }
inline void fence_barrier_init() {
  for (auto& barrier : named) barrier = 0;
}
inline void barrier_arrive(std::uint64_t* barrier) { emulator::signal_arrive(barrier); }
inline void barrier_arrive_expect(std::uint64_t* barrier, int bytes) {
  emulator::signal_bytes(barrier, bytes);
  emulator::signal_arrive(barrier);
}
inline void barrier_wait(std::uint64_t* barrier, int parity) { emulator::signal_wait(barrier, parity); }

inline void prefetch_map(const CUtensorMap*) {}
/// Under the 128-byte swizzle the 16-byte units of a row of 128 bytes are exclusive-ored with the row.
inline std::uintptr_t swizzled(std::uintptr_t at) { return at ^ (at >> 7 & 7) << 4; }
inline void copy_box(void* to, const CUtensorMap* map, std::uint64_t* barrier, int channel, int token,
                     int head) {
  EmulatedMap from;
  std::memcpy(&from, map, sizeof from);
  emulator::check_alignment(to, 1024, "copy of a box to");
  for (int row = 0; row < from.box_tokens; ++row)
    for (int unit = 0; unit < 8; ++unit) {
      auto* at = reinterpret_cast<std::uint16_t*>(
          swizzled(reinterpret_cast<std::uintptr_t>(to) + row * 128u + unit * 16u));
      const std::int64_t t = token + row, c = channel + unit * 8;
      const bool inside = t >= 0 && t < from.size[1] && c < from.size[0] && head < from.size[2];
      if (inside) {
        std::memcpy(at, from.data + head * from.stride[1] + t * from.stride[0] + c * 2, 16);
      } else {
        std::memset(at, 0, 16);
      }
    }
  emulator::signal_bytes(barrier, -from.box_tokens * 128);
}
inline void copy_box_to(std::uint16_t blocks, void* to, const CUtensorMap* map, std::uint64_t* barrier,
                        int channel, int token, int head) {
  for (int block = 0; block < 16; ++block)
    if ((blocks >> block & 1) != 0)
      copy_box(emulator::in_block(to, block), map,
               static_cast<std::uint64_t*>(emulator::in_block(barrier, block)), channel, token, head);
}
inline void cluster_sync() { emulator::block_barrier(); }
inline void arrive_at(std::uint64_t* barrier, int rank) {
  emulator::signal_arrive(static_cast<std::uint64_t*>(emulator::in_block(barrier, rank)));
}

/// The address in units of 16 bytes, and above it the distance between blocks of 64 channels in units of 128.
inline std::uint64_t operand(const void* pointer, int lead_bytes, int) {
  return reinterpret_cast<std::uintptr_t>(pointer) >> 4 | static_cast<std::uint64_t>(lead_bytes / 128) << 44;
}
/// The tensor cores' own reads are not watched.
__attribute__((no_sanitize("thread"))) inline float element(std::uint64_t operand, int row, int column) {
  const std::uintptr_t at = (operand & ((std::uint64_t{1} << 44) - 1)) << 4;
  const std::uint16_t bits = *reinterpret_cast<const std::uint16_t*>(
      swizzled(at + static_cast<unsigned>(row) * 128u + static_cast<unsigned>(column) * 2u));
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

/// d += a b, a given as what(row, k) of this warp's 16 rows, b as what(k, column).
template <int kN, class A, class B>
void emulate_product(float* d, bool accumulate, A a, B b) {
  const int lane = emulator::lane();
  for (int i = 0; i < kN / 2; ++i) {
    const int row = lane / 4 + (i >> 1 & 1) * 8, column = i / 4 * 8 + lane % 4 * 2 + (i & 1);
    double sum = accumulate ? d[i] : 0.0;
    for (int k = 0; k < 16; ++k) sum += static_cast<double>(a(row, k)) * b(k, column);
    d[i] = static_cast<float>(sum);
  }
}
struct Fragments {
  std::uint32_t a[4];
};
inline void all_fragments(Fragments (&all)[32], const std::uint32_t (&a)[4]) {
  emulator::collective(Fragments{{a[0], a[1], a[2], a[3]}}, [&] {
    for (int i = 0; i < 32; ++i) all[i] = emulator::value_of<Fragments>(i);
    return 0;
  });
}
inline float of_fragments(const Fragments (&all)[32], int row, int k) {
  const std::uint32_t word = all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
  return __uint_as_float(k % 2 != 0 ? word & 0xFFFF0000u : word << 16);
}
template <int kN>
struct WgmmaSs {
  static void run(float* d, std::uint64_t a, std::uint64_t b, int accumulate) {
    const int first = static_cast<int>(threadIdx.x) / 32 % 4 * 16;
    emulate_product<kN>(
        d, accumulate != 0, [&](int row, int k) { return element(a, first + row, k); },
        [&](int k, int column) { return element(b, column, k); });
  }
};
template <int kN>
struct WgmmaQk {
  static void run(float* d, const std::uint32_t (&a)[4], std::uint64_t b, int accumulate) {
    Fragments all[32];
    all_fragments(all, a);
    emulate_product<kN>(
        d, accumulate != 0, [&](int row, int k) { return of_fragments(all, row, k); },
        [&](int k, int column) { return element(b, column, k); });
  }
};
template <int kN>
struct WgmmaRs {
  static void run(float* d, const std::uint32_t (&a)[4], std::uint64_t b) {
    Fragments all[32];
    all_fragments(all, a);
    const std::uint64_t lead = (b >> 44) * 8;  // in units of 16 bytes
    emulate_product<kN>(
        d, true, [&](int row, int k) { return of_fragments(all, row, k); },
        [&](int k, int column) { return element(b + column / 64 * lead, k, column % 64); });
  }
};
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <int kPending>
void wgmma_wait() {}
template <int kCount>
void pin(float (&)[kCount]) {}

template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_registers() {}
inline void named_arrive(int id, int threads) {
  if (named[id] == 0) emulator::signal_init(&named[id], threads);
  emulator::signal_arrive(&named[id]);
}
inline void named_sync(int id, int threads) {
  if (named[id] == 0) emulator::signal_init(&named[id], threads);
  const int parity = static_cast<int>(named[id] >> 32 & 1);
  emulator::signal_arrive(&named[id]);
  emulator::signal_wait(&named[id], parity);
}

}  // namespace lacuna::hopper
