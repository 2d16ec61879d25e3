#include "tests/model/tiny_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "core/json.h"

namespace lacuna::testing {

namespace {

std::uint64_t fnv1a(const std::string& text) {
  std::uint64_t value = 0xCBF29CE484222325u;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return value;
}

/// Number i (from 1) of the generator with this seed.
std::uint64_t splitmix(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = seed + i * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

TinyTensor fill(const std::string& name, std::vector<std::int64_t> shape, bool gemma, DType dtype) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  float scale = 1, offset = 0;
  if (contains(name, "norm")) {
    scale = 0.25f;
    offset = gemma ? 0.0f : 1.0f;
  } else if (name.ends_with(".bias")) {
    scale = 0.5f;
  } else if (contains(name, "embed_tokens")) {
    scale = gemma ? 0.03125f : 1.0f;  // Gemma multiplies embeddings by sqrt(hidden)
  } else {
    scale = static_cast<float>(3.0 / std::sqrt(static_cast<double>(shape[1])));
  }
  std::vector<float> values(static_cast<std::size_t>(count));
  const std::uint64_t seed = fnv1a(name);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float u = static_cast<float>(splitmix(seed, i + 1) >> 40) * 0x1p-23f - 1.0f;
    values[i] = u * scale + offset;
  }
  TinyTensor tensor{.shape = std::move(shape),
                    .dtype = dtype == DType::kF32   ? "F32"
                             : dtype == DType::kF16 ? "F16"
                                                    : "BF16",
                    .bytes = {}};
  tensor.bytes.resize(values.size() * size_of(dtype));
  convert_from_float(values.data(), tensor.bytes.data(), dtype, values.size());
  return tensor;
}

}  // namespace

TemporaryFolder::TemporaryFolder(const std::string& name)
    : path_((std::filesystem::temp_directory_path() / fmt::format("lacuna_{}_{}", name, getpid())).string()) {
  std::filesystem::remove_all(path_);
  std::filesystem::create_directories(path_);
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

TinyTensors tiny_tensors(const ModelConfig& c) {
  TinyTensors tensors;
  const bool gemma = c.family == Family::kGemma3;
  const std::string outer = c.multimodal ? "language_model." : "";
  const auto put = [&](const std::string& name, std::vector<std::int64_t> shape) {
    tensors[outer + name] = fill(outer + name, std::move(shape), gemma, c.dtype);
  };
  const std::int64_t h = c.hidden, q = std::int64_t{c.q_heads} * c.head_dim,
                     kv = std::int64_t{c.kv_heads} * c.head_dim;
  put("model.embed_tokens.weight", {c.vocab, h});
  put("model.norm.weight", {h});
  if (!c.tied_embeddings) put("lm_head.weight", {c.vocab, h});
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::string at = fmt::format("model.layers.{}.", layer);
    const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in, bool bias) {
      put(at + name + ".weight", {out, in});
      if (bias) put(at + name + ".bias", {out});
    };
    linear("self_attn.q_proj", q, h, c.qkv_bias);
    linear("self_attn.k_proj", kv, h, c.qkv_bias);
    linear("self_attn.v_proj", kv, h, c.qkv_bias);
    linear("self_attn.o_proj", h, q, c.o_bias);
    linear("mlp.gate_proj", c.mlp, h, c.mlp_bias);
    linear("mlp.up_proj", c.mlp, h, c.mlp_bias);
    linear("mlp.down_proj", h, c.mlp, c.mlp_bias);
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) put(at + norm + ".weight", {h});
    if (c.post_norms) {
      for (const char* norm : {"pre_feedforward_layernorm", "post_feedforward_layernorm"})
        put(at + norm + ".weight", {h});
    }
    if (c.qk_norm) {
      for (const char* norm : {"self_attn.q_norm", "self_attn.k_norm"})
        put(at + norm + ".weight", {c.head_dim});
    }
  }
  return tensors;
}

std::string safetensors_bytes(const TinyTensors& tensors) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::size_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes.size()}}};
    at += tensor.bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(text.size() >> (8 * i) & 0xFF));
  bytes += text;
  for (const auto& [name, tensor] : tensors) bytes += tensor.bytes;
  return bytes;
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

void write_sharded(const std::string& folder, const TinyTensors& tensors, int files) {
  std::vector<TinyTensors> parts(static_cast<std::size_t>(files));
  Json map = Json::object();
  std::size_t i = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t part = i++ % parts.size();
    parts[part][name] = tensor;
    map[name] = fmt::format("model-{:05}-of-{:05}.safetensors", part + 1, files);
  }
  for (std::size_t p = 0; p < parts.size(); ++p) {
    write_text(fmt::format("{}/model-{:05}-of-{:05}.safetensors", folder, p + 1, files),
               safetensors_bytes(parts[p]));
  }
  write_text(folder + "/model.safetensors.index.json",
             Json{{"metadata", {{"total_size", 0}}}, {"weight_map", map}}.dump());
}

std::string write_tiny_model(const std::string& folder, const std::string& config_json) {
  std::filesystem::create_directories(folder);
  write_text(folder + "/config.json", config_json);
  write_text(folder + "/model.safetensors",
             safetensors_bytes(tiny_tensors(parse_config(config_json, "test config"))));
  return folder;
}

std::vector<TokenId> tiny_prompt(int length, int vocab) {
  std::vector<TokenId> ids;
  for (int i = 1; i <= length; ++i) {
    ids.push_back(static_cast<TokenId>(
        splitmix(1000u + static_cast<std::uint64_t>(length), static_cast<std::uint64_t>(i)) %
        static_cast<std::uint64_t>(vocab)));
  }
  return ids;
}

std::string small_config(const std::string& model_type, const std::string& more) {
  return fmt::format(
      R"({{"model_type": "{}", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16"{}{}}})",
      model_type, more.empty() ? "" : ", ", more);
}

}  // namespace lacuna::testing
