#include "model/memory_plan.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "attention/methods/eviction.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"
#include "model/cuda/sizes.h"
#include "model/safetensors.h"
#if LACUNA_HAS_CUDA_ENGINE
#include "attention/cuda/method_memory.h"
#include "model/cuda/kernels.h"
#endif

namespace lacuna {

namespace {

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

// --- Sizes that the engine reserves
// ---------------------------------------------------------------------------------------------------

RankShape rank_shape(const ModelConfig& c, const Shard& shard) {
  return {.layers = c.layers,
          .sliding_layers = c.sliding_layers(),
          .tp = shard.tp,
          .q_heads = shard.q_heads,
          .kv_heads = shard.kv_heads,
          .head_dim = c.head_dim,
          .q_heads_total = c.q_heads,
          .kv_heads_total = c.kv_heads,
          .hidden = c.hidden,
          .mlp = shard.mlp,
          .vocab = shard.vocab,
          .window = c.window,
          .post_norms = c.post_norms,
          .local_rope = c.sliding_layers() > 0 && c.local_rope != c.rope};
}

RankShape rank_shape(const ModelFacts& f, int tp) {
  LACUNA_REQUIRE(degree_works(f.q_heads, f.kv_heads, f.mlp, tp),
                 "{} ranks cannot share {} query heads, {} kv heads and {} MLP columns", tp, f.q_heads,
                 f.kv_heads, f.mlp);
  return {.layers = f.layers,
          .sliding_layers = f.sliding_layers,
          .tp = tp,
          .q_heads = f.q_heads / tp,
          .kv_heads = std::max(1, f.kv_heads / tp),
          .head_dim = f.head_dim,
          .q_heads_total = f.q_heads,
          .kv_heads_total = f.kv_heads,
          .hidden = f.hidden,
          .mlp = f.mlp / tp,
          .vocab = largest_vocab_share(f.vocab, tp),
          .window = f.sliding_window,
          .post_norms = f.family == name_of(Family::kGemma3),
          .local_rope = f.rope.find("sliding_attention") != std::string::npos};
}

ActivationBytes activation_bytes(const RankShape& s, Device device, std::int64_t tokens, std::int64_t rows) {
  const std::int64_t element = device == Device::kCuda ? 2 : 4, d = s.head_dim;
  const std::int64_t most = std::max(tokens, rows),
                     busy = std::max(std::min(tokens, token_chunk(device)), rows);
  ActivationBytes b;
  b.x = element * most * s.hidden;
  b.qkv = element * most * (s.q_heads + 2 * s.kv_heads) * d;
  b.attention = element * most * s.q_heads * d;
  b.normed = element * busy * s.hidden;
  b.gate_up = element * busy * 2 * s.mlp;
  b.activated = element * busy * s.mlp;
  if (s.tp > 1 || s.post_norms) b.partial = element * busy * s.hidden;
  b.logits = 4 * std::max<std::int64_t>(rows, 1) * s.vocab;
  b.ids = b.positions = 4 * most;
  return b;
}

std::int64_t rope_positions(std::int64_t positions) {
  constexpr std::int64_t kLeast = 1024;
  std::int64_t step = kLeast;
  while (step * 8 < positions) step *= 2;
  return std::max(kLeast, (positions + step - 1) / step * step);
}

// --- What a job needs
// -------------------------------------------------------------------------------------------------------

namespace {

const std::string& or_default(const std::string& method, const std::string& name) {
  return method.empty() ? name : method;
}
bool cuts(const MethodSpec& evict) {
  static const std::string none = "none";
  return or_default(evict.method, none) != none;
}

LayerInfo layer_info_of(const RankShape& s, int layer) {
  return {.layer = layer,
          .layers = s.layers,
          .q_heads = s.q_heads,
          .kv_heads = s.kv_heads,
          .q_heads_total = s.q_heads_total,
          .kv_heads_total = s.kv_heads_total,
          .head_dim = s.head_dim};
}

/// Tokens of a head that stay in one layer.
std::int64_t kept_tokens(const MethodSpec& evict, const LayerInfo& info, std::int64_t tokens) {
  if (!cuts(evict)) return tokens;
  std::int64_t capacity = evict.params.get_int("capacity");
  if (capacity >= tokens) return tokens;
  if (evict.method == "pyramidkv")
    capacity = pyramid_capacity(capacity, evict.params.get_double("beta"), info, tokens);
  std::int64_t always = 0;
  if (evict.method == "snapkv" || evict.method == "pyramidkv" || evict.method == "ada_snapkv" ||
      evict.method == "random")
    always = evict.params.get_int("first") + evict.params.get_int("last");
  return std::min(tokens, std::max(capacity, always));
}

/// Tokens that a variant reads after the prompt: the last one is not fed again, unless its logits are wanted.
std::int64_t fed_tokens(const Variant& v, const JobShape& job) {
  return std::max<std::int64_t>(0, v.sampling.max_new_tokens - (job.want_logits ? 0 : 1));
}

std::int64_t decoded_rows(const JobShape& job) {
  return std::count_if(job.variants.begin(), job.variants.end(),
                       [&](const Variant& v) { return fed_tokens(v, job) > 0; });
}

/// A cache of one kv head in one layer, shared by variants that each append fed[i] tokens (ascending) and
/// then leave. Full pages stay shared, every variant has the last one and what follows for itself; with a
/// window, pages that nobody reaches any more go back.
struct SharedHead {
  std::int64_t tokens = 0, window = 0;
  std::vector<std::int64_t> fed = {};
  std::int64_t heads = 1;  ///< how many there are

