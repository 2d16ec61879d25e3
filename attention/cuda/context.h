// What every GPU implementation of a strategy is given.
#pragma once

#include "core/cuda.h"

namespace lacuna {

/// Everything is launched on `stream`; memory that must live no longer than the layer's attention comes from
/// `scratch`. The owner clears scratch before each call into a selector or an evictor.
struct CudaContext {
  cudaStream_t stream = nullptr;
  DeviceScratch* scratch = nullptr;
};

}  // namespace lacuna
