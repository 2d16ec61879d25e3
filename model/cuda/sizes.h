// Device memory that CudaOps holds whatever the model: known to the memory plan.
#pragma once

#include <cstdint>

namespace lacuna {

/// Workspace of the matrix products: what NVIDIA recommends for Hopper. Bounds the split-K that cuBLASLt may
/// choose.
inline constexpr std::int64_t kGemmWorkspaceBytes = std::int64_t{32} << 20;
/// The KV cache grows by pieces of this size.
inline constexpr std::int64_t kKvPieceBytes = std::int64_t{32} << 20;

}  // namespace lacuna
