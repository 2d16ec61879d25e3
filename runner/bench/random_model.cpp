// Model folders with random weights, for timing alone.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "core/text.h"
#include "model/config.h"
#include "runner/bench/bench.h"

namespace lacuna::bench {

namespace {

struct Matrix {
  std::string name;
  std::vector<std::int64_t> shape;
  double deviation;  ///< 0: every element is `value`
  float value = 0;

  std::size_t bytes() const {
    std::size_t count = 2;
    for (const std::int64_t dim : shape) count *= static_cast<std::size_t>(dim);
    return count;
  }
};

/// The tensors of one file: a layer's, or (layer -1) everything else.
std::vector<Matrix> matrices(const ModelConfig& c, int layer) {
  std::vector<Matrix> list;
  const std::int64_t h = c.hidden, q = std::int64_t{c.q_heads} * c.head_dim,
                     kv = std::int64_t{c.kv_heads} * c.head_dim;
  const float norm = c.norm_plus_one ? 0.0f : 1.0f;
  if (layer < 0) {
    list.push_back({"model.embed_tokens.weight", {c.vocab, h}, 1.0 / c.embedding_scale});
    list.push_back({"model.norm.weight", {h}, 0, norm});
    if (!c.tied_embeddings) list.push_back({"lm_head.weight", {c.vocab, h}, 1 / std::sqrt(double(h))});
    return list;
  }
  const std::string at = fmt::format("model.layers.{}.", layer);
  const auto linear = [&](const char* name, std::int64_t out, std::int64_t in, bool bias) {
    list.push_back({at + name + ".weight", {out, in}, 1 / std::sqrt(double(in))});
    if (bias) list.push_back({at + name + ".bias", {out}, 0.02});
  };
  linear("self_attn.q_proj", q, h, c.qkv_bias);
  linear("self_attn.k_proj", kv, h, c.qkv_bias);
  linear("self_attn.v_proj", kv, h, c.qkv_bias);
  linear("self_attn.o_proj", h, q, c.o_bias);
  linear("mlp.gate_proj", c.mlp, h, c.mlp_bias);
  linear("mlp.up_proj", c.mlp, h, c.mlp_bias);
  linear("mlp.down_proj", h, c.mlp, c.mlp_bias);
  std::vector<const char*> norms{"input_layernorm", "post_attention_layernorm"};
  if (c.post_norms) norms.insert(norms.end(), {"pre_feedforward_layernorm", "post_feedforward_layernorm"});
  for (const char* name : norms) list.push_back({at + name + ".weight", {h}, 0, norm});
  if (c.qk_norm) {
    for (const char* name : {"self_attn.q_norm", "self_attn.k_norm"})
      list.push_back({at + name + ".weight", {c.head_dim}, 0, norm});
  }
  return list;
}

/// bfloat16 of a normal deviate; adding the exponent of a power of two scales it without another pass.
constexpr std::size_t kBlock = (std::size_t{1} << 24) - 3;  // odd: rows never line up with it

std::vector<std::uint16_t> random_block(ThreadPool& threads) {
  std::vector<std::uint16_t> block(kBlock);
  constexpr std::int64_t kParts = 256;
  threads.parallel_for(kParts, [&](std::int64_t part) {
    Rng rng(1, stream_id("bench weights", static_cast<std::uint64_t>(part)));
    const auto begin = kBlock * static_cast<std::size_t>(part) / kParts,
               end = kBlock * static_cast<std::size_t>(part + 1) / kParts;
    for (std::size_t i = begin; i < end; ++i) {
      // The sum of four uniform numbers of 16 bits, deviation 1: near enough to normal.
      const std::uint64_t x = rng.next_u64();
      int sum = -2 * 65535;
      for (int k = 0; k < 4; ++k) sum += static_cast<int>(x >> (16 * k) & 0xFFFF);
      const float value = static_cast<float>(sum) * (1.7320508f / 65536.0f);
      block[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    }
  });
  return block;
}

void write_all(int fd, const void* data, std::size_t bytes, const std::string& path) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t wrote = ::write(fd, at, bytes);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) throw_resource("{}: cannot write: {}", path, std::strerror(wrote < 0 ? errno : ENOSPC));
    at += wrote;
    bytes -= static_cast<std::size_t>(wrote);
  }
}

/// Blocks of one deviation, made once each: the block scaled to it.
using Blocks = std::map<double, std::vector<std::uint16_t>>;

