// The cost model, in one place: plan, scheduler and analysis ask here what a prompt costs.
//
// Two countings stand side by side and are never mixed:
//   paper_*   the formulas that "The Sparse Frontier" (arXiv 2504.17768) plots against. No causal half; kept
//   as printed. causal_*  what Lacuna's kernels do: cells under the causal mask, sliding-window layers with
//   their own window,
//             logits for the last token only.
// The causal numbers are predictions from a model's shape; what a run really did is measured and stored in
// its results.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

/// The numbers of a decoder-only transformer that decide its cost. model/engine.h's ModelFacts has the same
/// names.
struct ModelShape {
  double parameters =
      0;  ///< All of them, embeddings included; 0 when unknown (weight_elements() then stands in).
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int hidden = 0;
  int mlp = 0;
  int vocab = 0;
  int sliding_layers =
      0;  ///< Of `layers`: those that see only the last sliding_window keys. No strategy touches them.
  int sliding_window = 0;

  int global_layers() const { return layers - sliding_layers; }
  /// Elements of the matrices that one token passes through: projections, MLP and output head, without the
  /// embedding table (one row of it is read) and norms.
  double weight_elements() const;
  /// Throws kUsage "WHERE: ..." unless every number is possible (positive, kv_heads divides q_heads, ...).
  void check(const std::string& where) const;
};

/// A ModelShape from anything with the same member names (model/engine.h's ModelFacts).
template <class Facts>
ModelShape shape_of(const Facts& f) {
  return {.parameters = static_cast<double>(f.parameters),
          .layers = f.layers,
          .q_heads = f.q_heads,
          .kv_heads = f.kv_heads,
          .head_dim = f.head_dim,
          .hidden = f.hidden,
          .mlp = f.mlp,
          .vocab = f.vocab,
          .sliding_layers = f.sliding_layers,
          .sliding_window = f.sliding_window};
}
/// From {"layers": 28, "q_heads": 28, ...}; sliding_* and parameters may be absent. Throws kUsage starting
/// with `where`.
ModelShape parse_model_shape(const nlohmann::json& given, const std::string& where);
nlohmann::json to_json(const ModelShape& shape);

/// A published shape by name ("Qwen2.5-7B", "Llama-3.1-70B", "Gemma-3-12B"), or nothing. For planning without
/// a model.
std::optional<ModelShape> find_published_shape(std::string_view name);
std::vector<std::string> published_shape_names();

/// FLOPs (prefill, v1 decode), elements (v2 decode) or bytes, by where they arise.
struct CostBreakdown {
  double embedding = 0;
  double projections = 0;  ///< Q, K, V and O
  double attention = 0;    ///< scores, softmax, weighted sum; for memory: the KV cache
  double mlp = 0;
  double head = 0;   ///< logits
  double index = 0;  ///< choosing what to keep

  double total() const { return embedding + projections + attention + mlp + head + index; }
  /// Share of attention in the sense of the paper's figures: the projections count as attention.
  double attention_share() const { return (projections + attention + index) / total(); }
};

// --- The paper's formulas (paper sections "Computational cost" and appendix; L tokens, density = 1 -
// sparsity) --------

/// Which of the paper's two countings. v2 prints the formulas below. v1 counted decoding in FLOPs as well, v2
/// counts it in memory elements. kFigures is what reproduces the numbers printed in v2's figures: in prefill
/// the density also scales the projections (5x sparsity: 1.5/2.2/2.8 times faster), in decoding K and V
/// projections have their real, grouped width (cache share 7 -> 35 % at batch 1, 80 -> 97 % at batch 64).
enum class PaperCost { kV1, kV2, kFigures };
std::string_view name_of(PaperCost version);
/// "v1", "v2", "figures"; throws kUsage with the nearest valid name.
PaperCost parse_paper_cost(std::string_view name, const std::string& where);

/// FLOPs of one prefill: B [2Ld + N(2Ld(2d + 2 d_h n_kv) + rho(4hL^2 d_h + 3hL^2)) + N(6Ldm + 2Lm) + 2LdV].
CostBreakdown paper_prefill_flops(const ModelShape& shape, double tokens, double density,
                                  PaperCost version = PaperCost::kV2, double batch = 1);
/// One decode step after `tokens` cached tokens. kV2: memory in elements, N(4d^2 + 3dm) + dV + d + B N 2 L
/// d_h n_kv rho; kFigures: 2d^2 + 2d d_h n_kv in place of 4d^2. kV1: FLOPs of the same step, the prefill
/// formula for one query.
CostBreakdown paper_decode_cost(const ModelShape& shape, double tokens, double density,
                                PaperCost version = PaperCost::kV2, double batch = 1);
/// Vertical-Slash: B N h [2 d_h L W + 5 L W + 2L log2 L + (L/64)(k_v + k_s)]. (Printed with d; per-head width
/// is meant.)
double paper_vertical_slash_index_flops(const ModelShape& shape, double tokens, double window,
                                        double verticals, double slashes, double batch = 1);
/// Quest: B N n_kv 2 d_h L / p, in elements.
double paper_quest_index_elements(const ModelShape& shape, double tokens, double page, double batch = 1);

