#include "tests/attention/cuda/emulator/emulator.h"

#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

#ifndef __x86_64__
#error "The emulator switches fibers in x86-64 assembly"
#endif

// Saves the callee-saved registers and the stack of one fiber and takes up another: void (void** save, void*
// load).
extern "C" void lacuna_switch_fiber(void** save, void* load);
asm(R"(
.text
.globl lacuna_switch_fiber
lacuna_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emulator {

Place place;
Observer* observer = nullptr;
int capability = 80;

namespace {

enum class State { kReady, kAtWarp, kAtSignal, kAtBlock, kDone };
struct Fiber {
  void* stack = nullptr;
  State state = State::kReady;
  const std::uint64_t* signal = nullptr;  ///< kAtSignal: which, and the parity of the phase that must be over
  int signal_parity = 0;
  int parity = 0;
  bool synchronises = false;  ///< kAtWarp: at __syncwarp, not at a collective
};

constexpr std::size_t kStackBytes = 1 << 16;
constexpr int kMaxWarps = 32;
std::vector<Fiber> fibers;
std::vector<char> stacks;
void* scheduler_stack;
int running = -1;
unsigned first_block;
int block_threads;               ///< of one block; the fibers are those of all blocks of a cluster
std::size_t block_shared_bytes;  ///< from one block's shared memory to the next one's
const std::function<void()>* kernel_;
alignas(64) unsigned char slots[kMaxWarps][2][32][64];
unsigned present[kMaxWarps];  ///< lanes that took part in a warp's last barrier
std::vector<unsigned char> shared_memory;

[[noreturn]] void fail(const char* why, int warp) {
  std::fprintf(stderr, "emulator: block %u %u %u, warp %d: %s\n", place.block.x, place.block.y, place.block.z,
               warp, why);
  std::abort();
}
void wait(State state) {
  Fiber& fiber = fibers[static_cast<std::size_t>(running)];
  fiber.state = state;
  lacuna_switch_fiber(&fiber.stack, scheduler_stack);
}
void enter() {
  (*kernel_)();
  fibers[static_cast<std::size_t>(running)].state = State::kDone;
  void* unused;
  lacuna_switch_fiber(&unused, scheduler_stack);
  std::abort();
}
void prepare(int i) {
  Fiber& fiber = fibers[static_cast<std::size_t>(i)];
  fiber = Fiber{};
  char* top = stacks.data() + static_cast<std::size_t>(i + 1) * kStackBytes;
  top -= reinterpret_cast<std::uintptr_t>(top) % 16;
  auto** at = reinterpret_cast<void**>(top);
  *--at = nullptr;  // a function begins 8 bytes off a multiple of 16
  *--at = reinterpret_cast<void*>(&enter);
  for (int r = 0; r < 6; ++r) *--at = nullptr;
  fiber.stack = at;
}
/// What a barrier of signal_init holds.
struct Signal {
  std::int16_t arrivals, missing;
  std::int32_t phase;
};
static_assert(sizeof(Signal) == sizeof(std::uint64_t));
Signal read_signal(const std::uint64_t* from) {
  Signal signal;
  std::memcpy(&signal, from, sizeof signal);
  return signal;
}
std::unordered_map<const void*, long> owed_bytes;
bool is_over(const std::uint64_t* signal, int parity) { return (read_signal(signal).phase & 1) != parity; }

/// Runs a warp until every lane waits for other warps or has returned. False when no lane could run at all.
bool run_warp(int warp, int threads) {
  const int begin = warp * 32, end = std::min(threads, begin + 32);
  bool ever = false;
  while (true) {
    bool ran = false;
    for (int i = begin; i < end; ++i) {
      Fiber& fiber = fibers[static_cast<std::size_t>(i)];
      if (fiber.state == State::kAtSignal && is_over(fiber.signal, fiber.signal_parity)) {
        fiber.state = State::kReady;
        if (observer != nullptr) observer->waited(i, fiber.signal, fiber.signal_parity);
      }
      if (fiber.state != State::kReady) continue;
      running = i;
      place.thread = {static_cast<unsigned>(i % block_threads), 0, 0};
      place.block.x = first_block + static_cast<unsigned>(i / block_threads);
      lacuna_switch_fiber(&scheduler_stack, fiber.stack);
      ran = ever = true;
    }
    if (ran) continue;
    int at_warp = 0, at_block = 0, at_signal = 0;
    for (int i = begin; i < end; ++i) {
      at_signal += fibers[static_cast<std::size_t>(i)].state == State::kAtSignal ? 1 : 0;
      at_warp += fibers[static_cast<std::size_t>(i)].state == State::kAtWarp ? 1 : 0;
      at_block += fibers[static_cast<std::size_t>(i)].state == State::kAtBlock ? 1 : 0;
    }
    if (at_warp == 0 || at_signal > 0) return ever;
    if (at_block > 0) fail("some lanes wait for their warp, others for the block", warp);
    present[warp] = 0;
    unsigned synchronised = 0;
    for (int i = begin; i < end; ++i) {
      Fiber& fiber = fibers[static_cast<std::size_t>(i)];
      if (fiber.state != State::kAtWarp) continue;
      fiber.state = State::kReady;
      present[warp] |= 1u << (i - begin);
      if (fiber.synchronises) synchronised |= 1u << (i - begin);
      fiber.synchronises = false;
    }
    if (observer != nullptr && synchronised != 0) observer->met(begin, synchronised);
  }
}
void run_block(int threads) {
  static const bool reverse = std::getenv("LACUNA_EMULATOR_REVERSE") != nullptr;  // another order of warps
  const int warps = (threads + 31) / 32;
  for (int i = 0; i < threads; ++i) prepare(i);
  while (true) {
    bool ran = false;
    for (int w = 0; w < warps; ++w)
      if (run_warp(reverse ? warps - 1 - w : w, threads)) ran = true;
    bool at_signal = false;
    for (const Fiber& fiber : fibers) at_signal = at_signal || fiber.state == State::kAtSignal;
    if (at_signal) {
      if (!ran) fail("every warp waits for a signal that nobody gives", 0);
      continue;
    }
    bool waiting = false;
    for (Fiber& fiber : fibers) {
      if (fiber.state != State::kAtBlock) continue;
      fiber.state = State::kReady;
      waiting = true;
    }
    if (!waiting) return;
    if (observer != nullptr) observer->all_met();
  }
}

}  // namespace

int thread() { return running; }
int lane() { return running & 31; }
unsigned alive() { return present[running / 32]; }
void* slot(int of_lane) {
  return slots[running / 32][fibers[static_cast<std::size_t>(running)].parity][of_lane];
}
void next_collective() { fibers[static_cast<std::size_t>(running)].parity ^= 1; }
void warp_barrier() { wait(State::kAtWarp); }
void warp_sync() {
  fibers[static_cast<std::size_t>(running)].synchronises = true;
  wait(State::kAtWarp);
}
void block_barrier() { wait(State::kAtBlock); }
void signal_init(std::uint64_t* to, int arrivals) {
  const Signal signal{static_cast<std::int16_t>(arrivals), static_cast<std::int16_t>(arrivals), 0};
  owed_bytes.erase(to);
  if (observer != nullptr) observer->set_up(to);
  std::memcpy(to, &signal, sizeof signal);
}
void signal_arrive(std::uint64_t* at) {
  Signal signal = read_signal(at);
  if (signal.missing <= 0) fail("arrives at a barrier that was not set up", running / 32);
  if (observer != nullptr) observer->arrived(running, at, signal.missing == 1, signal.phase & 1);
  if (--signal.missing == 0) {
    signal.missing = signal.arrivals;
    signal.phase ^= 1;
  }
  std::memcpy(at, &signal, sizeof signal);
}
void signal_bytes(std::uint64_t* at, int bytes) {
  if (bytes < 0 && observer != nullptr)  // every copy tells of itself
    observer->arrived(running, at, false, 0);
  long& owed = owed_bytes[at];
  const long before = owed;
  owed += bytes;
  if (before == 0 && owed != 0) {  // one arrival more, which the last copy makes
    Signal signal = read_signal(at);
    ++signal.missing;
    std::memcpy(at, &signal, sizeof signal);
  } else if (before != 0 && owed == 0) {
    signal_arrive(at);
  }
}
void signal_wait(std::uint64_t* at, int parity) {
  Fiber& fiber = fibers[static_cast<std::size_t>(running)];
  fiber.signal = at;
  fiber.signal_parity = parity;
  wait(State::kAtSignal);
}
unsigned char* shared() {
  const auto address = reinterpret_cast<std::uintptr_t>(shared_memory.data());
  // As on a GPU, no better than a multiple of 128.
  return shared_memory.data() + (1024 - address % 1024) % 1024 + 128 +
         static_cast<std::size_t>(running / block_threads) * block_shared_bytes;
}
void* in_block(void* at, int rank) {
  return static_cast<unsigned char*>(at) +
         (rank - running / block_threads) * static_cast<std::ptrdiff_t>(block_shared_bytes);
}

void check_alignment(const void* address, int bytes, const char* what) {
  if (reinterpret_cast<std::uintptr_t>(address) % static_cast<unsigned>(bytes) == 0) return;
  std::fprintf(stderr, "%s %p: ", what, address);
  fail("misaligned address", running / 32);
}

void launch(dim3 blocks, dim3 threads, std::size_t shared_bytes, std::function<void()> kernel, int cluster) {
  if (capture != nullptr) {
    kept_for_graph([=] { launch(blocks, threads, shared_bytes, kernel, cluster); });
    return;
  }
  const auto count = static_cast<std::size_t>(threads.x) * static_cast<std::size_t>(cluster);
  block_threads = static_cast<int>(threads.x);
  block_shared_bytes = (shared_bytes + 1023) / 1024 * 1024;
  if (cluster > 1 && (threads.x % 32 != 0 || blocks.x % static_cast<unsigned>(cluster) != 0))
    fail("clusters of this shape are not emulated", 0);
  if (threads.y != 1 || threads.z != 1 || count > kMaxWarps * 32)
    fail("blocks of this shape are not emulated", 0);
  fibers.assign(count, Fiber{});
  if (stacks.size() < count * kStackBytes) stacks.resize(count * kStackBytes);
  kernel_ = &kernel;
  place.threads = threads;
  place.blocks = blocks;
  for (place.block.z = 0; place.block.z < blocks.z; ++place.block.z)
    for (place.block.y = 0; place.block.y < blocks.y; ++place.block.y)
      for (first_block = 0; first_block < blocks.x; first_block += static_cast<unsigned>(cluster)) {
        shared_memory.assign(block_shared_bytes * static_cast<std::size_t>(cluster) + 2176, 0xFF);
        if (observer != nullptr)
          observer->begin(static_cast<int>(count), shared_memory.data(), shared_memory.size());
        run_block(static_cast<int>(count));
      }
  running = -1;
}

}  // namespace emulator

// The part of the CUDA runtime that the kernels' host code and the tests call. Device memory is host memory,
// filled with 0xFF. The emulated device is an sm_80 with 132 multiprocessors.
extern "C" {
cudaError_t cudaMalloc(void** to, size_t bytes) {
  *to = std::aligned_alloc(1024, (bytes + 1023) / 1024 * 1024);
  std::memset(*to, 0xFF, bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (emulator::kept_for_graph([=] { std::memcpy(to, from, bytes); })) return cudaSuccess;
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t) {
  for (size_t row = 0; row < height; ++row)
    std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                width);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return std::memset(to, value, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (emulator::kept_for_graph([=] { std::memset(to, value, bytes); })) return cudaSuccess;
  return std::memset(to, value, bytes), cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return emulator::capture != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
// Everything happens at once; an event is any place in memory.
#define LACUNA_FAKE __attribute__((weak))
LACUNA_FAKE cudaError_t cudaEventCreate(cudaEvent_t* event) {
  static char place;
  return *event = reinterpret_cast<cudaEvent_t>(&place), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0.001f, cudaSuccess;
}
#undef LACUNA_FAKE
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? 132
           : attribute == cudaDevAttrComputeCapabilityMajor ? emulator::capability / 10
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
           : emulator::capability == 90                     ? 232448
                                                            : 166912;
  return cudaSuccess;
}
}
