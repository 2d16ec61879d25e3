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

/// KV memory that stays with a process between jobs on the CPU; more goes back to the system.
inline constexpr std::size_t kKeepKvBytes = std::size_t{1} << 30;

/// One rank's part of a model, as far as memory goes.
struct RankShape {
  int layers = 0, sliding_layers = 0, tp = 1, q_heads = 0, kv_heads = 0, head_dim = 0;
  int q_heads_total = 0, kv_heads_total = 0;
  std::int64_t hidden = 0, mlp = 0, vocab = 0, window = 0;
  bool post_norms = false, local_rope = false;
};
/// Of the rank with the largest share of the vocabulary.
RankShape rank_shape(const ModelFacts& facts, int tp);
RankShape rank_shape(const ModelConfig& config, const Shard& shard);

/// Bytes of the tensors that the transformer keeps for a job: what it reserves, and what is planned.
struct ActivationBytes {
  std::int64_t x = 0, normed = 0, qkv = 0, attention = 0, gate_up = 0, activated = 0, partial = 0, logits = 0,
               ids = 0, positions = 0;
  std::int64_t total() const {
    return x + normed + qkv + attention + gate_up + activated + partial + logits + ids + positions;
  }
};
/// A prompt of `tokens`, then `rows` sequences at once.
ActivationBytes activation_bytes(const RankShape& shape, Device device, std::int64_t tokens,
                                 std::int64_t rows);
/// Positions of the RoPE tables that a job with so many gets: steps of an eighth, so that growing prompts
/// seldom make them anew.
std::int64_t rope_positions(std::int64_t positions);
/// Scratch memory of the layers' work on a GPU for a job: the largest of prefill, eviction, writing the
/// cache, choosing tokens.
std::int64_t gpu_scratch_bytes(const RankShape& shape, const JobShape& job);
/// Page tables, method states, lists and workspaces of decoding on a GPU.
std::int64_t gpu_decode_bytes(const RankShape& shape, const JobShape& job);

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
