// Chains of kernels whose starts overlap: programmatic dependent launch, also inside captured graphs. A
// kernel that is launched by launch_dependent() may start while the one before it in the stream is still
// running, so that its launch and its prologue cost no time. In exchange it keeps the order itself:
//
//  - Every thread of a kernel that is launched so calls wait_for_previous() once, before it reads anything
//    that an earlier kernel of the stream writes, before it writes anything that an earlier kernel reads or
//    writes, and before any early return. "Earlier" means every kernel before it in the stream, not only the
//    last one: wait_for_previous() returns when the previous kernel has finished, which has waited for its
//    own previous one, and so on. One kernel of the chain that does not wait breaks the order for all later
//    ones.
//  - Before wait_for_previous() it may compute addresses, set up shared memory, and read what nothing in the
//    stream writes while the chain runs: weights, its parameters.
//  - What an earlier kernel writes is not read through __ldg or a const __restrict__ pointer: the compiler
//  may
//    move such a load before the wait.
//  - let_next_start() in every block (or its return) lets the next kernel's blocks take free places on the
//    multiprocessors. It orders nothing, so it may come first in the kernel; where the next kernel's blocks
//    would take cache or bandwidth by reading weights ahead, it may come later.
//
// A kernel launched by <<<>>> before or after such a kernel waits for everything before it as ever, and may
// call let_next_start(). Both functions do nothing on architectures before sm_90, where launch_dependent() is
// an ordinary launch.
#pragma once

#include "core/cuda.h"

#if !defined(LACUNA_EMULATED_GPU)
#include <cuda_runtime.h>
#endif

namespace lacuna {

/// Returns when all kernels before this one in the stream have finished and their writes can be seen.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The next kernel of the stream may start when every block of this one has said so or has ended.
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// kernel<<<grid, block, shared_bytes, stream>>>(args...), which may start before its predecessor has
/// finished: see the rules above. Throws what cudaGetLastError() finds.
template <class... Params, class... Args>
void launch_dependent(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                      cudaStream_t stream, const Args&... args) {
#if defined(LACUNA_EMULATED_GPU)
  (void)stream;
  emulator::launch(grid, block, shared_bytes, [=] { kernel(args...); });
#else
  // The code that runs decides, not the device alone: code for sm_80 that the driver compiled for a newer
  // device does not wait.
  cudaFuncAttributes code{};
  LACUNA_CUDA_TRY(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(kernel)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = code.ptxVersion >= 90 ? 1 : 0;
  LACUNA_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
#endif
}

}  // namespace lacuna
