// Runs CUDA kernels on the CPU, one block at a time, every thread as a fiber: the logic of the kernels can
// then be tested where there is no GPU. Blocks and warps run one after another, so races do not show;
// arithmetic, indexing, barriers that not all threads reach and reads of unwritten shared memory (filled with
// 0xFF) do. Included first in every translated .cu.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

/// Tells headers of device code that nvcc does not compile them.
#define LACUNA_EMULATED_GPU 1

#undef __global__
#undef __device__
#undef __launch_bounds__
#undef __grid_constant__
#undef __forceinline__
#undef __align__
#undef __cluster_dims__
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __forceinline__ inline
#define __align__(n) alignas(n)

namespace emulator {

struct Place {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern Place place;  ///< of the fiber that runs

/// Told of all by which threads can know what other threads have done, and of shared variables; races.cpp has
/// one. Threads are numbered over the blocks of a cluster.
struct Observer {
  virtual ~Observer() = default;
  virtual void begin(int threads, const unsigned char* shared,
                     std::size_t bytes) = 0;                        ///< a block or cluster
  virtual void variable(const void* begin, std::size_t bytes) = 0;  ///< __shared__, not dynamic
  virtual void met(int first, unsigned lanes) = 0;                  ///< at __syncwarp
  virtual void all_met() = 0;
  virtual void set_up(const void* signal) = 0;
  virtual void arrived(int thread, const void* signal, bool last, int parity) = 0;
  virtual void waited(int thread, const void* signal, int parity) = 0;
  virtual void atomic(const void* at, std::size_t bytes, const void* code) = 0;
};
extern Observer* observer;  ///< null: nobody looks

int thread();         ///< that runs; negative outside of kernels
void warp_barrier();  ///< of a collective, which orders no accesses to memory
void warp_sync();
void block_barrier();
inline void shared_variable(const void* begin, std::size_t bytes) {
  if (observer != nullptr) observer->variable(begin, bytes);
}
int lane();
unsigned alive();         ///< lanes of this warp that had not returned at its last barrier
void* slot(int lane);     ///< where a lane of this warp leaves its operand of a collective, 64 bytes
void next_collective();   ///< slots alternate, so one barrier per collective is enough
unsigned char* shared();  ///< dynamic shared memory of the block
/// A barrier that counts arrivals and has phases; whoever waits for one lets the other warps run.
void signal_init(std::uint64_t* signal, int arrivals);
void signal_arrive(std::uint64_t* signal);
/// Bytes that copies still owe (positive) or have brought (negative); no phase is over while they differ.
void signal_bytes(std::uint64_t* signal, int bytes);
void signal_wait(std::uint64_t* signal, int parity);
void* in_block(void* shared,
               int rank);  ///< the same place in the shared memory of another block of the cluster
/// `cluster` blocks side by side in x run at a time; a barrier of the block is then one of the cluster.
void launch(dim3 blocks, dim3 threads, std::size_t shared_bytes, std::function<void()> kernel,
            int cluster = 1);

/// Ends the program when the address is no multiple of `bytes`: as a fault on a GPU.
void check_alignment(const void* address, int bytes, const char* what);

/// Compute capability of the device, times ten.
extern int capability;

/// While a graph is captured nothing runs: launches, copies and fills are kept for its replays.
inline std::vector<std::function<void()>>* capture = nullptr;
inline bool kept_for_graph(std::function<void()> work) {
  if (capture == nullptr) return false;
  capture->push_back(std::move(work));
  return true;
}

/// Leaves `value` for the warp, waits for all lanes, and returns what `combine` makes of the slots.
template <class T, class Combine>
auto collective(T value, Combine combine) {
  static_assert(sizeof(T) <= 64);
  std::memcpy(slot(lane()), &value, sizeof(T));
  warp_barrier();
  auto result = combine();
  next_collective();
  return result;
}
template <class T>
T value_of(int from) {
  T value;
  std::memcpy(&value, slot(from), sizeof(T));
  return value;
}
template <class T>
T exchange(T value, int from, bool inside) {
  return collective(value, [&] { return inside ? value_of<T>(from) : value; });
}

}  // namespace emulator

/// As nvcc offers it for kernels; nothing limits shared memory here.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

#define threadIdx (emulator::place.thread)
#define blockIdx (emulator::place.block)
#define blockDim (emulator::place.threads)
#define gridDim (emulator::place.blocks)

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() {
  emulator::warp_sync();
  emulator::next_collective();
}
inline void __threadfence() {}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, emulator::lane() ^ mask, true);
}
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::exchange(value, from & 31, true);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int by) {
  return emulator::exchange(value, emulator::lane() - by, emulator::lane() >= by);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by) {
  return emulator::exchange(value, emulator::lane() + by, emulator::lane() + by < 32);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  return emulator::collective(static_cast<int>(vote), [] {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i)
      if ((emulator::alive() >> i & 1u) != 0 && emulator::value_of<int>(i) != 0) votes |= 1u << i;
    return votes;
  });
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return emulator::collective(value, [] {
    unsigned least = ~0u;
    for (int i = 0; i < 32; ++i) least = std::min(least, emulator::value_of<unsigned>(i));
    return least;
  });
}
inline unsigned __reduce_or_sync(unsigned, unsigned value) {
  return emulator::collective(value, [] {
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= emulator::value_of<unsigned>(i);
    return all;
  });
}
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float __fdividef(float a, float b) { return a / b; }
/// Atomics are known to the observer as such, not as reads and writes; not inlined, so that it knows from
/// where.
#define LACUNA_EMULATED_ATOMIC __attribute__((no_sanitize("thread"), noinline))
template <class T>
LACUNA_EMULATED_ATOMIC T atomicAdd(T* to, T value) {
  if (emulator::observer != nullptr) emulator::observer->atomic(to, sizeof(T), __builtin_return_address(0));
  const T old = *to;
  *to += value;
  return old;
}

template <class T>
LACUNA_EMULATED_ATOMIC T atomicOr(T* to, T value) {
  if (emulator::observer != nullptr) emulator::observer->atomic(to, sizeof(T), __builtin_return_address(0));
  const T old = *to;
  *to |= value;
  return old;
}

using std::isfinite;
using std::isnan;
#define LACUNA_EMULATE_MINMAX(T)                   \
  inline T min(T a, T b) { return a < b ? a : b; } \
  inline T max(T a, T b) { return a > b ? a : b; }
LACUNA_EMULATE_MINMAX(int)
LACUNA_EMULATE_MINMAX(unsigned)
LACUNA_EMULATE_MINMAX(long)
LACUNA_EMULATE_MINMAX(long long)
LACUNA_EMULATE_MINMAX(unsigned long)
inline long min(int a, long b) { return min(static_cast<long>(a), b); }
inline long max(int a, long b) { return max(static_cast<long>(a), b); }

/// Two floats as bfloat16 in one word, the first one low.
inline unsigned emulator_pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  unsigned word;
  std::memcpy(&word, &pair, sizeof word);
  return word;
}
