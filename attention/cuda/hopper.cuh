// Hopper's own instructions, each behind one small function: mbarrier, TMA, wgmma descriptors, register
// reallocation.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/cuda/wgmma.cuh"

namespace lacuna::hopper {

__device__ inline std::uint32_t smem_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- mbarrier
// ------------------------------------------------------------------------------------------------------

__device__ inline void barrier_init(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals));
}
/// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void barrier_arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}
__device__ inline void barrier_arrive_expect(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)),
               "r"(bytes)
               : "memory");
}
/// Waits until the phase of the given parity has completed.
__device__ inline void barrier_wait(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(smem_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- TMA
// -----------------------------------------------------------------------------------------------------------

__device__ inline void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// Copies the box of (channel, token, head) at the given corner; outside the tensor zeros are written.
__device__ inline void copy_box(void* to, const CUtensorMap* map, std::uint64_t* barrier, int channel,
                                int token, int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(smem_address(to)),
      "l"(map), "r"(smem_address(barrier)), "r"(channel), "r"(token), "r"(head)
      : "memory");
}

// --- Clusters
// -----------------------------------------------------------------------------------------------------------

__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
/// Arrives at the barrier at this place in the shared memory of block `rank` of the cluster.
__device__ inline void arrive_at(std::uint64_t* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}\n" ::"r"(smem_address(barrier)),
      "r"(rank)
      : "memory");
}
/// Copies the box to the same place in every block whose bit is set, and tells each one's own barrier.
__device__ inline void copy_box_to(std::uint16_t blocks, void* to, const CUtensorMap* map,
                                   std::uint64_t* barrier, int channel, int token, int head) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(smem_address(to)),
      "l"(map), "r"(smem_address(barrier)), "r"(channel), "r"(token), "r"(head), "h"(blocks)
      : "memory");
}

// --- wgmma
// ---------------------------------------------------------------------------------------------------------

/// Operand in shared memory with 128-byte swizzle: rows of 64 bf16 in groups of 8 (1024 bytes, `stride`
/// apart); `lead` is the distance between 64-channel blocks of an MN-major operand, unused when K-major.
__device__ inline std::uint64_t operand(const void* pointer, int lead_bytes, int stride_bytes) {
  std::uint64_t descriptor = (smem_address(pointer) & 0x3FFFF) >> 4;
  descriptor |= static_cast<std::uint64_t>((lead_bytes & 0x3FFFF) >> 4) << 16;
  descriptor |= static_cast<std::uint64_t>((stride_bytes & 0x3FFFF) >> 4) << 32;
  descriptor |= std::uint64_t{1} << 62;
  return descriptor;
}
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving accesses of these registers across.
template <int kCount>
__device__ inline void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// --- Warpgroups
// ----------------------------------------------------------------------------------------------------

template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
__device__ inline void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace lacuna::hopper
