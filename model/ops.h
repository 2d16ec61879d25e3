// What a transformer layer is made of, once per device. The transformer calls this interface and knows
// nothing of devices; CpuOps (ops_cpu.cpp) computes in float32, CudaOps (ops_cuda.cpp) in bfloat16 with
// float32 accumulation.
//
// All tensors are row-major and live on device(), with activation_dtype() unless said otherwise; spans are
// host memory and may be reused as soon as a call returns. Calls of one Ops run in order (on CUDA: on one
// stream) and need not have finished when they return, except where a function returns values to the host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/strategy.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

namespace lacuna {

/// A part of a weight matrix in host memory (mapped file): row r, column c stands at data + r * row_stride +
/// c.
struct MatrixSlice {
  const void* data = nullptr;
  DType dtype = DType::kF32;  ///< kF32, kBF16 or kF16.
  std::int64_t rows = 0, cols = 0;
  std::int64_t row_stride = 0;  ///< In elements.
};

/// A weight matrix [outputs, inputs] as one device's `linear` wants it: only the Ops that made it can read
/// `storage`.
struct LinearWeight {
  std::int64_t outputs = 0, inputs = 0;
  DType dtype = DType::kF32;  ///< Of the stored elements.
  Buffer storage;
  const void* shared = nullptr;  ///< CUDA: the elements, when an embedding owns them; storage is then empty.
  Tensor bias;                   ///< [outputs], float32 on the CPU, bfloat16 on CUDA; or empty.
};

/// Rows [first_row, first_row + rows) of an embedding matrix [vocab, hidden] on the device.
struct EmbeddingWeight {
  std::int64_t first_row = 0, rows = 0, hidden = 0;
  TensorView table;  ///< [rows, hidden], stored dtype. On the CPU it looks into the mapped file.
  Buffer storage;    ///< What `table` points to, when it was copied.
};

/// cos and sin of one RoPE, float32 [positions, head_dim / 2] on the device, attention factor included.
struct RopeTable {
  Tensor cos, sin;
};

enum class Activation : std::uint8_t { kSilu, kGeluTanh };

/// What happens to q and k between their projection and attention: RMS norm per head (Qwen3, Gemma 3), then
/// rotation.
struct HeadNorms {
  const TensorView* q_weight = nullptr;  ///< float32 [head_dim] or null: no norm.
  const TensorView* k_weight = nullptr;
  float eps = 0;
};

/// A norm and the matrix that its result meets.
struct NormedLinear {
  const TensorView& norm;  ///< float32 [inputs]
  float eps;
  const LinearWeight& w;
  TensorView normed;  ///< [n, inputs] of memory that may be used on the way
};

/// From the residual stream to the rotated heads of a decode step.
struct QkvProjection {
  NormedLinear linear;
  TensorView qkv;     ///< [n, outputs] of memory that may be used on the way
  HeadsView q, k, v;  ///< in qkv
  HeadNorms norms;
  const RopeTable& rope;
  TensorView positions;  ///< int32 [n] on the device
};

/// Rows of one kv head on their way into pages: `count` tokens, taken from rows `positions` of k and v (or
/// from row_begin, row_begin + 1, ... when positions is empty) to cache slots first_slot, first_slot + 1, ...
/// Slot s is row s % kPageTokens of page page_ids[s / kPageTokens].
struct KvWrite {
  std::span<const std::int32_t> page_ids;
  std::int64_t first_slot = 0;
  std::int64_t count = 0;
  int head = 0;  ///< Local kv head in k and v.
  std::int64_t row_begin = 0;
  std::span<const std::int32_t> positions = {};
};

struct PageCopy {
  std::int32_t from, to;
};

/// The memory behind page ids: page p starts at base + p * page_elements. float32 on CPU, bfloat16 on CUDA.
struct PoolView {
  void* base = nullptr;
  std::int64_t page_elements = 0;  ///< 2 * kPageTokens * head_dim
};

/// A sequence while it decodes: its decode method with what that remembers (page bounds, ...), and what the
/// device keeps of it (page tables, counters). Made once per variant, used for all of its steps.
class DecodeSequence {
 public:
  virtual ~DecodeSequence() = default;
  /// Bytes that the method's state adds to the resident cache.
  virtual std::size_t state_bytes() const = 0;
  /// Adds what was executed since the last call: `sparse` for the layers without a sliding window, `all` for
  /// all. Waits for the device.
  virtual void take_counts(AttentionCounts& sparse, AttentionCounts& all) = 0;
};

/// One sequence's part of one decode step.
struct DecodeRow {
  DecodeSequence* sequence = nullptr;
  /// [layers * kv_heads]; the slot of the step's token is included, its rows are not written yet. Must stay
  /// valid until the step's last layer.
  std::span<const PagedHead> heads;
  std::int64_t context_tokens = 0;  ///< What an uncut cache would hold: for accounting.
  std::uint64_t seed = 0;           ///< For methods that draw random numbers.
  /// Filled when the method threw; the sequence then reads every page. Rows with an error are computed, but
  /// mean nothing.
  std::string* error = nullptr;
};

/// Memory that pages live in.
class KvMemory {
 public:
  virtual ~KvMemory() = default;
  virtual void* base() const = 0;
  virtual std::size_t bytes() const = 0;
  /// Makes bytes [0, end) usable. Throws kResource when the device has no memory left for them; what was
  /// usable stays so. Nothing to do where memory is taken when touched (CPU).
  virtual void commit(std::size_t end) = 0;
  /// The range holds nothing any more: gives it back to the system, or as much of it as the device's
  /// granularity allows; commit() again before it is used.
  virtual void discard(std::size_t begin, std::size_t bytes) = 0;
  /// Bytes with memory behind them, used or not; 0 where memory is taken when touched (CPU).
  virtual std::size_t committed() const { return 0; }
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual Device device() const = 0;
  virtual DType activation_dtype() const = 0;
  /// Bytes of device memory that can still be allocated.
  virtual std::int64_t free_bytes() const = 0;

