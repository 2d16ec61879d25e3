// What a communicator that works on device memory offers besides Communicator. CudaOps looks for it; without
// it, sums go through host memory.
#pragma once

#include <cstddef>

#include "core/cuda.h"

namespace lacuna {

class DeviceCommunicator {
 public:
  virtual ~DeviceCommunicator() = default;
  /// Sums `count` bfloat16 in place over all ranks, asynchronously on `stream`. The same team gives the same
  /// bits on every run.
  virtual void all_reduce_bf16(void* device, std::size_t count, cudaStream_t stream) = 0;
  /// True when all_reduce_bf16 may be captured in a CUDA graph.
  virtual bool capturable() const = 0;
  /// To be called after a graph that holds such sums was launched on `stream`, so that a peer that is gone is
  /// noticed there too.
  virtual void graph_launched(cudaStream_t stream) = 0;
};

}  // namespace lacuna
