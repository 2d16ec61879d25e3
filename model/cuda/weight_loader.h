// Weights from mapped files to the device: threads convert one piece into pinned memory while others travel.
#pragma once

#include <cuda_bf16.h>

#include "core/thread_pool.h"
#include "model/cuda/pinned_ring.h"
#include "model/ops.h"

namespace lacuna {

class WeightLoader {
 public:
  WeightLoader(PinnedRing& ring, ThreadPool& pool) : ring_(ring), pool_(pool) {}

  /// Rounds to bfloat16 [rows, cols], contiguous on the device. The slice need not be aligned; it has been
  /// read when this returns, the last copies may still be under way.
  void load(const MatrixSlice& slice, __nv_bfloat16* device);
  /// float32 [cols] of a slice of one row, `offset` added.
  void load_floats(const MatrixSlice& slice, float offset, float* device);

 private:
  PinnedRing& ring_;
  ThreadPool& pool_;
};

}  // namespace lacuna
