// What a model needs: its facts from config.json, FLOPs of its linear layers, bytes of its cache and
// workspace.
#pragma once

#include "model/config.h"
#include "model/engine.h"
#include "model/tensor_parallel.h"

namespace lacuna {

/// Tokens that pass through norms, projections and MLP at once: bounds their memory, whatever the prompt's
/// length.
inline constexpr std::int64_t token_chunk(Device device) { return device == Device::kCuda ? 8192 : 1024; }
/// Floats of packed activations that CpuOps holds at most.
inline constexpr std::int64_t kPackedFloats = std::int64_t{8} << 20;

/// Facts and fingerprints of a folder whose config is `config` (RoPE override included). Hashes of files that
/// are not there stay empty.
ModelFacts make_facts(const ModelConfig& config, const std::string& folder);

/// FLOPs of the matrix products outside attention in a prefill of `tokens`, all ranks together: 2 per weight
/// and token, the last layer's MLP and the head for the last token only.
double linear_flops(const ModelFacts& facts, std::int64_t tokens);

/// Bytes of whole pages that one rank holds for an uncut prompt; sliding-window layers hold their window.
std::int64_t dense_kv_bytes(const ModelConfig& config, const Shard& shard, std::int64_t tokens,
                            std::int64_t page_bytes);

}  // namespace lacuna
