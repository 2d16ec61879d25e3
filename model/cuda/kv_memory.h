// Device memory for the KV cache: a large range of addresses, with memory behind as much of it as is used.
#pragma once

#include <memory>

#include "core/cuda.h"
#include "model/ops.h"

namespace lacuna {

/// Reserves addresses for `bytes` on the current device. Throws kResource when they are not granted.
/// discard() waits for the device, because memory goes away at once.
std::unique_ptr<KvMemory> make_cuda_kv_memory(std::size_t bytes);

}  // namespace lacuna
