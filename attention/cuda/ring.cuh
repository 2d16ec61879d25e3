// mbarriers in shared memory, sm_80 and later: a producer and its consumers hand the stages of a ring to each
// other without stopping the whole block.
#pragma once

#include <cstdint>

#include "attention/cuda/mma.cuh"

namespace lacuna::ring {

__device__ inline void init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
__device__ inline void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives once all earlier cp.async of this thread have written.
__device__ inline void arrive_after_copies(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// Waits until the phase of the given parity has completed.
__device__ inline void wait(std::uint64_t* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
#define LACUNA_RING_WAIT "mbarrier.try_wait.parity.shared::cta.b64"
#else
#define LACUNA_RING_WAIT "mbarrier.test_wait.parity.shared::cta.b64"
#endif
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n" LACUNA_RING_WAIT
      " done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#undef LACUNA_RING_WAIT
}

/// The first multiple of 1024 from `raw` on. Made by an offset, so that the compiler still knows that it is
/// shared memory.
__device__ inline unsigned char* aligned(unsigned char* raw) { return raw + (-shared_address(raw) & 1023u); }

/// Place in a ring of stages.
struct Place {
  int stage = 0;
  int parity = 0;
  __device__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace lacuna::ring