  std::int64_t pages_at(std::int64_t step) const {
    if (step == 0) return pages_of(tokens);
    const auto left = fed.end() - std::lower_bound(fed.begin(), fed.end(), step);
    if (left == 0) return 0;
    const std::int64_t full = tokens / kPageTokens;
    const std::int64_t gone =
        window > 0 ? std::max<std::int64_t>(0, tokens + step - window) / kPageTokens : 0;
    return std::max<std::int64_t>(0, full - gone) + left * (pages_of(tokens + step) - std::max(full, gone));
  }
};

/// The heads of the layers without a window. Everybody who keeps everything shares one cache; so do equal
/// evictors.
void add_layer(const RankShape& s, const JobShape& job, int layer, std::vector<SharedHead>& all) {
  const LayerInfo info = layer_info_of(s, layer);
  std::vector<const MethodSpec*> owners;
  std::vector<SharedHead> heads;
  for (const Variant& v : job.variants) {
    const std::int64_t tokens = kept_tokens(v.evict, info, job.tokens);
    std::size_t at = 0;
    while (at < heads.size() &&
           !(tokens == heads[at].tokens && (tokens == job.tokens || v.evict == *owners[at])))
      ++at;
    if (at == heads.size()) {
      owners.push_back(&v.evict);
      heads.push_back({.tokens = tokens, .heads = s.kv_heads});
    }
    heads[at].fed.push_back(fed_tokens(v, job));
  }
  for (SharedHead& head : heads) {
    std::sort(head.fed.begin(), head.fed.end());
    const auto same = std::find_if(all.begin(), all.end(), [&](const SharedHead& other) {
      return other.tokens == head.tokens && other.window == 0 && other.fed == head.fed;
    });
    if (same != all.end()) {
      same->heads += head.heads;
    } else {
      all.push_back(std::move(head));
    }
  }
}

/// Most pages of all layers and kv heads of one rank at once.
std::int64_t cache_pages(const RankShape& s, const JobShape& job) {
  if (job.variants.empty()) return 0;
  std::vector<SharedHead> heads;
  for (int layer = 0; layer < s.layers - s.sliding_layers; ++layer) add_layer(s, job, layer, heads);
  std::vector<std::int64_t> fed;
  for (const Variant& v : job.variants) fed.push_back(fed_tokens(v, job));
  std::sort(fed.begin(), fed.end());
  if (s.sliding_layers > 0)
    heads.push_back({.tokens = std::min(job.tokens, s.window),
                     .window = s.window,
                     .fed = fed,
                     .heads = std::int64_t{s.sliding_layers} * s.kv_heads});
  std::int64_t most = 0;
  const auto look_at = [&](std::int64_t step) {
    std::int64_t pages = 0;
    for (const SharedHead& head : heads) pages += head.heads * head.pages_at(step);
    most = std::max(most, pages);
  };
  look_at(0);
  if (s.sliding_layers > 0) {
    for (std::int64_t step = 1; step <= fed.back(); ++step) look_at(step);
  } else {
    for (const std::int64_t step : fed) look_at(step);  // between these it only grows
  }
  return most;
}

std::int64_t weight_bytes(const ModelFacts& f, const RankShape& s, Device device) {
  const bool cuda = device == Device::kCuda;
  const std::int64_t stored = !cuda && f.dtype == name_of(DType::kF32) ? 4 : 2, bias = cuda ? 2 : 4;
  const std::int64_t h = s.hidden, q = std::int64_t{s.q_heads} * s.head_dim,
                     kv = std::int64_t{s.kv_heads} * s.head_dim;
  const int vocab_matrices = cuda && f.tied_embeddings ? 1 : 2;  // the CPU packs the head for its kernels
  const bool head_norms = f.family == name_of(Family::kQwen3) || s.post_norms;
  const std::int64_t norms = 4 * ((s.post_norms ? 4 : 2) * h + (head_norms ? 2 * s.head_dim : 0));
  const std::int64_t biases = f.family == name_of(Family::kQwen2) ? bias * (q + 2 * kv) : 0;
  return f.layers * (stored * (h * (q + 2 * kv) + q * h + 3 * h * s.mlp) + norms + biases) + 4 * h +
         stored * vocab_matrices * s.vocab * h;
}

/// A little more than what is asked for: how the buffers of decoding grow.
std::int64_t grown(std::int64_t bytes) { return bytes + bytes / 4; }

#if LACUNA_HAS_CUDA_ENGINE

std::int64_t method_scratch_bytes(const RankShape& s, const JobShape& job) {
  std::size_t most = 0;
  for (int layer = 0; layer < s.layers - s.sliding_layers; ++layer) {
    const LayerInfo info = layer_info_of(s, layer);
    if (layer == 0) most = prefill_scratch_bytes(job.prefill, info, job.tokens);
    for (const Variant& v : job.variants)
      most = std::max(most, evict_scratch_bytes(v.evict, info, job.tokens));
  }
  return static_cast<std::int64_t>(most);
}

DecodeMethodMemory method_memory(const MethodSpec& decode, const LayerInfo& info, std::int64_t rows,
                                 std::int64_t max_tokens) {
  return decode_method_memory(decode, info, static_cast<int>(rows), max_tokens);
}

std::int64_t argmax_bytes(std::int64_t rows, std::int64_t vocab) {
  return rows * (argmax_partials(vocab) * 8 + static_cast<std::int64_t>(sizeof(ArgmaxResult)));
}

#else

// What a build without CUDA knows: the large tensors of the methods, rounded up.

std::int64_t method_scratch_bytes(const RankShape& s, const JobShape& job) {
  constexpr std::int64_t kLists = std::int64_t{64} << 20;  // at first, whatever the method
  const auto scores = [&](std::int64_t rows) {             // of the last queries, per 128 of them
    return 4 * s.q_heads * job.tokens * (4 + 2 * ((rows + 127) / 128));
  };
  std::int64_t most = 0;
  for (const char* name : {"vertical_slash", "flexprefill"}) {
    if (job.prefill.method != name) continue;
    const std::int64_t columns = std::min(
        job.tokens,
        std::max(job.tokens / 16, job.prefill.params.get_int(
                                      job.prefill.method == "flexprefill" ? "min_budget" : "verticals")));
    most = scores(job.prefill.params.get_int("window")) + kLists + 4 * s.q_heads * columns * s.head_dim;
  }
  for (const char* name : {"block_sparse", "xattention", "oracle_top_k", "oracle_top_p"}) {
    if (job.prefill.method == name) most = 2 * kLists + job.tokens * s.q_heads * 16;
  }
  for (const Variant& v : job.variants) {
    if (cuts(v.evict) && v.evict.method != "streaming" && v.evict.method != "random")
      most = std::max(most, scores(256));
  }
  return most;
}

struct DecodeMethodMemory {
  std::int64_t state = 0, choice = 0, lists_per_row = 0, attention = 0;
};

DecodeMethodMemory method_memory(const MethodSpec& decode, const LayerInfo& info, std::int64_t rows,
                                 std::int64_t max_tokens) {
  // Eight runs per multiprocessor of a Hopper GPU and sequence, of four pages at least.
  constexpr std::int64_t kRuns = 8 * 132, kRunPages = 4, kRows = 16;
  const std::int64_t runs = std::min(kRuns, info.kv_heads * pages_of(max_tokens) / kRunPages + 1);
  DecodeMethodMemory m;
  m.attention = rows * runs * std::min<std::int64_t>(info.q_heads_total / info.kv_heads_total, kRows) *
                (info.head_dim + 2) * 4;
  if (decode.method.empty() || decode.method == "dense") return m;
  const std::int64_t lists = rows * info.kv_heads * pages_of(max_tokens);
  m.lists_per_row = info.kv_heads;
  if (decode.method == "quest" || decode.method == "twilight")
    m.state = (pages_of(max_tokens) + 1) * info.kv_heads * 4 * info.head_dim;
  if (decode.method != "streaming") m.choice = 4 * lists;
  if (decode.method != "streaming" && decode.method != "quest")
    m.choice += 12 * lists * info.q_heads_total / info.kv_heads_total;
  return m;
}

std::int64_t argmax_bytes(std::int64_t rows, std::int64_t vocab) { return rows * (vocab / 128 + 16); }

#endif

}  // namespace

std::int64_t gpu_scratch_bytes(const RankShape& s, const JobShape& job) {
  constexpr std::int64_t kWrite = 64, kSumElements = std::int64_t{1} << 20;
  const std::int64_t rows = std::max<std::int64_t>(1, std::ssize(job.variants));
  const bool evicts =
      std::any_of(job.variants.begin(), job.variants.end(), [](const Variant& v) { return cuts(v.evict); });
  const std::int64_t busy = std::max(std::min(job.tokens, token_chunk(Device::kCuda)), rows);
  const std::int64_t writing =
      job.variants.empty() ? 0
                           : s.kv_heads * (kWrite + 4 * pages_of(job.tokens) + (evicts ? 4 * job.tokens : 0));
  const std::int64_t summing = s.tp > 1 ? 4 * std::min(kSumElements, busy * s.hidden) : 0;
  const std::int64_t copying = rows * s.layers * s.kv_heads * 8;
  constexpr std::int64_t kAlign = 1024;
  return kAlign +
         std::max({method_scratch_bytes(s, job), writing, summing, copying, argmax_bytes(rows, s.vocab)});
}

std::int64_t gpu_decode_bytes(const RankShape& s, const JobShape& job) {
  const LayerInfo info = layer_info_of(s, 0);
  const std::int64_t global = s.layers - s.sliding_layers, tables = s.layers * s.kv_heads;
  std::int64_t bytes = 0;
  for (const Variant& v : job.variants) {
    const std::int64_t tokens = job.tokens + v.sampling.max_new_tokens;
    bytes += tables * (pages_of(tokens) + 1) * 4;
    bytes += global * static_cast<std::int64_t>(method_memory(v.decode, info, 1, tokens).state);
  }
  const std::int64_t rows = decoded_rows(job);
  if (rows == 0) return bytes;

  constexpr std::int64_t kLengthStep = 1024;
  std::int64_t longest = 0;
  std::map<std::string, std::pair<const MethodSpec*, std::int64_t>> groups;
  for (const Variant& v : job.variants) {
    if (fed_tokens(v, job) == 0) continue;
    const std::int64_t kept = s.sliding_layers > 0 ? std::min(job.tokens, s.window) : 0;
    longest = std::max({longest, kept, kept_tokens(v.evict, info, job.tokens)});
    longest = std::max(longest, kept_tokens(v.evict, info, job.tokens) + fed_tokens(v, job));
    auto& group = groups[v.decode.method];
    group.first = &v.decode;
    ++group.second;
  }
  longest = (longest + kLengthStep - 1) / kLengthStep * kLengthStep;
  std::int64_t choice = 0;
  std::int64_t attention = static_cast<std::int64_t>(method_memory({}, info, rows, longest).attention);
  for (const auto& [name, group] : groups) {
    const DecodeMethodMemory m = method_memory(*group.first, info, group.second, longest);
    choice = std::max(choice, static_cast<std::int64_t>(m.choice));
    attention = std::max(attention, static_cast<std::int64_t>(m.attention));
    bytes += grown(4 * group.second * m.lists_per_row * (pages_of(longest) + 1));
  }
  const std::int64_t step = rows * (s.layers * (16 * s.kv_heads + 8) + 16), counters = rows * 28,
                     updates = rows * tables * 16, packed = rows * s.q_heads * s.head_dim * 2;
  for (const std::int64_t part : {choice, attention, step, counters, updates, packed}) bytes += grown(part);
  return bytes;
}

JobShape dense_job(std::int64_t tokens, int new_tokens, int variants) {
  JobShape job{.tokens = tokens, .prefill = {}, .variants = {}};
  job.variants.resize(static_cast<std::size_t>(variants),
                      {.evict = {}, .decode = {}, .sampling = {.max_new_tokens = new_tokens}});
  return job;
}

MemoryPlan plan_memory(const ModelFacts& f, Device device, int tp, const JobShape& job) {
  const RankShape s = rank_shape(f, tp);
  const bool cuda = device == Device::kCuda;
  const std::int64_t rows = std::ssize(job.variants);
  std::int64_t positions = job.tokens;
  for (const Variant& v : job.variants)
    positions = std::max<std::int64_t>(positions, job.tokens + v.sampling.max_new_tokens);

  MemoryPlan plan;
  plan.weights = weight_bytes(f, s, device);
  plan.kv_cache = cache_pages(s, job) * kPageTokens * 2 * s.head_dim * (cuda ? 2 : 4);
  plan.activations = activation_bytes(s, device, job.tokens, rows).total() +
                     4 * rope_positions(positions) * s.head_dim * (s.local_rope ? 2 : 1);  // cos and sin
  if (cuda) {
    plan.kv_cache = (plan.kv_cache + kKvPieceBytes - 1) / kKvPieceBytes * kKvPieceBytes;
    plan.workspace = kGemmWorkspaceBytes + gpu_scratch_bytes(s, job) + gpu_decode_bytes(s, job);
  } else {
    const std::int64_t widest = std::max({s.hidden, std::int64_t{s.q_heads} * s.head_dim, s.mlp});
    plan.workspace = 4 * std::min(std::max(job.tokens, rows) * widest, kPackedFloats);  // packed rows
  }
  return plan;
}

}  // namespace lacuna
