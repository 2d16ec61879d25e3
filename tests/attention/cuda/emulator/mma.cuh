// Stands in for attention/cuda/mma.cuh: the same functions in plain arithmetic.
#pragma once

#include "tests/attention/cuda/emulator/emulator.h"

namespace lacuna {

inline void copy_async_16(void* to, const void* from, bool valid = true) {
  emulator::check_alignment(to, 16, "cp.async to");
  if (valid) {
    emulator::check_alignment(from, 16, "cp.async from");
    std::memcpy(to, from, 16);
  } else {
    std::memset(to, 0, 16);
  }
}
inline void copy_async_commit() {}
template <int kPending>
void copy_async_wait() {}

/// Lane l's word of each of four 8x8 matrices of 16-bit elements.
inline void emulate_load(std::uint32_t (&r)[4], const void* row, bool transposed) {
  const std::uint16_t* rows[32];
  emulator::collective(row, [&] {
    for (int i = 0; i < 32; ++i)
      rows[i] = static_cast<const std::uint16_t*>(emulator::value_of<const void*>(i));
    emulator::check_alignment(row, 16, "ldmatrix from");
    return 0;
  });
  const int a = emulator::lane() / 4, b = emulator::lane() % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    const std::uint32_t low = transposed ? rows[m * 8 + b][a] : rows[m * 8 + a][b];
    const std::uint32_t high = transposed ? rows[m * 8 + b + 1][a] : rows[m * 8 + a][b + 1];
    r[m] = low | high << 16;
  }
}
inline void load_matrix(std::uint32_t (&r)[4], const void* row) { emulate_load(r, row, false); }
inline void load_matrix_transposed(std::uint32_t (&r)[4], const void* row) { emulate_load(r, row, true); }

/// d[16 x 8] += a[16 x 16] b[16 x 8], in the fragment layout of mma.sync.m16n8k16.
inline void mma(float* d, const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  struct Words {
    std::uint32_t a[4], b[2];
  };
  Words all[32];
  emulator::collective(Words{{a[0], a[1], a[2], a[3]}, {b0, b1}}, [&] {
    for (int i = 0; i < 32; ++i) all[i] = emulator::value_of<Words>(i);
    return 0;
  });
  const auto element = [](std::uint32_t word, int k) {
    return static_cast<double>(__uint_as_float(k % 2 != 0 ? word & 0xFFFF0000u : word << 16));
  };
  for (int e = 0; e < 4; ++e) {
    const int row = emulator::lane() / 4 + e / 2 * 8, column = emulator::lane() % 4 * 2 + e % 2;
    double sum = d[e];
    for (int k = 0; k < 16; ++k)
      sum += element(all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k) *
             element(all[column * 4 + k % 8 / 2].b[k / 8], k);
    d[e] = static_cast<float>(sum);
  }
}

}  // namespace lacuna