  /// Before a job: makes the device's own workspaces as large as planned, scratch memory of the layers
  /// (gpu_scratch_bytes) at once and what decoding holds (gpu_decode_bytes) as it decodes; what an earlier
  /// job left beyond that goes back. Nothing to do where there are none (CPU).
  virtual void fit_workspaces(std::int64_t scratch_bytes, std::int64_t decode_bytes) {
    (void)scratch_bytes;
    (void)decode_bytes;
  }

  // --- Memory
  // ---------------------------------------------------------------------------------------------------
  /// Address space for the KV cache; at most `bytes`, perhaps less when the machine grants less.
  virtual std::unique_ptr<KvMemory> reserve_kv(std::size_t bytes) = 0;
  virtual void upload(const void* host, void* device, std::size_t bytes) = 0;
  /// Waits for everything before it.
  virtual void download(const void* device, void* host, std::size_t bytes) = 0;
  virtual void synchronize() = 0;

  // --- Weights (load time)
  // ----------------------------------------------------------------------------------------
  /// Stacks `parts` (same cols) below each other: [sum of rows, cols]. bf16 stays bf16, fp16 and fp32 keep
  /// their values on the CPU; CUDA rounds to bf16. `biases`: one vector (rows = 1) per part, or empty.
  virtual LinearWeight make_linear(std::span<const MatrixSlice> parts,
                                   std::span<const MatrixSlice> biases) = 0;
  virtual EmbeddingWeight make_embedding(const MatrixSlice& rows, std::int64_t first_row) = 0;
  /// The head of a model whose head is its embedding: `rows`, of which `embedding` was made, as a linear. May
  /// share the embedding's memory, which must outlive it.
  virtual LinearWeight make_tied_head(const EmbeddingWeight& embedding, const MatrixSlice& rows) {
    (void)embedding;
    return make_linear({&rows, 1}, {});
  }
  /// float32 [n] = vector + offset (Gemma's norms multiply by 1 + w).
  virtual Tensor make_vector(const MatrixSlice& vector, float offset) = 0;

  // --- Layers
  // -----------------------------------------------------------------------------------------------------
  /// out [n, hidden] = scale * row of the table; zeros for ids outside this rank's rows.
  /// ids int32 [n] on the device.
  virtual void embed(const EmbeddingWeight& table, const TensorView& ids, float scale,
                     const TensorView& out) = 0;
  /// out = x / sqrt(mean(x^2) + eps) * weight, per row. x, out [n, d], may be the same memory. weight float32
  /// [d].
  virtual void rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& out) = 0;
  /// y [n, outputs] = x [n, inputs] w^T + bias, or y += that when `accumulate`. Each row is computed in an
  /// order that does not depend on n or its place, so that a batch gives each row the bits it gets alone
  /// (CPU; on CUDA up to 32 rows).
  virtual void linear(const TensorView& x, const LinearWeight& w, bool accumulate, const TensorView& y) = 0;
  /// The same into float32 y whatever the activation type (logits), then y = cap * tanh(y / cap) when cap >
  /// 0.
  virtual void linear_f32(const TensorView& x, const LinearWeight& w, float cap, const TensorView& y) = 0;
  /// y = linear(rms_norm(x)). Devices may round x * norm and apply the rows' factors to the product.
  virtual void norm_and_linear(const TensorView& x, const NormedLinear& by, const TensorView& y) {
    rms_norm(x, by.norm, by.eps, by.normed);
    linear(by.normed, by.w, false, y);
  }
  /// The same by linear_f32.
  virtual void norm_and_linear_f32(const TensorView& x, const NormedLinear& by, float cap,
                                   const TensorView& y) {
    rms_norm(x, by.norm, by.eps, by.normed);
    linear_f32(by.normed, by.w, cap, y);
  }
  /// out [n, m] = gated_activation(linear(rms_norm(x))); gate_up [n, 2m] is memory that may be used on the
  /// way.
  virtual void norm_and_gated_linear(const TensorView& x, const NormedLinear& by, Activation activation,
                                     const TensorView& gate_up, const TensorView& out) {
    norm_and_linear(x, by, gate_up);
    gated_activation(gate_up, activation, out);
  }
  /// out [n, m] = activation(gate_up[:, :m]) * gate_up[:, m:]. gate_up [n, 2m].
  virtual void gated_activation(const TensorView& gate_up, Activation activation, const TensorView& out) = 0;
  /// y += x, any shape.
  virtual void add(const TensorView& x, const TensorView& y) = 0;
  /// y += rms_norm(x); x is lost.
  virtual void norm_and_add(const TensorView& x, const TensorView& weight, float eps, const TensorView& y) {
    rms_norm(x, weight, eps, x);
    add(x, y);
  }
  /// Norms and rotates q and k in place. Row t of both has position positions[t], int32 [n] on the device.
  /// Rotation pairs channel c with c + head_dim / 2 (the Hugging Face layout).
  virtual void norm_and_rotate(const HeadsView& q, const HeadsView& k, const HeadNorms& norms,
                               const RopeTable& rope, const TensorView& positions) = 0;
  /// Sums x (activation type) over the ranks, in rank order. Does nothing for a team of one.
  virtual void all_reduce(const TensorView& x, Communicator& communicator) = 0;

