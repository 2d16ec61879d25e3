// The body of launch_prefill_hopper, included by the files that instantiate it.
#pragma once

#include "attention/cuda/prefill_hopper.cuh"
#include "core/cuda.h"

namespace lacuna {

template <class T>
void launch_prefill_hopper_variant(const PrefillArgs& args, const HopperMaps& maps, int blocks,
                                   cudaStream_t stream) {
  const auto kernel = prefill_hopper_kernel<T>;
  LACUNA_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes));
  kernel<<<blocks, T::kThreads, T::kSharedBytes, stream>>>(args, maps);
  LACUNA_CUDA_TRY(cudaGetLastError());
}

template <int kHeadDim>
void launch_prefill_hopper(const PrefillArgs& args, const HopperMaps& maps, int blocks, cudaStream_t stream) {
  if (args.dense) {
    launch_prefill_hopper_variant<HopperTraits<kHeadDim, false>>(args, maps, blocks, stream);
  } else {
    launch_prefill_hopper_variant<HopperTraits<kHeadDim, true>>(args, maps, blocks, stream);
  }
}

}  // namespace lacuna
