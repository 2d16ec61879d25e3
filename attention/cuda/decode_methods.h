// The decode selectors on the GPU. A step's choice is a fixed sequence of kernels whose shape depends on host
// constants alone, so that it can be captured in a CUDA graph; what changes from step to step (page tables,
// lengths, budgets) is read from device memory.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "attention/cuda/attention_cuda.h"
#include "attention/strategy.h"

namespace lacuna {

/// A method's numbers for one sequence; the array of a batch lives in device memory.
struct DecodeBudget {
  std::int32_t pages = 0;  ///< quest, oracle_top_k, twilight: pages beside the current one; streaming: window
  std::int32_t sinks = 0;  ///< streaming
  double mass = 0;         ///< oracle_top_p, twilight
};

/// What one sequence executed under page lists.
struct DecodeCounters {
  unsigned long long visited_cells;   ///< (query head, key) pairs
  unsigned long long computed_cells;  ///< the same, whole pages
  unsigned long long read_tokens;     ///< keys read, once per list
};

/// `rows` sequences of one group in one layer. All pointers are device memory.
struct DecodeChoice {
  /// bf16 [rows, q_heads, head_dim]. Lists per kv head need whole groups: q_heads = kv_heads * group.
  const void* q = nullptr;
  const void* pool = nullptr;
  std::int64_t page_elements = 0;
  const DevicePagedHead* heads = nullptr;  ///< [rows, kv_heads], newest token included
  void* const* states = nullptr;  ///< [rows]: this layer's state of each sequence; null without states
  const DecodeBudget* budgets = nullptr;  ///< [rows]
  int rows = 0;
  LayerInfo info;
  std::int64_t max_tokens = 0;     ///< No head is longer during the life of a captured graph.
  std::int32_t* lists = nullptr;   ///< [rows, kv_heads or q_heads, list_stride]: sorted page indices
  std::int32_t* counts = nullptr;  ///< [rows, kv_heads or q_heads]
  std::int64_t list_stride = 0;    ///< at least the pages of max_tokens
  int* not_finite = nullptr;       ///< [rows]: set to 1 where a score is NaN or infinite (never cleared)
  /// [rows]: what the lists visit is added, for the query heads of this rank, [first_reader, end_reader) of
  /// all; null: not counted.
  DecodeCounters* counters = nullptr;
  int first_reader = 0, end_reader = 0;
  /// DecodeParams::settled, and the same for states, but for the parts of each head's last page.
  bool settled = false;
};

class CudaDecodeSelector {
 public:
  virtual ~CudaDecodeSelector() = default;
  /// Sequences whose selectors have the same key can be chosen for by one choose(), whatever their budgets.
  virtual std::string group_key() const = 0;
  virtual bool lists_per_q_head() const { return false; }
  virtual DecodeBudget budget() const = 0;
  /// Bytes of one layer's state for heads of up to max_tokens; 0: none.
  virtual std::size_t state_bytes(const LayerInfo& info, std::int64_t max_tokens) const = 0;
  /// Before the first step: brings the states up to date with all tokens of the heads.
  virtual void prepare(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const = 0;
  /// Takes the newest token into the states and writes lists and counts.
  virtual void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const = 0;
  virtual std::size_t workspace_bytes(const DecodeChoice& choice) const = 0;
  /// What one step's choice costs for one sequence whose kv heads hold head_tokens[kv_heads] tokens: the
  /// formulas of the CPU method (index_flops, index_bytes_read in bytes of bf16).
  virtual void add_cost(const LayerInfo& info, std::span<const std::int64_t> head_tokens,
                        AttentionCounts& counts) const = 0;
};

/// Null for `dense`.
std::unique_ptr<CudaDecodeSelector> make_cuda_decode_selector(const MethodSpec& spec);

}  // namespace lacuna
