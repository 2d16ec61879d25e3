// A model's tensors on one rank: names, shapes and shares of every family in one place.
#pragma once

#include <optional>
#include <vector>

#include "model/config.h"
#include "model/ops.h"
#include "model/safetensors.h"
#include "model/tensor_parallel.h"

namespace lacuna {

struct LayerWeights {
  Tensor input_norm, mlp_norm;                ///< float32 [hidden]; Gemma's 1 is already added.
  Tensor post_attention_norm, post_mlp_norm;  ///< Gemma 3 only.
  Tensor q_norm, k_norm;                      ///< float32 [head_dim]; Qwen3, Gemma 3.
  LinearWeight qkv;                           ///< [(q_heads + 2 kv_heads) * head_dim, hidden]
  LinearWeight o;                             ///< [hidden, q_heads * head_dim]; bias on rank 0 only
  LinearWeight gate_up;                       ///< [2 * mlp, hidden]
  LinearWeight down;                          ///< [hidden, mlp]; bias on rank 0 only
};

struct ModelWeights {
  EmbeddingWeight embedding;
  std::vector<LayerWeights> layers;
  Tensor final_norm;
  LinearWeight head;  ///< [vocab share, hidden]
  std::int64_t bytes = 0;
};

/// Checks that the folder holds exactly the tensors that the config asks for, then reads this rank's shares.
ModelWeights load_weights(const Weights& files, const ModelConfig& config, const Shard& shard, Ops& ops);

}  // namespace lacuna
