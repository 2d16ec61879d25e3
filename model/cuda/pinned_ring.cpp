#include "model/cuda/pinned_ring.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace lacuna {

std::byte* PinnedRing::next(std::size_t bytes) {
  constexpr std::size_t kLeast = std::size_t{64} << 10;
  Slot& slot = slots_[turn_];
  slot.sent.synchronize();
  if (slot.memory.bytes() < bytes) {
    slot.memory.reset();
    slot.memory = Buffer(std::bit_ceil(std::max(bytes, kLeast)), Buffer::Kind::kPinned);
  }
  return slot.memory.as<std::byte>();
}

void PinnedRing::send(void* device, std::size_t bytes) {
  Slot& slot = slots_[turn_];
  if (bytes == 0) return;
  LACUNA_CUDA(cudaMemcpyAsync(device, slot.memory.data(), bytes, cudaMemcpyHostToDevice, stream_));
  slot.sent.record(stream_);
  turn_ = (turn_ + 1) % kSlots;
}

void PinnedRing::copy(const void* host, void* device, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kPieceBytes) {
    const std::size_t piece = std::min(kPieceBytes, bytes - at);
    std::memcpy(next(piece), static_cast<const std::byte*>(host) + at, piece);
    send(static_cast<std::byte*>(device) + at, piece);
  }
}

}  // namespace lacuna
