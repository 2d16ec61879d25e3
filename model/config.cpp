#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

const std::vector<std::string> kFamilyNames = {"qwen2", "llama", "qwen3", "gemma3", "mistral"};

/// Fields that do not change what a forward pass in inference computes.
constexpr std::array kIgnoredFields = {"_name_or_path",
                                       "_attn_implementation",
                                       "_attn_implementation_autoset",
                                       "_commit_hash",
                                       "add_cross_attention",
                                       "architectures",
                                       "attention_dropout",
                                       "auto_map",
                                       "bad_words_ids",
                                       "begin_suppress_tokens",
                                       "boi_token_index",
                                       "bos_token_id",
                                       "cache_implementation",
                                       "chunk_size_feed_forward",
                                       "cross_attention_hidden_size",
                                       "decoder_start_token_id",
                                       "diversity_penalty",
                                       "do_sample",
                                       "dtype",
                                       "early_stopping",
                                       "encoder_no_repeat_ngram_size",
                                       "eoi_token_index",
                                       "eos_token_id",
                                       "exponential_decay_length_penalty",
                                       "finetuning_task",
                                       "forced_bos_token_id",
                                       "forced_eos_token_id",
                                       "hidden_dropout",
                                       "id2label",
                                       "image_token_index",
                                       "initializer_range",
                                       "is_decoder",
                                       "is_encoder_decoder",
                                       "label2id",
                                       "length_penalty",
                                       "max_length",
                                       "max_position_embeddings",
                                       "max_window_layers",
                                       "min_length",
                                       "mm_tokens_per_image",
                                       "model_type",
                                       "no_repeat_ngram_size",
                                       "num_beam_groups",
                                       "num_beams",
                                       "num_return_sequences",
                                       "output_attentions",
                                       "output_hidden_states",
                                       "output_scores",
                                       "pad_token_id",
                                       "prefix",
                                       "pretraining_tp",
                                       "problem_type",
                                       "pruned_heads",
                                       "remove_invalid_values",
                                       "repetition_penalty",
                                       "resid_pdrop",
                                       "return_dict",
                                       "return_dict_in_generate",
                                       "sep_token_id",
                                       "suppress_tokens",
                                       "task_specific_params",
                                       "temperature",
                                       "tf_legacy_loss",
                                       "tie_encoder_decoder",
                                       "tokenizer_class",
                                       "top_k",
                                       "top_p",
                                       "torch_dtype",
                                       "torchscript",
                                       "transformers_version",
                                       "typical_p",
                                       "use_bfloat16",
                                       "use_cache",
                                       "vision_config",
                                       "_sliding_window_pattern"};

/// Fields that are read below.
constexpr std::array kReadFields = {"attention_bias",
                                    "attn_logit_softcapping",
                                    "final_logit_softcapping",
                                    "head_dim",
                                    "hidden_act",
                                    "hidden_activation",
                                    "hidden_size",
                                    "intermediate_size",
                                    "layer_types",
                                    "mlp_bias",
                                    "num_attention_heads",
                                    "num_hidden_layers",
                                    "num_key_value_heads",
                                    "partial_rotary_factor",
                                    "quantization_config",
                                    "query_pre_attn_scalar",
                                    "rms_norm_eps",
                                    "rope_local_base_freq",
                                    "rope_parameters",
                                    "rope_scaling",
                                    "rope_theta",
                                    "sliding_window",
                                    "sliding_window_pattern",
                                    "text_config",
                                    "tie_word_embeddings",
                                    "use_bidirectional_attention",
                                    "use_sliding_window",
                                    "vocab_size"};

