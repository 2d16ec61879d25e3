// From host memory to the device without waiting: a few pinned buffers in turn, each free again when its copy
// has passed.
#pragma once

#include <array>
#include <cstddef>

#include "core/cuda.h"
#include "core/tensor.h"

namespace lacuna {

class PinnedRing {
 public:
  explicit PinnedRing(cudaStream_t stream) : stream_(stream) {}

  /// Memory for `bytes`, to be filled and then sent. Waits for the copy that used it last, if that still
  /// runs. Throws kResource when the system grants no more pinned memory.
  std::byte* next(std::size_t bytes);
  /// Copies the first `bytes` of what next() gave to the device, asynchronously.
  void send(void* device, std::size_t bytes);
  /// Copies any amount of ordinary memory, which may go away at once.
  void copy(const void* host, void* device, std::size_t bytes);

  /// Pieces of long copies: one is filled while others travel.
  static constexpr std::size_t kPieceBytes = std::size_t{8} << 20;

 private:
  static constexpr std::size_t kSlots = 4;
  struct Slot {
    Buffer memory;
    CudaEvent sent;
  };
  cudaStream_t stream_;
  std::array<Slot, kSlots> slots_;
  std::size_t turn_ = 0;
};

}  // namespace lacuna
