// config.json of a Hugging Face folder: everything that changes results is read, or refused by name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "model/ops.h"
#include "model/rope.h"

namespace lacuna {

enum class Family : std::uint8_t { kQwen2, kLlama, kQwen3, kGemma3, kMistral };
/// "qwen2", "llama", "qwen3", "gemma3", "mistral"
std::string_view name_of(Family family);

struct ModelConfig {
  Family family = Family::kLlama;
  int layers = 0, hidden = 0, mlp = 0, vocab = 0;
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t max_positions = 0;
  float rms_eps = 1e-6f;
  Activation activation = Activation::kSilu;
  bool tied_embeddings = false;
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool qk_norm = false;        ///< RMS norm per head before RoPE (Qwen3, Gemma 3)
  bool norm_plus_one = false;  ///< norms multiply by 1 + w (Gemma)
  bool post_norms = false;     ///< norms after attention and MLP, before the residual (Gemma)
  float embedding_scale = 1.0f;
  float attention_scale = 1.0f;
  float attention_softcap = 0, logit_softcap = 0;  ///< 0: none
  int window = 0;                                  ///< of the sliding-window layers
  std::vector<bool> sliding;                       ///< [layers]
  RopeConfig rope, local_rope;                     ///< of full-attention and of sliding-window layers
  DType dtype = DType::kBF16;                      ///< what config.json says the weights are
  bool multimodal = false;                         ///< the text model sits inside a vision-language model
  std::vector<int> stop_ids;                       ///< eos_token_id of config.json

  const RopeConfig& rope_of(int layer) const {
    return sliding[static_cast<std::size_t>(layer)] ? local_rope : rope;
  }
  int sliding_layers() const;
  /// Weights as stored, tied embeddings once.
  std::int64_t parameters() const;
};

/// Parses the text of a config.json; `where` starts error messages (kUsage).
ModelConfig parse_config(std::string_view json, const std::string& where);
ModelConfig read_config(const std::string& folder);

/// Replaces the RoPE of the full-attention layers by an object in config.json's syntax
/// (EngineOptions::rope_override).
void override_rope(ModelConfig& config, const std::string& json);

/// eos ids of generation_config.json where it has some, else those of config.json.
std::vector<int> read_stop_ids(const std::string& folder, const ModelConfig& config);

}  // namespace lacuna
