#include "model/memory_plan.h"

#include <algorithm>
#include <filesystem>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"
#include "model/cuda/sizes.h"
#include "model/safetensors.h"

namespace lacuna {

namespace {

/// Split decode attention on CUDA (attention/cuda/decode.cpp): runs of a sequence, at most eight per
/// multiprocessor, at least as many as fill them when there are pages enough; rows of a run.
constexpr std::int64_t kDecodeMostRuns = 8 * 132, kDecodeFewRuns = 3 * 132, kDecodeRows = 16;
std::int64_t decode_runs(std::int64_t pages) {
  return std::min(kDecodeMostRuns, std::max(std::min(kDecodeFewRuns, pages / 4), pages / 16));
}

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

std::string hash_if_there(const std::string& path) {
  return std::filesystem::exists(path) ? hash_file(path) : std::string();
}

}  // namespace

ModelFacts make_facts(const ModelConfig& c, const std::string& folder) {
  ModelFacts f;
  f.family = name_of(c.family);
  f.parameters = c.parameters();
  f.layers = c.layers;
  f.q_heads = c.q_heads;
  f.kv_heads = c.kv_heads;
  f.head_dim = c.head_dim;
  f.hidden = c.hidden;
  f.mlp = c.mlp;
  f.vocab = c.vocab;
  f.sliding_layers = c.sliding_layers();
  f.sliding_window = c.window;
  f.max_positions = c.max_positions;
  f.dtype = name_of(c.dtype);
  f.tied_embeddings = c.tied_embeddings;
  Json rope = to_json(c.rope);
  if (c.sliding_layers() > 0 && c.local_rope != c.rope)
    rope = {{"full_attention", to_json(c.rope)}, {"sliding_attention", to_json(c.local_rope)}};
  f.rope = rope.dump();
  f.config_hash = hash_file(folder + "/config.json");
  f.tokenizer_hash = hash_if_there(folder + "/tokenizer.json");
  if (Weights::present(folder)) f.weights_hash = Weights::open(folder).fingerprint();
  return f;
}

ModelFacts read_model_facts(const std::string& folder) { return make_facts(read_config(folder), folder); }

double linear_flops(const ModelFacts& f, std::int64_t tokens) {
  const double h = f.hidden, q = static_cast<double>(f.q_heads) * f.head_dim,
               kv = static_cast<double>(f.kv_heads) * f.head_dim;
  const double qkv = 2 * h * (q + 2 * kv), rest = 2 * (q * h + 3.0 * h * f.mlp);
  const auto t = static_cast<double>(tokens);
  return f.layers * t * qkv + ((f.layers - 1) * t + 1) * rest + 2 * h * f.vocab;
}

std::int64_t dense_kv_bytes(const ModelConfig& config, const Shard& shard, std::int64_t tokens,
                            std::int64_t page_bytes) {
  std::int64_t pages = 0;
  for (int layer = 0; layer < config.layers; ++layer) {
    const bool sliding = config.sliding[static_cast<std::size_t>(layer)];
    pages += pages_of(sliding ? std::min<std::int64_t>(tokens, config.window) : tokens) * shard.kv_heads;
  }
  return pages * page_bytes;
}

MemoryPlan plan_memory(const ModelFacts& f, Device device, int tp, std::int64_t tokens,
                       std::int64_t new_tokens, int variants) {
  LACUNA_REQUIRE(degree_works(f.q_heads, f.kv_heads, f.mlp, tp),
                 "{} ranks cannot share {} query heads, {} kv heads and {} MLP columns", tp, f.q_heads,
                 f.kv_heads, f.mlp);
  const bool cuda = device == Device::kCuda;
  const std::int64_t element = cuda ? 2 : 4;                                     // activations and cache
  const std::int64_t stored = !cuda && f.dtype == name_of(DType::kF32) ? 4 : 2;  // weights
  const std::int64_t h = f.hidden, d = f.head_dim, q = std::int64_t{f.q_heads} * d / tp;
  const std::int64_t kv_heads = std::max(1, f.kv_heads / tp), kv = kv_heads * d, m = f.mlp / tp;
  const std::int64_t vocab = largest_vocab_share(f.vocab, tp);

  MemoryPlan plan;
  const int vocab_matrices = cuda && f.tied_embeddings ? 1 : 2;  // the CPU packs the head for its kernels
  plan.weights = stored * (f.layers * (h * (q + 2 * kv) + q * h + 3 * h * m) + vocab_matrices * vocab * h);
  const auto cache_of = [&](std::int64_t length) {
    const std::int64_t window =
        f.sliding_layers > 0 ? std::min<std::int64_t>(length, f.sliding_window + kPageTokens) : 0;
    return kPageTokens * 2 * kv * element *
           ((f.layers - f.sliding_layers) * pages_of(length) + f.sliding_layers * pages_of(window));
  };
  // Every variant starts on a copy of the shared last page and adds its own tokens.
  plan.kv_cache = cache_of(tokens) + variants * cache_of(new_tokens + kPageTokens);
  const std::int64_t rows = std::max<std::int64_t>(tokens, variants);
  const std::int64_t chunk = std::min<std::int64_t>(rows, token_chunk(device));
  plan.activations =
      element * (rows * (h + 2 * q + 2 * kv) + chunk * (2 * h + 3 * m)) + 4 * std::max(1, variants) * vocab;
  std::int64_t positions = 1024;
  while (positions < tokens + new_tokens) positions *= 2;
  plan.workspace = 4 * positions * d * (f.sliding_layers > 0 ? 2 : 1);  // cos and sin
  if (!cuda) {
    plan.workspace += 4 * std::min<std::int64_t>(rows * std::max({h, q, m}), kPackedFloats);  // packed rows
    return plan;
  }
  // Page tables and split decode attention per variant, the products' workspace, half a piece of cache.
  const std::int64_t tables = f.layers * kv_heads * (pages_of(tokens + new_tokens) + 1) * 4;
  const std::int64_t group = std::min<std::int64_t>(f.q_heads / f.kv_heads, kDecodeRows);
  const std::int64_t partials = decode_runs(kv_heads * pages_of(tokens + new_tokens)) * group * (d + 2) * 4;
  plan.workspace += std::max(1, variants) * (tables + partials) + kGemmWorkspaceBytes + kKvPieceBytes / 2;
  return plan;
}

}  // namespace lacuna
