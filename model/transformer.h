// The forward pass, for both devices: it calls Ops and knows nothing of the memory behind them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/engine.h"
#include "model/kv_cache.h"
#include "model/model_weights.h"

namespace lacuna {

/// One sequence of a batched decode step.
struct StepSequence {
  TokenId token = 0;
  std::int64_t position = 0;
  SequenceCache* cache = nullptr;
  DecodeSequence* sequence = nullptr;
  std::uint64_t seed = 0;
  /// Filled when this sequence failed; the step goes on without a guarantee for it.
  std::string* error = nullptr;
};

struct PrefillCalls {
  /// Called once per layer, in order, when its rotated q, k and v exist.
  std::function<void(int layer, const PrefillInput& input)> on_layer;
  /// Called before every layer; may throw.
  std::function<void()> between_layers;
  /// Called after every layer's attention with what failed on this rank ("" when nothing did). Collective:
  /// throws on every rank of a team when it failed on any.
  std::function<void(const std::string& error)> agree;
};

class Transformer {
 public:
  /// Collective. All references must outlive it.
  Transformer(const ModelConfig& config, const Weights& files, const Shard& shard, Ops& ops,
              Communicator& communicator, ThreadPool& threads);

  /// Before a job: makes room for a prompt of `tokens`, `positions` in all and a decode batch of up to
  /// `rows`, so that nothing moves in memory while it decodes. What an earlier job left beyond that goes
  /// back.
  void reserve(std::int64_t tokens, std::int64_t positions, std::int64_t rows);
  /// Runs the whole prompt, layer by layer. Adds to counts. Logits of the last token are then in logits(),
  /// one row.
  void prefill(std::span<const TokenId> prompt, const PrefillSelector* selector, std::uint64_t seed,
               const PrefillCalls& calls, AttentionCounts& counts_sparse, AttentionCounts& counts_all);
  /// One token for each sequence; appends to their caches. logits() then has a row per sequence. What was
  /// executed is counted in each DecodeSequence. `agree` is collective: it takes what failed on this rank
  /// while it got ready and gives what failed on any; when something did, no rank computes, and every
  /// sequence has that error.
  void decode(std::span<StepSequence> batch, PagePool& pool,
              const std::function<std::string(const std::string& error)>& agree);

  /// float32 [rows, vocab share] on the device, of the last prefill or decode.
  TensorView logits() const { return logits_view_; }
  LayerInfo layer_info(int layer) const;
  bool sliding(int layer) const { return config_.sliding[static_cast<std::size_t>(layer)]; }
  std::int64_t weight_bytes() const { return weights_.bytes; }
  /// Of these, bytes that stay in the mapped files.
  std::int64_t mapped_weight_bytes() const {
    return weights_.embedding.storage.data() == nullptr
               ? static_cast<std::int64_t>(weights_.embedding.table.bytes())
               : 0;
  }
  /// Bytes of activations and tables held now.
  std::int64_t workspace_bytes() const;

 private:
  /// Memory that grows and is reused from call to call.
  struct Scratch {
    Buffer buffer;
  };
  TensorView take(Scratch& scratch, std::int64_t rows, std::int64_t cols, DType dtype);
  TensorView take(Scratch& scratch, std::int64_t rows, std::int64_t cols) {
    return take(scratch, rows, cols, ops_.activation_dtype());
  }
  static TensorView rows_of(const TensorView& matrix, std::int64_t begin, std::int64_t count);
  HeadsView heads_of(const TensorView& qkv, int first_head, int heads) const;
  void ensure_rope(std::int64_t positions);
  const RopeTable& rope_of(int layer) const {
    return sliding(layer) && separate_local_rope_ ? local_rope_ : rope_;
  }

  QkvProjection qkv_projection(int layer, const TensorView& positions, const TensorView& qkv);
  TensorView upload_indices(Scratch& scratch, std::span<const std::int32_t> values);
  void run_attention(int layer, const PrefillInput& input, const PrefillSelector* selector,
                     const TensorView& attention, const PrefillCalls& calls, AttentionCounts& counts_sparse,
                     AttentionCounts& counts_all);
  void finish_attention(const TensorView& attention, int layer, const TensorView& x);
  void run_mlp(int layer, const TensorView& x);
  /// Work between two exchanges with the other ranks. What fails on one rank of a team must not keep it from
  /// the exchanges that the others wait in: it is remembered until they hear of it, and what this rank would
  /// compute until then is left out. A rank alone throws.
  template <class Work>
  void locally(const Work& work) {
    if (failure_.empty()) always_locally(work);
  }
  /// The same for work that may talk with other ranks itself: never left out.
  template <class Work>
  void always_locally(const Work& work);
  void add_to_residual(const TensorView& in, const LinearWeight& w, const Tensor& post_norm,
                       const TensorView& x);
  void compute_logits(const TensorView& x);
  void extend_caches(std::span<StepSequence> batch, PagePool& pool);
  void decode_layers(const TensorView& ids, const TensorView& positions);

  const ModelConfig& config_;
  const Shard shard_;
  Ops& ops_;
  Communicator& communicator_;
  ThreadPool& threads_;
  ModelWeights weights_;
  RopeTable rope_, local_rope_;
  bool separate_local_rope_ = false;
  std::int64_t rope_positions_ = 0;

  Scratch x_, normed_, qkv_, attention_, gate_up_, activated_, partial_, logits_, id_buffer_,
      position_buffer_;
  TensorView logits_view_;
  std::vector<std::int32_t> ids_, positions_;
  std::string failure_;  // of this rank, not yet known to the others
  // Per decode step, kept to avoid allocations.
  std::vector<PagedHead> paged_;  // [batch, layers, kv_heads]
  std::vector<DecodeRow> rows_;
  std::vector<PageCopy> copies_;
};

}  // namespace lacuna
