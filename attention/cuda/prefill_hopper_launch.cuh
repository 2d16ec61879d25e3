// The body of launch_prefill_hopper, included by the files that instantiate it.
#pragma once

#include "attention/cuda/prefill_hopper_dense.cuh"
#include "attention/cuda/prefill_hopper_lists.cuh"
#include "core/cuda.h"

namespace lacuna {

/// Sets the kernel's shared memory and launches it.
template <class T, class Kernel>
void launch_hopper_kernel(Kernel kernel, const PrefillArgs& args, const HopperMaps& maps, int blocks,
                          cudaStream_t stream) {
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes));
  kernel<<<static_cast<unsigned>(blocks), kHopperThreads, T::kSharedBytes, stream>>>(args, maps);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

template <int kHeadDim>
void launch_prefill_hopper(const PrefillArgs& args, const HopperMaps& maps, int blocks, cudaStream_t stream) {
  if (args.dense) {
    using T = HopperDenseTraits<kHeadDim>;
    launch_hopper_kernel<T>(prefill_hopper_dense_kernel<T>, args, maps, blocks, stream);
  } else {
    using T = HopperListTraits<kHeadDim>;
    launch_hopper_kernel<T>(prefill_hopper_lists_kernel<T>, args, maps, blocks, stream);
  }
}

}  // namespace lacuna
