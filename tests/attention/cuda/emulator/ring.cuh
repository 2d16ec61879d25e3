// Stands in for attention/cuda/ring.cuh: barriers that the scheduler of the fibers knows.
#pragma once

#include "attention/cuda/mma.cuh"
#include "tests/attention/cuda/emulator/emulator.h"

namespace lacuna::ring {

inline void init(std::uint64_t* barrier, int arrivals) { emulator::signal_init(barrier, arrivals); }
inline void arrive(std::uint64_t* barrier) { emulator::signal_arrive(barrier); }
inline void arrive_after_copies(std::uint64_t* barrier) { emulator::signal_arrive(barrier); }
inline void wait(std::uint64_t* barrier, int parity) { emulator::signal_wait(barrier, parity); }

inline unsigned char* aligned(unsigned char* raw) {
  return raw + (-reinterpret_cast<std::uintptr_t>(raw) & 1023u);
}

struct Place {
  int stage = 0;
  int parity = 0;
  void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace lacuna::ring