  // --- Attention
  // --------------------------------------------------------------------------------------------------
  /// The methods of a strategy for this device; a device may have its own implementations.
  virtual std::unique_ptr<PrefillSelector> prefill_selector(const MethodSpec& spec) {
    return make_prefill_selector(spec);
  }
  virtual std::unique_ptr<Evictor> evictor(const MethodSpec& spec) { return make_evictor(spec); }
  /// Chooses with `selector` (null: dense, within the layer's window) and computes out [q_heads, tokens,
  /// head_dim].
  virtual void attention_prefill(const PrefillInput& input, const PrefillSelector* selector,
                                 const HeadsView& out, AttentionCounts& counts) = 0;
  virtual void store_kv(const HeadsView& k, const HeadsView& v, std::span<const KvWrite> writes,
                        const PoolView& pool) = 0;
  virtual void copy_pages(std::span<const PageCopy> copies, const PoolView& pool) = 0;

  // --- Decoding: make_sequence once per variant, then per step begin_step and, inside run_step, decode_layer
  // for every layer in order
  /// `layers`: one LayerInfo per layer; the method serves the layers without a window. The caches will hold
  /// at most `most_tokens` tokens per head.
  virtual std::unique_ptr<DecodeSequence> make_sequence(const MethodSpec& method,
                                                        std::span<const LayerInfo> layers,
                                                        std::int64_t most_tokens) = 0;
  /// The rows of the step; `rows` is copied, what it points to is not.
  virtual void begin_step(std::span<const DecodeRow> rows, const PoolView& pool) = 0;
  /// Runs `body`, which calls the functions of this class with the same tensors in every step of a job with
  /// the same number of rows; on CUDA it is captured once and replayed as a graph. Nothing in `body` may
  /// depend on host values that change from step to step.
  virtual void run_step(Communicator& communicator, const std::function<void()>& body) {
    (void)communicator;
    body();
  }
  /// Writes row i of k and v ([n, kv_heads * head_dim]) into the newest slot of row i's heads, chooses, and
  /// computes out row i ([n, q_heads * head_dim]).
  virtual void decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                            Communicator& communicator, const HeadsView& out) = 0;
  /// decode_layer of the heads that `by` makes of x.
  virtual void project_and_decode_layer(const TensorView& x, const QkvProjection& by, const LayerInfo& info,
                                        Communicator& communicator, const HeadsView& out) {
    norm_and_linear(x, by.linear, by.qkv);
    norm_and_rotate(by.q, by.k, by.norms, by.rope, by.positions);
    decode_layer(by.q, by.k, by.v, info, communicator, out);
  }

  // --- Results
  // ----------------------------------------------------------------------------------------------------
  /// Per row of logits (float32 [n, vocab], device): the largest value and its lowest index; NaN anywhere in
  /// the row gives index -1. Returns to the host.
  virtual void argmax(const TensorView& logits, std::span<float> values, std::span<std::int32_t> indices) = 0;
  /// Communicator::all_gather for host memory, whatever memory the communicator works on.
  virtual void all_gather_host(const void* send, void* receive, std::size_t bytes,
                               Communicator& communicator) {
    communicator.all_gather(send, receive, bytes);
  }
};

/// float32 on the threads of `pool`, which must outlive it.
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool);
#if LACUNA_HAS_CUDA_ENGINE
/// On the current device.
std::unique_ptr<Ops> make_cuda_ops(ThreadPool& pool);
#endif

}  // namespace lacuna