void write_file(const std::string& path, const std::vector<Matrix>& list, const Blocks& blocks) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  std::size_t at = 0;
  for (const Matrix& m : list) {
    header[m.name] = {{"dtype", "BF16"}, {"shape", m.shape}, {"data_offsets", {at, at + m.bytes()}}};
    at += m.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) throw_resource("{}: cannot write: {}", path, std::strerror(errno));
  try {
    const std::uint64_t length = text.size();
    write_all(fd, &length, sizeof(length), path);
    write_all(fd, text.data(), text.size(), path);
    std::uint64_t start = stream_id(std::filesystem::path(path).filename().string());
    for (const Matrix& m : list) {
      if (interrupted()) throw_resource("interrupted");
      std::size_t left = m.bytes() / 2;
      if (m.deviation == 0) {
        const std::vector<std::uint16_t> values(
            left, static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(m.value) >> 16));
        write_all(fd, values.data(), left * 2, path);
        continue;
      }
      const auto& block = blocks.at(m.deviation);
      start = start * 6364136223846793005u + 1442695040888963407u;
      std::size_t from = start % kBlock;
      while (left > 0) {
        const std::size_t count = std::min(left, kBlock - from);
        write_all(fd, block.data() + from, count * 2, path);
        left -= count;
        from = 0;
      }
    }
  } catch (...) {
    ::close(fd);
    throw;
  }
  if (::close(fd) != 0) throw_resource("{}: cannot write: {}", path, std::strerror(errno));
}

}  // namespace

ModelShape find_shape(const std::string& name) {
  if (name == "small")
    return {
        .layers = 4, .q_heads = 8, .kv_heads = 2, .head_dim = 64, .hidden = 512, .mlp = 2048, .vocab = 4096};
  if (const auto shape = find_published_shape(name)) return *shape;
  std::vector<std::string> names = published_shape_names();
  names.emplace_back("small");
  throw_usage("--shape: {}", unknown_name_message("shape", name, names));
}

std::string random_model_config(const std::string& shape_name, const ModelShape& s) {
  std::string lower = shape_name;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool gemma = lower.starts_with("gemma"), llama = lower.starts_with("llama");
  Json config = {{"model_type", gemma   ? "gemma3_text"
                                : llama ? "llama"
                                        : "qwen2"},
                 {"vocab_size", s.vocab},
                 {"hidden_size", s.hidden},
                 {"intermediate_size", s.mlp},
                 {"num_hidden_layers", s.layers},
                 {"num_attention_heads", s.q_heads},
                 {"num_key_value_heads", s.kv_heads},
                 {"head_dim", s.head_dim},
                 {"max_position_embeddings", 1 << 20},
                 {"rope_theta", 1000000.0},
                 {"rms_norm_eps", 1e-6},
                 {"tie_word_embeddings", gemma},
                 {"torch_dtype", "bfloat16"}};
  if (gemma) {
    Json types = Json::array();
    for (int layer = 0; layer < s.layers; ++layer)
      types.push_back(layer % 6 == 5 ? "full_attention" : "sliding_attention");
    config["layer_types"] = types;
    config["sliding_window"] = s.sliding_window;
    config["query_pre_attn_scalar"] = s.head_dim;
    config["hidden_activation"] = "gelu_pytorch_tanh";
    config["rope_local_base_freq"] = 10000.0;
  }
  return config.dump(1) + "\n";
}

void write_random_model(const std::string& folder, const std::string& config, ThreadPool& threads) {
  const ModelConfig c = parse_config(config, "random model");
  std::filesystem::create_directories(folder);
  Blocks blocks;
  std::vector<std::vector<Matrix>> files;
  for (int layer = -1; layer < c.layers; ++layer) {
    files.push_back(matrices(c, layer));
    for (const Matrix& m : files.back()) {
      if (m.deviation > 0) blocks[m.deviation];
    }
  }
  const auto unit = random_block(threads);
  for (auto& [deviation, block] : blocks) {
    block.resize(kBlock);
    const auto scale = static_cast<float>(deviation);
    constexpr std::int64_t kParts = 64;
    threads.parallel_for(kParts, [&, &into = block](std::int64_t part) {
      const auto begin = kBlock * static_cast<std::size_t>(part) / kParts,
                 end = kBlock * static_cast<std::size_t>(part + 1) / kParts;
      for (std::size_t i = begin; i < end; ++i) {
        const float value = std::bit_cast<float>(std::uint32_t{unit[i]} << 16) * scale;
        into[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
      }
    });
  }
  const auto name_of_file = [&](std::size_t i) {
    return fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, files.size());
  };
  threads.parallel_for(static_cast<std::int64_t>(files.size()), [&](std::int64_t i) {
    const auto index = static_cast<std::size_t>(i);
    write_file(folder + "/" + name_of_file(index), files[index], blocks);
  });
  Json map = Json::object();
  std::size_t total = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    for (const Matrix& m : files[i]) {
      map[m.name] = name_of_file(i);
      total += m.bytes();
    }
  }
  write_file_atomically(folder + "/model.safetensors.index.json",
                        Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(1));
  write_file_atomically(folder + "/config.json", config);
}

}  // namespace lacuna::bench
