// How much memory the Buffers of this process hold.
#pragma once

#include <cstddef>

#include "core/tensor.h"

namespace lacuna {

/// Bytes of all buffers of a kind, as they were asked for.
std::size_t buffer_bytes(Buffer::Kind kind);
/// The most since forget_buffer_peak().
std::size_t buffer_peak(Buffer::Kind kind);
void forget_buffer_peak(Buffer::Kind kind);
/// From now on a buffer that would bring buffer_bytes(kind) above `bytes` throws kResource, as on a full
/// device: how tests make one rank of a team run out of memory. 0: no limit.
void limit_buffers(Buffer::Kind kind, std::size_t bytes);

}  // namespace lacuna