// --- What the kernels do
// --------------------------------------------------------------------------------------------

/// Query-key pairs under the causal mask of `tokens` queries on `tokens` keys; window 0: no sliding window.
double causal_cells(double tokens, double window = 0);

/// FLOPs of one prefill as Lacuna computes it: 4 head_dim per visited cell, sparsity in the global layers
/// only, 2 per weight and token in the linear layers, logits for the last token. `index_flops` is added as it
/// is.
CostBreakdown causal_prefill_flops(const ModelShape& shape, double tokens, double sparsity,
                                   double index_flops = 0);

/// One decode step of `batch` sequences, each with `tokens` tokens in its cache before eviction.
struct DecodeCost {
  CostBreakdown flops;  ///< For the whole batch.
  CostBreakdown bytes;  ///< Read from memory: weights once, the KV cache of every sequence, index data.
};
/// `sparsity`: share of the cached keys that the step leaves out, in the global layers. `element_bytes`: 2
/// for bf16.
DecodeCost causal_decode_step(const ModelShape& shape, double tokens, double sparsity, double batch = 1,
                              double element_bytes = 2, double index_flops = 0, double index_bytes = 0);

/// Bytes of K and V that stay resident for one sequence; sliding layers keep at most their window.
double resident_kv_bytes(const ModelShape& shape, double tokens, double resident_sparsity,
                         double element_bytes = 2);

/// What choosing costs, as far as it can be told from a method's name and numbers. Zero for methods that look
/// at nothing (dense, fixed patterns). An estimate for plans: runs measure it.
struct IndexCost {
  double prefill_flops = 0;  ///< Per prompt, over the global layers (prefill selectors and evictors).
  double decode_flops = 0;   ///< Per step and sequence.
  double decode_bytes = 0;   ///< Per step and sequence.
};
struct IndexParams {
  double window = 256;  ///< W: last queries whose attention is looked at
  double block = 16;    ///< rows of a pooled block (block_sparse), tokens of a page (quest)
  double element_bytes = 2;
};
IndexCost index_cost(std::string_view method, const ModelShape& shape, double tokens,
                     const IndexParams& params = {});

// --- Seconds
// --------------------------------------------------------------------------------------------------------

/// How fast one device is. `lacuna bench --profile` measures one (sweeps/profile.h); data sheets give the
/// rest. What is 0 or absent below the line is not known apart and follows from the numbers above it.
struct HardwareProfile {
  std::string name;
  double linear_flops_per_s = 0;     ///< Matrix products of the linear layers.
  double attention_flops_per_s = 0;  ///< Dense prefill attention.
  double bytes_per_s = 0;            ///< Weights that decode steps read.
  double link_bytes_per_s = 0;  ///< Between ranks of a team, per direction; 0: communication costs nothing.
  double step_overhead_s = 0;   ///< Fixed cost of a decode step (sampling, bookkeeping).
  // ---
  double layer_overhead_s = 0;     ///< Per layer and decode step: launches, waking threads.
  double sequence_overhead_s = 0;  ///< Per sequence and decode step, whatever its cache holds.
  double kv_bytes_per_s = 0;       ///< Keys and values that decode attention reads.
  double load_bytes_per_s = 0;     ///< Weights from disk (or its cache) to their place.
  std::int64_t memory_bytes = 0;   ///< That the device's jobs may use.
  std::string device = {};         ///< "cpu" or "cuda"; empty: not said.
  std::string measured = {};       ///< When, by which program, on which shape: for people.
  /// Prefill attention over a method's lists, in visited FLOPs; and choosing, in the FLOPs of index_cost().
  std::map<std::string, double, std::less<>> sparse_attention_flops_per_s = {};
  std::map<std::string, double, std::less<>> index_flops_per_s = {};

  double attention_rate(std::string_view method) const;
  double index_rate(std::string_view method) const;
  double kv_rate() const { return kv_bytes_per_s > 0 ? kv_bytes_per_s : bytes_per_s; }
};
/// Data-sheet peaks ("h100-peak", "h200-peak", "a100-peak"): times from them are lower bounds, not
/// predictions.
std::span<const HardwareProfile> datasheet_profiles();
/// By name. Throws kUsage starting with `where`, with the nearest name.
const HardwareProfile& find_hardware_profile(std::string_view name, const std::string& where);

/// Seconds of one prefill on a team of `tp` devices: linear + attention + two all-reduces per layer.
/// `method`: the prefill selector, whose measured rates are used where there are some.
double prefill_seconds(const ModelShape& shape, double tokens, const CostBreakdown& flops,
                       const HardwareProfile& hardware, int tp = 1, double element_bytes = 2,
                       std::string_view method = "dense");
/// Seconds of one decode step. The linear layers take the longer of reading weights and computing, attention
/// the longer of reading the cache and computing; overhead and all-reduces come on top.
double decode_step_seconds(const ModelShape& shape, const DecodeCost& cost, const HardwareProfile& hardware,
                           int tp = 1, double batch = 1, double element_bytes = 2);
/// Seconds that a decode method spends on choosing, per step and sequence.
double decode_index_seconds(const IndexCost& cost, std::string_view method, const HardwareProfile& hardware,
                            int tp = 1);

}  // namespace lacuna