template <std::size_t N>
bool contains(const std::array<const char*, N>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// A value that says "off", whatever the field means.
bool is_off(const Json& value) {
  return value.is_null() || value == Json(false) || (value.is_structured() && value.empty());
}

void refuse_unknown_fields(const Json& json, const std::string& where) {
  for (const auto& [key, value] : json.items()) {
    if (contains(kIgnoredFields, key) || contains(kReadFields, key) || is_off(value)) continue;
    throw_usage(
        "{}: field '{}' is not known to Lacuna and may change the model's results; remove it from the file "
        "if it "
        "does not",
        where, key);
  }
}

void refuse_if_set(const Json& json, const char* key, const char* why, const std::string& where) {
  const auto it = json.find(key);
  if (it != json.end() && !is_off(*it)) throw_usage("{}: field '{}' is set: {}", where, key, why);
}

int positive_int(const Json& json, const char* key, int fallback, int largest, const std::string& where) {
  const int value =
      fallback > 0 ? json_get_or<int>(json, key, fallback, where) : json_get<int>(json, key, where);
  LACUNA_REQUIRE(value >= 1 && value <= largest, "{}: field '{}' is {}, expected 1 to {}", where, key, value,
                 largest);
  return value;
}

/// Sizes that config.json may leave out because transformers has them as defaults (only Gemma 3's nested
/// text_config does so in practice); 0: must be given.
struct Defaults {
  int vocab = 0, hidden = 0, mlp = 0, layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  int max_positions = 0;
  double theta = 10000.0;
};

Defaults defaults_of(Family family) {
  switch (family) {
    case Family::kGemma3:
      return {.vocab = 262208,
              .hidden = 2304,
              .mlp = 9216,
              .layers = 26,
              .q_heads = 8,
              .kv_heads = 4,
              .head_dim = 256,
              .max_positions = 131072,
              .theta = 1e6};
    case Family::kQwen3:
      return {.head_dim = 128, .max_positions = 32768};
    case Family::kQwen2:
      return {.max_positions = 32768};
    case Family::kLlama:
      return {.max_positions = 2048};
    case Family::kMistral:
      return {.kv_heads = 8, .max_positions = 131072};
  }
  throw_internal("family {}", static_cast<int>(family));
}

Family parse_family(const Json& json, const std::string& where) {
  auto name = json_get<std::string>(json, "model_type", where);
  if (name == "gemma3_text") name = "gemma3";
  const auto it = std::find(kFamilyNames.begin(), kFamilyNames.end(), name);
  if (it == kFamilyNames.end())
    throw_usage("{}: {}", where, unknown_name_message("model_type", name, kFamilyNames));
  return static_cast<Family>(it - kFamilyNames.begin());
}

void read_sizes(const Json& json, const std::string& where, ModelConfig& c) {
  constexpr int kMany = 1 << 24;
  const Defaults d = defaults_of(c.family);
  c.layers = positive_int(json, "num_hidden_layers", d.layers, 4096, where);
  c.hidden = positive_int(json, "hidden_size", d.hidden, kMany, where);
  c.mlp = positive_int(json, "intermediate_size", d.mlp, kMany, where);
  c.vocab = positive_int(json, "vocab_size", d.vocab, kMany, where);
  c.q_heads = positive_int(json, "num_attention_heads", d.q_heads, 4096, where);
  c.kv_heads =
      positive_int(json, "num_key_value_heads", d.kv_heads > 0 ? d.kv_heads : c.q_heads, 4096, where);
  LACUNA_REQUIRE(c.q_heads % c.kv_heads == 0,
                 "{}: num_attention_heads ({}) is not a multiple of num_key_value_heads ({})", where,
                 c.q_heads, c.kv_heads);
  const bool has_head_dim = json.contains("head_dim") && !json["head_dim"].is_null();
  if (!has_head_dim && d.head_dim == 0) {
    LACUNA_REQUIRE(c.hidden % c.q_heads == 0,
                   "{}: hidden_size ({}) is not a multiple of num_attention_heads ({})", where, c.hidden,
                   c.q_heads);
  }
  c.head_dim = positive_int(json, "head_dim", d.head_dim > 0 ? d.head_dim : std::max(1, c.hidden / c.q_heads),
                            1 << 16, where);
  LACUNA_REQUIRE(c.head_dim % 8 == 0 && c.head_dim <= 256,
                 "{}: head_dim is {}; supported are multiples of 8 up to 256", where, c.head_dim);
  c.max_positions = positive_int(json, "max_position_embeddings", d.max_positions, 1 << 30, where);
  c.rms_eps = static_cast<float>(json_get_or<double>(json, "rms_norm_eps", 1e-6, where));
  LACUNA_REQUIRE(c.rms_eps > 0 && c.rms_eps < 1, "{}: field 'rms_norm_eps' is {}, expected 0 to 1", where,
                 c.rms_eps);
  c.tied_embeddings = json_get_or<bool>(json, "tie_word_embeddings", c.family == Family::kGemma3, where);
}

void read_activation(const Json& json, const std::string& where, ModelConfig& c) {
  const bool gemma = c.family == Family::kGemma3;
  const char* key = gemma && json.contains("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string expected = gemma ? "gelu_pytorch_tanh" : "silu";
  const auto name = json_get_or<std::string>(json, key, expected, where);
  LACUNA_REQUIRE(name == expected, "{}: field '{}' is '{}'; supported for {} is '{}'", where, key, name,
                 name_of(c.family), expected);
  c.activation = gemma ? Activation::kGeluTanh : Activation::kSilu;
}

void read_family_settings(const Json& json, const std::string& where, ModelConfig& c) {
  const bool attention_bias = json_get_or<bool>(json, "attention_bias", false, where);
  const bool takes_bias =
      c.family == Family::kLlama || c.family == Family::kQwen3 || c.family == Family::kGemma3;
  LACUNA_REQUIRE(takes_bias || !attention_bias,
                 "{}: field 'attention_bias' is true, which {} models do not have", where, name_of(c.family));
  c.qkv_bias = c.family == Family::kQwen2 || attention_bias;
  c.o_bias = attention_bias;
  c.mlp_bias = json_get_or<bool>(json, "mlp_bias", false, where);
  LACUNA_REQUIRE(c.family == Family::kLlama || !c.mlp_bias,
                 "{}: field 'mlp_bias' is true, which {} models do not have", where, name_of(c.family));
  c.qk_norm = c.family == Family::kQwen3 || c.family == Family::kGemma3;
  c.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
  if (c.family == Family::kGemma3) {
    c.norm_plus_one = c.post_norms = true;
    c.embedding_scale = std::sqrt(static_cast<float>(c.hidden));
    const auto scalar = json_get_or<double>(json, "query_pre_attn_scalar", 256, where);
    LACUNA_REQUIRE(scalar > 0, "{}: field 'query_pre_attn_scalar' is {}, expected a number above 0", where,
                   scalar);
    c.attention_scale = static_cast<float>(1.0 / std::sqrt(scalar));
    c.attention_softcap = static_cast<float>(json_get_or<double>(json, "attn_logit_softcapping", 0, where));
    c.logit_softcap = static_cast<float>(json_get_or<double>(json, "final_logit_softcapping", 0, where));
    LACUNA_REQUIRE(c.attention_softcap >= 0 && c.logit_softcap >= 0, "{}: soft-caps must not be negative",
                   where);
    return;
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
                          "sliding_window_pattern", "rope_local_base_freq"}) {
    refuse_if_set(json, key, "only Gemma 3 models have it", where);
  }
}

std::vector<bool> read_layer_types(const Json& types, const ModelConfig& c, const std::string& where) {
  LACUNA_REQUIRE(types.is_array() && types.size() == static_cast<std::size_t>(c.layers),
                 "{}: field 'layer_types' must list {} layers", where, c.layers);
  std::vector<bool> sliding;
  for (const Json& type : types) {
    LACUNA_REQUIRE(type == "sliding_attention" || type == "full_attention",
                   "{}: field 'layer_types' names {}; supported are 'full_attention' and 'sliding_attention'",
                   where, type.dump());
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

void read_windows(const Json& json, const std::string& where, ModelConfig& c) {
  int window =
      c.family == Family::kGemma3 || (c.family == Family::kMistral && !json.contains("sliding_window"))
          ? json_get_or<int>(json, "sliding_window", 4096, where)
          : json_get_or<int>(json, "sliding_window", 0, where);
  LACUNA_REQUIRE(window >= 0, "{}: field 'sliding_window' is {}, expected a positive number or null", where,
                 window);
  const auto layers = static_cast<std::size_t>(c.layers);
  const bool has_types = json.contains("layer_types") && !json["layer_types"].is_null();
  const bool qwen = c.family == Family::kQwen2 || c.family == Family::kQwen3;
  if (qwen && !json_get_or<bool>(json, "use_sliding_window", false, where)) window = 0;
  if (c.family == Family::kLlama && window > 0)
    refuse_if_set(json, "sliding_window", "Llama models have none", where);

  c.sliding.assign(layers, false);
  if (c.family == Family::kMistral) {
    c.sliding.assign(layers, window > 0);
    LACUNA_REQUIRE(
        !has_types || read_layer_types(json["layer_types"], c, where) == c.sliding,
        "{}: field 'layer_types' contradicts 'sliding_window', which holds for every layer of Mistral models",
        where);
  } else if (has_types) {
    c.sliding = read_layer_types(json["layer_types"], c, where);
  } else if (c.family == Family::kGemma3) {
    const char* key =
        json.contains("_sliding_window_pattern") ? "_sliding_window_pattern" : "sliding_window_pattern";
    const int pattern = positive_int(json, key, 6, 1 << 20, where);
    for (std::size_t i = 0; i < layers; ++i) c.sliding[i] = (static_cast<int>(i) + 1) % pattern != 0;
  } else if (qwen && window > 0) {
    const auto first = static_cast<std::size_t>(json_get_or<int>(json, "max_window_layers", 28, where));
    for (std::size_t i = 0; i < layers; ++i) c.sliding[i] = i >= first;
  }
  const bool any = std::find(c.sliding.begin(), c.sliding.end(), true) != c.sliding.end();
  LACUNA_REQUIRE(!any || window > 0,
                 "{}: 'layer_types' has sliding-window layers, but 'sliding_window' is not set", where);
  c.window = any ? window : 0;
}

void read_ropes(const Json& json, const std::string& where, ModelConfig& c) {
  LACUNA_REQUIRE(json_get_or<double>(json, "partial_rotary_factor", 1.0, where) == 1.0,
                 "{}: field 'partial_rotary_factor' is not 1, which is not supported", where);
  const double theta = json_get_or<double>(json, "rope_theta", defaults_of(c.family).theta, where);
  const auto positions = static_cast<double>(c.max_positions);
  const Json parameters = json.value("rope_parameters", Json());
  const Json scaling = json.value("rope_scaling", Json());
  const bool nested = parameters.is_object() &&
                      (parameters.contains("full_attention") || parameters.contains("sliding_attention"));
  if (nested) {
    for (const auto& [key, value] : parameters.items()) {
      LACUNA_REQUIRE(key == "full_attention" || key == "sliding_attention" || value.is_null(),
                     "{}: rope_parameters: layer type '{}' is not supported", where, key);
    }
    c.rope = parse_rope(parameters.value("full_attention", Json()), theta, positions,
                        where + ": rope_parameters.full_attention");
    const double local = c.family == Family::kGemma3
                             ? json_get_or<double>(json, "rope_local_base_freq", 10000.0, where)
                             : theta;
    c.local_rope = parse_rope(parameters.value("sliding_attention", Json()), local, positions,
                              where + ": rope_parameters.sliding_attention");
    return;
  }
  const bool has_scaling = scaling.is_object() && !scaling.empty();
  c.rope = has_scaling ? parse_rope(scaling, theta, positions, where + ": rope_scaling")
                       : parse_rope(parameters, theta, positions, where + ": rope_parameters");
  c.local_rope = c.rope;
  if (c.family == Family::kGemma3) {
    c.local_rope = {.theta = json_get_or<double>(json, "rope_local_base_freq", 10000.0, where)};
  }
}

DType parse_dtype(const Json& outer, const Json& json, const std::string& where) {
  for (const Json* object : {&json, &outer}) {
    for (const char* key : {"dtype", "torch_dtype"}) {
      const auto name = json_get_or<std::string>(*object, key, "", where);
      if (name.empty()) continue;
      for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
        if (name == name_of(dtype)) return dtype;
      }
      throw_usage("{}: field '{}' is '{}'; supported are bfloat16, float16 and float32", where, key, name);
    }
  }
  return DType::kF32;
}

std::vector<int> parse_stop_ids(const Json& json, const std::string& where) {
  const auto it = json.find("eos_token_id");
  if (it == json.end() || it->is_null()) return {};
  std::vector<int> ids;
  for (const Json& id : it->is_array() ? *it : Json::array({*it})) {
    LACUNA_REQUIRE(
        id.is_number_integer() && id.get<std::int64_t>() >= 0 && id.get<std::int64_t>() < (1 << 24),
        "{}: field 'eos_token_id' holds {}, expected token ids", where, id.dump());
    ids.push_back(id.get<int>());
  }
  return ids;
}

}  // namespace

std::string_view name_of(Family family) { return kFamilyNames[static_cast<std::size_t>(family)]; }

int ModelConfig::sliding_layers() const {
  return static_cast<int>(std::count(sliding.begin(), sliding.end(), true));
}

std::int64_t ModelConfig::parameters() const {
  const std::int64_t h = hidden, q = std::int64_t{q_heads} * head_dim, kv = std::int64_t{kv_heads} * head_dim,
                     m = mlp;
  std::int64_t layer = h * (q + 2 * kv) + q * h + 3 * h * m + 2 * h;
  if (qkv_bias) layer += q + 2 * kv;
  if (o_bias) layer += h;
  if (mlp_bias) layer += 2 * m + h;
  if (qk_norm) layer += 2 * head_dim;
  if (post_norms) layer += 2 * h;
  return layers * layer + h + std::int64_t{vocab} * h * (tied_embeddings ? 1 : 2);
}

ModelConfig parse_config(std::string_view text, const std::string& where) {
  const Json outer = parse_json(text, where);
  LACUNA_REQUIRE(outer.is_object(), "{}: expected an object", where);
  ModelConfig c;
  c.family = parse_family(outer, where);
  c.multimodal = outer.contains("text_config");
  LACUNA_REQUIRE(!c.multimodal || c.family == Family::kGemma3,
                 "{}: field 'text_config' is only supported for gemma3", where);
  const Json& json = c.multimodal ? outer["text_config"] : outer;
  LACUNA_REQUIRE(json.is_object(), "{}: field 'text_config' must be an object", where);
  for (const Json* object : {&outer, &json}) {
    refuse_unknown_fields(*object, where);
    refuse_if_set(*object, "quantization_config",
                  "quantised weights are not supported; use a bf16, fp16 or fp32 folder", where);
  }
  refuse_if_set(json, "use_bidirectional_attention", "only causal models are supported", where);
  read_sizes(json, where, c);
  if (c.multimodal)
    c.tied_embeddings = json_get_or<bool>(outer, "tie_word_embeddings", c.tied_embeddings, where);
  read_activation(json, where, c);
  read_family_settings(json, where, c);
  read_windows(json, where, c);
  read_ropes(json, where, c);
  c.dtype = parse_dtype(outer, json, where);
  c.stop_ids = parse_stop_ids(outer, where);
  if (c.stop_ids.empty()) c.stop_ids = parse_stop_ids(json, where);
  return c;
}

ModelConfig read_config(const std::string& folder) {
  LACUNA_REQUIRE(std::filesystem::is_directory(folder), "{}: no such model folder", folder);
  const std::string path = folder + "/config.json";
  LACUNA_REQUIRE(std::filesystem::exists(path), "{}: not a model folder: it has no config.json", folder);
  return parse_config(read_file(path), path);
}

void override_rope(ModelConfig& config, const std::string& json) {
  const std::string where = "RoPE override";
  const RopeConfig before = config.rope;
  config.rope =
      parse_rope(parse_json(json, where), before.theta, static_cast<double>(config.max_positions), where);
  // Families with one RoPE for all layers keep one; Gemma 3's local RoPE is never scaled.
  if (config.family != Family::kGemma3) config.local_rope = config.rope;
}

std::vector<int> read_stop_ids(const std::string& folder, const ModelConfig& config) {
  const std::string path = folder + "/generation_config.json";
  if (!std::filesystem::exists(path)) return config.stop_ids;
  auto ids = parse_stop_ids(read_json_file(path), path);
  return ids.empty() ? config.stop_ids : ids;
}

}  // namespace lacuna
