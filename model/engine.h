// The engine: a Hugging Face folder in, generated tokens out, under any strategy, alone or tensor-parallel.
// This is the whole interface that the runner and the command line use.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/strategy.h"
#include "core/communicator.h"
#include "core/thread_pool.h"
#include "model/tokenizer.h"

namespace lacuna {

/// What to load and how.
struct EngineOptions {
  std::string folder;
  Device device = Device::kCpu;
  /// Overrides config.json's RoPE scaling, as an object in config.json's own syntax
  /// ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}). Recorded, never
  /// silent.
  std::optional<std::string> rope_override;
  /// Most bytes of this rank's KV cache; 0: what the device has left.
  std::int64_t kv_bytes = 0;
};

/// What is compared between runs: everything that identifies the model and how it was laid out.
struct ModelFacts {
  std::string family;  ///< "qwen2", "llama", "qwen3", "gemma3", "mistral"
  std::int64_t parameters = 0;
  int layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0, hidden = 0, mlp = 0, vocab = 0;
  int sliding_layers = 0, sliding_window = 0;
  std::int64_t max_positions = 0;
  std::string rope;   ///< RoPE settings in effect, as JSON text
  std::string dtype;  ///< Of the weights as stored: "bfloat16", "float16", "float32"
  bool tied_embeddings = false;
  std::string config_hash, tokenizer_hash, weights_hash;
};

struct SamplingOptions {
  int max_new_tokens = 1;
  float temperature = 0;  ///< 0: greedy, ties to the lowest id
  float top_p = 1;
  std::uint64_t seed = 0;
  bool ignore_stop = false;
};

/// One decode variant of a shared prefill.
struct Variant {
  MethodSpec evict, decode;
  SamplingOptions sampling;
};

struct VariantResult {
  std::vector<TokenId> ids;  ///< Generated, without the stop token.
  bool stopped = false;      ///< By a stop token rather than by length.
  /// Over the layers a strategy applies to (global attention). Index costs include the evictor's.
  AttentionCounts decode_sparse;
  AttentionCounts decode_all;                    ///< Over all layers.
  std::int64_t kv_bytes_resident = 0;            ///< After eviction, this variant alone.
  std::int64_t kv_bytes_resident_dense = 0;      ///< What the full prompt would hold.
  double evict_seconds = 0, decode_seconds = 0;  ///< Of the batch it decoded in.
  /// When asked for: [vocab] per token of ids, what the model says after reading that token.
  std::vector<std::vector<float>> logits;
  std::string error;  ///< Not empty: this variant failed and says why; the others are unaffected.
};

/// Bytes of one rank, by what they are for: planned before a job, counted while it ran. On a GPU what was
/// asked for: the driver rounds large pieces up to 2 MiB, and CUDA itself, its kernels and NCCL hold some
/// hundred MiB beside, which nobody can ask for in advance.
struct MemoryPlan {
  std::int64_t weights = 0, kv_cache = 0, activations = 0, workspace = 0;
  std::int64_t total() const { return weights + kv_cache + activations + workspace; }
};

struct JobResult {
  std::vector<VariantResult> variants;
  AttentionCounts prefill_sparse, prefill_all;
  double prefill_seconds = 0;
  double linear_flops = 0;           ///< Matrix products outside attention, prefill.
  MemoryPlan peak;                   ///< The most this rank held; its workspace is whatever is not the rest.
  std::int64_t peak_bytes = 0;       ///< peak.total()
  std::vector<float> prompt_logits;  ///< When asked for: of the last prompt token, [vocab].
};

struct JobRequest {
  std::span<const TokenId> prompt;
  MethodSpec prefill;
  std::span<const Variant> variants;  ///< All decode from the one prefill, as one batch.
  std::uint64_t seed = 0;
  bool want_logits = false;
  /// Called for each new token on rank 0 (variant, id); may be empty.
  std::function<void(std::size_t, TokenId)> on_token;
  /// Polled between layers and steps; true makes run() throw kResource "cancelled".
  std::function<bool()> cancelled;
  /// Called after each layer of the prefill with its Q, K and V, where the device has them: for captures and
  /// pictures. May be empty.
  std::function<void(int layer, const PrefillInput&)> on_layer = {};
};

/// What a job's memory depends on. Methods without a name are dense (prefill, decode) and none (evict).
struct JobShape {
  std::int64_t tokens = 0;
  MethodSpec prefill;
  std::vector<Variant> variants;  ///< none: a prefill alone, which stores no cache
  bool want_logits = false;
};
/// `variants` times the same: nothing evicted, every page read, `new_tokens` each.
JobShape dense_job(std::int64_t tokens, int new_tokens, int variants);

/// Collective over `communicator`: every rank constructs it and calls run() with the same request.
class Engine {
 public:
  /// Checks head counts against communicator.size() before anything is loaded; says which degrees would work
  /// (kUsage).
  static std::unique_ptr<Engine> load(const EngineOptions& options, Communicator& communicator,
                                      ThreadPool& threads);
  virtual ~Engine() = default;

  virtual const ModelFacts& facts() const = 0;
  virtual std::span<const TokenId> stop_ids() const = 0;
  virtual JobResult run(const JobRequest& request) = 0;
  virtual MemoryPlan plan_memory(const JobShape& job) const = 0;
};

/// True when this build has the CUDA engine and this process sees a GPU: what device "auto" asks.
bool cuda_engine_usable();

/// What plan, cost model and scheduler need, without loading weights: sizes from config.json; hashes of the
/// files that are there (of large weights a sample, see Weights::fingerprint()).
ModelFacts read_model_facts(const std::string& folder);
/// What one rank of `tp` will hold at most. Exact, but for what data decides: how long a variant's answer is
/// (its limit is planned), how Ada-SnapKV shares its budget among heads (evenly), how many columns and
/// diagonals flexprefill keeps (a quarter). A build without CUDA guesses the workspaces of GPU methods.
MemoryPlan plan_memory(const ModelFacts& facts, Device device, int tp, const JobShape& job);

}  // namespace lacuna
