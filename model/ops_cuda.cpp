// Ops on CUDA: bfloat16 activations, float32 sums, one stream. Checks and dispatches; the kernels are in
// model/cuda and attention/cuda, the matrix products in cuBLASLt. In steady state nothing here allocates, and
// only what returns values to the host waits.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "attention/accounting.h"
#include "attention/cuda/attention_cuda.h"
#include "attention/cuda/prefill_methods.h"
#include "core/cuda.h"
#include "core/error.h"
#include "model/cuda/decode_step.h"
#include "model/cuda/device_communicator.h"
#include "model/cuda/gemm.h"
#include "model/cuda/kernels.h"
#include "model/cuda/kv_memory.h"
#include "model/cuda/pinned_ring.h"
#include "model/cuda/skinny.h"
#include "model/cuda/weight_loader.h"
#include "model/ops.h"

namespace lacuna {

namespace {

constexpr std::int64_t kVectorElements = 8;  // bfloat16 in 16 bytes
/// Values that travel through the host at once when ranks sum there.
constexpr std::int64_t kHostSumElements = std::int64_t{1} << 20;
/// Workspace beyond what a job needs that stays from an earlier job.
constexpr std::size_t kKeepWorkspaceBytes = std::size_t{8} << 20;

__nv_bfloat16* bf16(const TensorView& x) {
  LACUNA_CHECK(x.dtype == DType::kBF16 && x.device == Device::kCuda,
               "a {} tensor on {} instead of bfloat16 on CUDA", name_of(x.dtype), name_of(x.device));
  return static_cast<__nv_bfloat16*>(x.data);
}
__nv_bfloat16* bf16(const HeadsView& x) {
  LACUNA_CHECK(x.dtype == DType::kBF16 && x.device == Device::kCuda,
               "{} heads on {} instead of bfloat16 on CUDA", name_of(x.dtype), name_of(x.device));
  LACUNA_CHECK(x.head_stride % kVectorElements == 0 && x.token_stride % kVectorElements == 0 &&
                   reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0,
               "heads that are not aligned to 16 bytes (strides {} and {})", x.head_stride, x.token_stride);
  return static_cast<__nv_bfloat16*>(x.data);
}

void check_vector_rows(std::int64_t columns, const char* what) {
  LACUNA_REQUIRE(
      columns % kVectorElements == 0,
      "the CUDA engine needs {} in multiples of {}, not {}; use device cpu or another number of ranks", what,
      kVectorElements, columns);
}

/// Starts every choice with empty scratch memory.
class ScratchEvictor final : public Evictor {
 public:
  ScratchEvictor(std::unique_ptr<Evictor> inner, DeviceScratch& scratch)
      : inner_(std::move(inner)), scratch_(scratch) {}
  std::vector<std::vector<std::int32_t>> keep(const PrefillInput& input,
                                              AttentionCounts& counts) const override {
    scratch_.clear();
    return inner_->keep(input, counts);
  }

 private:
  std::unique_ptr<Evictor> inner_;
  DeviceScratch& scratch_;
};

/// What count_tile_cells_cuda counts for dense lists, in closed form.
AttentionCounts count_dense(std::int64_t tokens, int heads, int window) {
  constexpr std::int64_t kSliceRows = 16, kTileKeys = 64;
  AttentionCounts counts;
  double computed = 0;
  for (std::int64_t row = 0; row < tokens; row += kSliceRows) {
    const std::int64_t end = std::min(tokens, row + kSliceRows);
    const std::int64_t first_key = window > 0 ? std::max<std::int64_t>(0, row - window + 1) : 0;
    computed += static_cast<double>((end - first_key + kTileKeys - 1) / kTileKeys * kTileKeys * kSliceRows);
  }
  counts.causal_cells = counts.visited_cells = heads * causal_cells(tokens, window);
  counts.computed_cells = heads * computed;
  return counts;
}

class CudaOps final : public Ops {
 public:
  explicit CudaOps(ThreadPool& pool)
      : scratch_(stream_),
        gemm_(stream_),
        ring_(stream_),
        loader_(ring_, pool),
        decode_(std::in_place, stream_) {}
  ~CudaOps() override { (void)cudaStreamSynchronize(stream_); }
  CudaOps(const CudaOps&) = delete;
  CudaOps& operator=(const CudaOps&) = delete;

  Device device() const override { return Device::kCuda; }
  DType activation_dtype() const override { return DType::kBF16; }
  std::int64_t free_bytes() const override {
    std::size_t free = 0, total = 0;
    LACUNA_CUDA(cudaMemGetInfo(&free, &total));
    return static_cast<std::int64_t>(free);
  }

  void fit_workspaces(std::int64_t scratch_bytes, std::int64_t decode_bytes) override;
  std::unique_ptr<KvMemory> reserve_kv(std::size_t bytes) override { return make_cuda_kv_memory(bytes); }
  void upload(const void* host, void* device, std::size_t bytes) override { ring_.copy(host, device, bytes); }
  void download(const void* device, void* host, std::size_t bytes) override {
    if (bytes > 0) LACUNA_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
    synchronize();
  }
  void synchronize() override { stream_.synchronize(); }

  LinearWeight make_linear(std::span<const MatrixSlice> parts, std::span<const MatrixSlice> biases) override;
  EmbeddingWeight make_embedding(const MatrixSlice& rows, std::int64_t first_row) override;
  LinearWeight make_tied_head(const EmbeddingWeight& embedding, const MatrixSlice& rows) override;
  Tensor make_vector(const MatrixSlice& vector, float offset) override;

  void embed(const EmbeddingWeight& table, const TensorView& ids, float scale,
             const TensorView& out) override;
  void rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& out) override {
    run_norm(x, weight, eps, false, out);
  }
  void norm_and_add(const TensorView& x, const TensorView& weight, float eps, const TensorView& y) override {
    run_norm(x, weight, eps, true, y);
  }
  void linear(const TensorView& x, const LinearWeight& w, bool accumulate, const TensorView& y) override;
  void linear_f32(const TensorView& x, const LinearWeight& w, float cap, const TensorView& y) override;
  void norm_and_linear(const TensorView& x, const NormedLinear& by, const TensorView& y) override;
  void norm_and_linear_f32(const TensorView& x, const NormedLinear& by, float cap,
                           const TensorView& y) override;
  void norm_and_gated_linear(const TensorView& x, const NormedLinear& by, Activation activation,
                             const TensorView& gate_up, const TensorView& out) override;
  void gated_activation(const TensorView& gate_up, Activation activation, const TensorView& out) override;
  void add(const TensorView& x, const TensorView& y) override;
  void norm_and_rotate(const HeadsView& q, const HeadsView& k, const HeadNorms& norms, const RopeTable& rope,
                       const TensorView& positions) override;
  void all_reduce(const TensorView& x, Communicator& communicator) override;

  std::unique_ptr<PrefillSelector> prefill_selector(const MethodSpec& spec) override {
    return make_cuda_prefill_selector(spec, context());
  }
  std::unique_ptr<Evictor> evictor(const MethodSpec& spec) override {
    return std::make_unique<ScratchEvictor>(make_cuda_evictor(spec, context()), scratch_);
  }
  void attention_prefill(const PrefillInput& input, const PrefillSelector* selector, const HeadsView& out,
                         AttentionCounts& counts) override;
  void store_kv(const HeadsView& k, const HeadsView& v, std::span<const KvWrite> writes,
                const PoolView& pool) override;
  void copy_pages(std::span<const PageCopy> copies, const PoolView& pool) override;

  std::unique_ptr<DecodeSequence> make_sequence(const MethodSpec& method, std::span<const LayerInfo> layers,
                                                std::int64_t most_tokens) override {
    return decode_->make_sequence(method, layers, most_tokens);
  }
  void begin_step(std::span<const DecodeRow> rows, const PoolView& pool) override {
    decode_->begin_step(rows, pool);
  }
  void run_step(Communicator& communicator, const std::function<void()>& body) override;
  void decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                    Communicator& communicator, const HeadsView& out) override {
    decode_->decode_layer(q, k, v, info, communicator, out);
  }
  void project_and_decode_layer(const TensorView& x, const QkvProjection& by, const LayerInfo& info,
                                Communicator& communicator, const HeadsView& out) override;

  void argmax(const TensorView& logits, std::span<float> values, std::span<std::int32_t> indices) override;

 private:
  CudaContext context() { return {.stream = stream_, .scratch = &scratch_}; }
  /// Scratch memory with a copy of the pinned `bytes` that ring_.next() gave.
  std::byte* send_to_scratch(std::size_t bytes) {
    auto* device = static_cast<std::byte*>(scratch_.take(bytes));
    ring_.send(device, bytes);
    return device;
  }
  /// Pinned memory for values that come back; grows, and is in use until the stream was waited for.
  void* results(std::size_t bytes) {
    if (results_.bytes() < bytes) {
      results_.reset();
      results_ = Buffer(bytes, Buffer::Kind::kPinned);
    }
    return results_.data();
  }
  void multiply(const TensorView& x, const LinearWeight& w, bool accumulate, bool float_output, void* y);
  void run_norm(const TensorView& x, const TensorView& weight, float eps, bool add, const TensorView& out);
  SkinnyProduct skinny_product(const TensorView& x, const NormedLinear& by) const;
  void sum_through_host(const TensorView& x, Communicator& communicator);
  void copy_pages_at_once(std::span<const PageCopy> copies, const PoolView& pool);

  // The stream goes last: everything else may still have work on it.
  CudaStream stream_;
  DeviceScratch scratch_;
  GemmRunner gemm_;
  PinnedRing ring_;
  WeightLoader loader_;
  Buffer results_;  // pinned
  const Buffer row_factors_{kSkinnyRows * sizeof(float), Buffer::Kind::kDevice};
  CudaEvent counted_;
  std::optional<CudaDecodeStep> decode_;  // always there
};

void CudaOps::fit_workspaces(std::int64_t scratch_bytes, std::int64_t decode_bytes) {
  synchronize();
  const auto scratch = static_cast<std::size_t>(scratch_bytes);
  if (scratch_.capacity() > scratch + kKeepWorkspaceBytes) scratch_ = DeviceScratch(stream_);
  scratch_.reserve(scratch);
  // Pinned memory through which ranks sum and choices return: never asked for in the middle of an exchange.
  results(kHostSumElements * sizeof(float));
  // No sequence is alive between jobs.
  if (decode_->bytes() > static_cast<std::size_t>(decode_bytes) + kKeepWorkspaceBytes)
    decode_.emplace(stream_);
}

// --- Weights
// -----------------------------------------------------------------------------------------------------

LinearWeight CudaOps::make_linear(std::span<const MatrixSlice> parts, std::span<const MatrixSlice> biases) {
  LinearWeight w;
  w.inputs = parts.front().cols;
  w.dtype = DType::kBF16;
  check_vector_rows(w.inputs, "the inputs of every weight matrix");
  for (const MatrixSlice& part : parts) {
    LACUNA_CHECK(part.cols == w.inputs, "stacked matrices have {} and {} columns", part.cols, w.inputs);
    w.outputs += part.rows;
  }
  w.storage = Buffer(static_cast<std::size_t>(w.outputs * w.inputs) * 2, Buffer::Kind::kDevice);
  auto* to = w.storage.as<__nv_bfloat16>();
  for (const MatrixSlice& part : parts) {
    loader_.load(part, to);
    to += part.rows * part.cols;
  }
  if (!biases.empty()) {
    std::int64_t outputs = 0;
    for (const MatrixSlice& bias : biases) outputs += bias.cols;
    LACUNA_CHECK(outputs == w.outputs, "{} biases for {} outputs", outputs, w.outputs);
    w.bias = Tensor(Shape{w.outputs}, DType::kBF16, Device::kCuda);
    auto* bias_to = bf16(w.bias.view());
    for (const MatrixSlice& bias : biases) {
      loader_.load(bias, bias_to);
      bias_to += bias.cols;
    }
  }
  return w;
}

EmbeddingWeight CudaOps::make_embedding(const MatrixSlice& rows, std::int64_t first_row) {
  check_vector_rows(rows.cols, "the hidden size");
  EmbeddingWeight e{
      .first_row = first_row, .rows = rows.rows, .hidden = rows.cols, .table = {}, .storage = {}};
  e.storage = Buffer(static_cast<std::size_t>(rows.rows * rows.cols) * 2, Buffer::Kind::kDevice);
  loader_.load(rows, e.storage.as<__nv_bfloat16>());
  e.table = {.data = e.storage.data(),
             .dtype = DType::kBF16,
             .device = Device::kCuda,
             .shape = {rows.rows, rows.cols}};
  return e;
}

LinearWeight CudaOps::make_tied_head(const EmbeddingWeight& embedding, const MatrixSlice& rows) {
  LACUNA_CHECK(embedding.rows == rows.rows && embedding.hidden == rows.cols,
               "[{}, {}] rows of an embedding of [{}, {}]", rows.rows, rows.cols, embedding.rows,
               embedding.hidden);
  LinearWeight w;
  w.outputs = rows.rows;
  w.inputs = rows.cols;
  w.dtype = DType::kBF16;
  w.shared = embedding.table.data;
  return w;
}

Tensor CudaOps::make_vector(const MatrixSlice& vector, float offset) {
  Tensor out(Shape{vector.cols}, DType::kF32, Device::kCuda);
  loader_.load_floats(vector, offset, out.as<float>());
  return out;
}

// --- Layers
// ------------------------------------------------------------------------------------------------------

void CudaOps::embed(const EmbeddingWeight& table, const TensorView& ids, float scale, const TensorView& out) {
  LACUNA_CHECK(ids.dtype == DType::kI32 && ids.device == Device::kCuda, "ids must be int32 on CUDA");
  LACUNA_CHECK(out.shape[0] == ids.shape[0] && out.shape[1] == table.hidden, "out is {}, expected [{}, {}]",
               out.shape.to_string(), ids.shape[0], table.hidden);
  launch_embed({.table = bf16(table.table),
                .ids = ids.as<std::int32_t>(),
                .out = bf16(out),
                .first_row = table.first_row,
                .rows = table.rows,
                .n = ids.shape[0],
                .hidden = static_cast<int>(table.hidden),
                // Models trained in bfloat16 know the scale in bfloat16 alone (Gemma: 60, not 59.87).
                .scale = to_float(to_bfloat16(scale))},
               stream_);
}

void CudaOps::run_norm(const TensorView& x, const TensorView& weight, float eps, bool add,
                       const TensorView& out) {
  const std::int64_t d = x.shape[1];
  check_vector_rows(d, "the hidden size");
  LACUNA_CHECK(weight.shape.elements() == d && out.shape == x.shape, "x is {}, weight {}, out {}",
               x.shape.to_string(), weight.shape.to_string(), out.shape.to_string());
  launch_rms_norm({.x = bf16(x),
                   .weight = weight.as<float>(),
                   .out = bf16(out),
                   .n = x.shape[0],
                   .d = static_cast<int>(d),
                   .eps = eps,
                   .add = add},
                  stream_);
}

void CudaOps::multiply(const TensorView& x, const LinearWeight& w, bool accumulate, bool float_output,
                       void* y) {
  LACUNA_CHECK(x.shape[1] == w.inputs, "x has {} columns, the weight {} inputs", x.shape[1], w.inputs);
  const void* weights = w.shared != nullptr ? w.shared : w.storage.data();
  LACUNA_CHECK(w.shared != nullptr || w.storage.kind() == Buffer::Kind::kDevice,
               "a weight that is not on CUDA");
  if (x.shape[0] == 0) return;
  const bool bias = !float_output && w.bias.data() != nullptr;
  gemm_.run({.x = bf16(x),
             .w = weights,
             .bias = bias ? w.bias.data() : nullptr,
             .y = y,
             .rows = x.shape[0],
             .outputs = w.outputs,
             .inputs = w.inputs,
             .accumulate = accumulate,
             .float_output = float_output});
}

void CudaOps::linear(const TensorView& x, const LinearWeight& w, bool accumulate, const TensorView& y) {
  LACUNA_CHECK(y.shape[0] == x.shape[0] && y.shape[1] == w.outputs, "y is {}, expected [{}, {}]",
               y.shape.to_string(), x.shape[0], w.outputs);
  multiply(x, w, accumulate, false, bf16(y));
}

void CudaOps::linear_f32(const TensorView& x, const LinearWeight& w, float cap, const TensorView& y) {
  LACUNA_CHECK(y.shape[0] == x.shape[0] && y.shape[1] == w.outputs && y.dtype == DType::kF32,
               "y is {} {}, expected float32 [{}, {}]", name_of(y.dtype), y.shape.to_string(), x.shape[0],
               w.outputs);
  multiply(x, w, false, true, y.data);
  const auto* bias = w.bias.data() != nullptr ? bf16(w.bias.view()) : nullptr;
  launch_finish_logits(y.as<float>(), bias, cap, y.shape[0], y.shape[1], stream_);
}

/// Few rows are normed on their way into the product.
SkinnyProduct CudaOps::skinny_product(const TensorView& x, const NormedLinear& by) const {
  const std::int64_t inputs = by.w.inputs;
  LACUNA_CHECK(x.shape[1] == inputs && by.norm.shape.elements() == inputs,
               "x has {} columns, the norm {}, the weight {} inputs", x.shape[1], by.norm.shape.elements(),
               inputs);
  LACUNA_CHECK(by.w.shared != nullptr || by.w.storage.kind() == Buffer::Kind::kDevice,
               "a weight that is not on CUDA");
  const void* weights = by.w.shared != nullptr ? by.w.shared : by.w.storage.data();
  return {.x = bf16(x),
          .w = static_cast<const __nv_bfloat16*>(weights),
          .bias = by.w.bias.data() != nullptr ? bf16(by.w.bias.view()) : nullptr,
          .norm = by.norm.as<float>(),
          .eps = by.eps,
          .normed = bf16(by.normed),
          .factors = row_factors_.as<float>(),
          .rows = static_cast<int>(x.shape[0]),
          .inputs = static_cast<int>(inputs),
          .outputs = by.w.outputs};
}

void CudaOps::norm_and_linear(const TensorView& x, const NormedLinear& by, const TensorView& y) {
  if (x.shape[0] > kSkinnyRows) return Ops::norm_and_linear(x, by, y);
  LACUNA_CHECK(y.shape[0] == x.shape[0] && y.shape[1] == by.w.outputs, "y is {}, expected [{}, {}]",
               y.shape.to_string(), x.shape[0], by.w.outputs);
  launch_skinny(skinny_product(x, by), {.y = bf16(y)}, stream_);
}

void CudaOps::norm_and_linear_f32(const TensorView& x, const NormedLinear& by, float cap,
                                  const TensorView& y) {
  if (x.shape[0] > kSkinnyRows) return Ops::norm_and_linear_f32(x, by, cap, y);
  LACUNA_CHECK(y.shape[0] == x.shape[0] && y.shape[1] == by.w.outputs && y.dtype == DType::kF32,
               "y is {} {}, expected float32 [{}, {}]", name_of(y.dtype), y.shape.to_string(), x.shape[0],
               by.w.outputs);
  launch_skinny(skinny_product(x, by), {.y = y.data, .float_output = true, .cap = cap}, stream_);
}

void CudaOps::norm_and_gated_linear(const TensorView& x, const NormedLinear& by, Activation activation,
                                    const TensorView& gate_up, const TensorView& out) {
  if (x.shape[0] > kSkinnyRows) return Ops::norm_and_gated_linear(x, by, activation, gate_up, out);
  check_vector_rows(out.shape[1], "the MLP columns of a rank");
  LACUNA_CHECK(out.shape[0] == x.shape[0] && by.w.outputs == 2 * out.shape[1], "out is {}, the weight has {}",
               out.shape.to_string(), by.w.outputs);
  launch_skinny_gated(skinny_product(x, by), {.out = bf16(out), .gelu = activation == Activation::kGeluTanh},
                      stream_);
}

void CudaOps::gated_activation(const TensorView& gate_up, Activation activation, const TensorView& out) {
  const std::int64_t m = out.shape[1];
  check_vector_rows(m, "the MLP columns of a rank");
  LACUNA_CHECK(gate_up.shape[0] == out.shape[0] && gate_up.shape[1] == 2 * m, "gate_up is {}, out {}",
               gate_up.shape.to_string(), out.shape.to_string());
  launch_gated_activation(bf16(gate_up), activation == Activation::kGeluTanh, out.shape[0], m, bf16(out),
                          stream_);
}

void CudaOps::add(const TensorView& x, const TensorView& y) {
  LACUNA_CHECK(x.shape == y.shape, "x is {}, y {}", x.shape.to_string(), y.shape.to_string());
  launch_add(bf16(x), bf16(y), x.shape.elements(), stream_);
}

/// Checks what norm_and_rotate takes.
RotateArgs rotate_args(const HeadsView& q, const HeadsView& k, const HeadNorms& norms, const RopeTable& rope,
                       const TensorView& positions) {
  const int d = q.head_dim;
  LACUNA_REQUIRE(d == 64 || d == 96 || d == 128 || d == 256,
                 "the CUDA engine works with head_dim 64, 96, 128 and 256, not {}; use device cpu", d);
  LACUNA_CHECK(k.head_dim == d && k.tokens == q.tokens && positions.shape[0] == q.tokens,
               "q [{}, {}, {}], k [{}, {}, {}], {} positions", q.heads, q.tokens, d, k.heads, k.tokens,
               k.head_dim, positions.shape[0]);
  LACUNA_CHECK(positions.dtype == DType::kI32 && positions.device == Device::kCuda,
               "positions must be int32 on CUDA");
  return {.q = bf16(q),
          .k = bf16(k),
          .q_head_stride = q.head_stride,
          .q_token_stride = q.token_stride,
          .k_head_stride = k.head_stride,
          .k_token_stride = k.token_stride,
          .q_heads = q.heads,
          .k_heads = k.heads,
          .tokens = q.tokens,
          .head_dim = d,
          .q_weight = norms.q_weight != nullptr ? norms.q_weight->as<float>() : nullptr,
          .k_weight = norms.k_weight != nullptr ? norms.k_weight->as<float>() : nullptr,
          .eps = norms.eps,
          .cos = rope.cos.as<float>(),
          .sin = rope.sin.as<float>(),
          .positions = positions.as<std::int32_t>()};
}

void CudaOps::norm_and_rotate(const HeadsView& q, const HeadsView& k, const HeadNorms& norms,
                              const RopeTable& rope, const TensorView& positions) {
  launch_norm_and_rotate(rotate_args(q, k, norms, rope, positions), stream_);
}

void CudaOps::project_and_decode_layer(const TensorView& x, const QkvProjection& by, const LayerInfo& info,
                                       Communicator& communicator, const HeadsView& out) {
  const RotateArgs rotate = rotate_args(by.q, by.k, by.norms, by.rope, by.positions);
  const NewestSlots slots = decode_->newest_slots(info);
  // A norm per head needs the whole head: more than a block of the product has.
  if (x.shape[0] <= kSkinnyRows && rotate.q_weight == nullptr && rotate.k_weight == nullptr) {
    LACUNA_CHECK(by.linear.w.outputs == std::int64_t{by.q.heads + 2 * by.k.heads} * by.q.head_dim,
                 "{} outputs for {} and 2 x {} heads of {}", by.linear.w.outputs, by.q.heads, by.k.heads,
                 by.q.head_dim);
    launch_skinny_cache(skinny_product(x, by.linear),
                        {.cos = rotate.cos,
                         .sin = rotate.sin,
                         .positions = rotate.positions,
                         .to = slots,
                         .q_heads = rotate.q_heads,
                         .kv_heads = rotate.k_heads,
                         .head_dim = rotate.head_dim},
                        stream_);
  } else {
    norm_and_linear(x, by.linear, by.qkv);
    launch_rotate_to_cache({.rotate = rotate,
                            .v = bf16(by.v),
                            .v_head_stride = by.v.head_stride,
                            .v_token_stride = by.v.token_stride,
                            .to = slots},
                           stream_);
  }
  decode_->attend_layer(info, communicator, out);
}

void CudaOps::all_reduce(const TensorView& x, Communicator& communicator) {
  if (communicator.size() == 1) return;
  if (auto* device = dynamic_cast<DeviceCommunicator*>(&communicator); device != nullptr) {
    device->all_reduce_bf16(bf16(x), static_cast<std::size_t>(x.shape.elements()), stream_);
    return;
  }
  sum_through_host(x, communicator);
}

/// Several ranks on one GPU: float32 through pinned memory, rounded once at the end.
void CudaOps::sum_through_host(const TensorView& x, Communicator& communicator) {
  scratch_.clear();
  const std::int64_t total = x.shape.elements(), most = std::min(total, kHostSumElements);
  auto* device = scratch_.take_array<float>(static_cast<std::size_t>(most));
  auto* host = static_cast<float*>(results(static_cast<std::size_t>(most) * sizeof(float)));
  for (std::int64_t at = 0; at < total; at += most) {
    const std::int64_t count = std::min(most, total - at);
    const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
    launch_to_float(bf16(x) + at, device, count, stream_);
    LACUNA_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
    synchronize();
    communicator.all_reduce_sum(host, static_cast<std::size_t>(count));
    LACUNA_CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_));
    launch_to_bfloat16(device, bf16(x) + at, count, stream_);
  }
  synchronize();  // the pinned memory is free again
}

// --- Attention
// ---------------------------------------------------------------------------------------------------

void CudaOps::attention_prefill(const PrefillInput& input, const PrefillSelector* selector,
                                const HeadsView& out, AttentionCounts& counts) {
  scratch_.clear();
  decode_->forget_graphs();
  const LayerInfo& info = input.info;
  DeviceTileLists lists;
  lists.heads = info.q_heads;
  lists.tokens = input.q.tokens;
  lists.dense = true;
  if (selector != nullptr) {
    const auto* on_device = dynamic_cast<const CudaPrefillSelector*>(selector);
    LACUNA_CHECK(on_device != nullptr, "a prefill selector that was not made by these Ops");
    lists = on_device->select_on_device(input, counts);
  }
  const std::size_t bytes = prefill_workspace_bytes(lists, info.head_dim);
  const CudaWorkspace workspace{.data = scratch_.take(bytes), .bytes = bytes};
  AttentionCounts done;
  if (lists.dense) {
    attention_prefill_cuda(input, lists, out, workspace, stream_);
    done = count_dense(lists.tokens, lists.heads, info.window);
  } else {
    // Counted before the attention, which then runs while the host goes on.
    constexpr std::size_t kCounts = 3;
    auto* counted = scratch_.take_array<unsigned long long>(kCounts);
    auto* host = static_cast<unsigned long long*>(results(kCounts * sizeof(*counted)));
    count_tile_cells_cuda(lists, info.window, counted, workspace, stream_);
    LACUNA_CUDA(cudaMemcpyAsync(host, counted, kCounts * sizeof(*counted), cudaMemcpyDeviceToHost, stream_));
    counted_.record(stream_);
    attention_prefill_cuda(input, lists, out, workspace, stream_);
    counted_.synchronize();
    done.visited_cells = static_cast<double>(host[0]);
    done.causal_cells = static_cast<double>(host[1]);
    done.computed_cells = static_cast<double>(host[2]);
  }
  done.flops = 4.0 * info.head_dim * done.computed_cells;
  counts += done;
}

void CudaOps::store_kv(const HeadsView& k, const HeadsView& v, std::span<const KvWrite> writes,
                       const PoolView& pool) {
  LACUNA_REQUIRE(k.head_dim % kVectorElements == 0, "head_dim {} is not a multiple of {}", k.head_dim,
                 kVectorElements);
  LACUNA_CHECK(pool.page_elements % kVectorElements == 0 &&
                   pool.page_elements >= 2 * std::int64_t{kPageTokens} * k.head_dim,
               "pages of {} elements", pool.page_elements);
  LACUNA_CHECK(writes.size() <= 65535, "{} writes at once", writes.size());
  // Writes, page ids and positions travel as one block.
  std::int64_t ids = 0, positions = 0, most_tokens = 0;
  for (const KvWrite& write : writes) {
    if (write.count == 0) continue;
    const std::int64_t first = write.first_slot / kPageTokens;
    const std::int64_t last = (write.first_slot + write.count - 1) / kPageTokens;
    LACUNA_CHECK(write.first_slot >= 0 && last < std::ssize(write.page_ids), "slots up to {} with {} pages",
                 write.first_slot + write.count, write.page_ids.size());
    LACUNA_CHECK(write.positions.empty() || std::ssize(write.positions) >= write.count,
                 "{} positions for {} tokens", write.positions.size(), write.count);
    ids += last - first + 1;
    if (!write.positions.empty()) positions += write.count;
    most_tokens = std::max(most_tokens, write.count);
  }
  if (most_tokens == 0) return;
  scratch_.clear();
  const std::size_t writes_bytes = writes.size() * sizeof(DeviceKvWrite);
  const std::size_t bytes = writes_bytes + static_cast<std::size_t>(ids + positions) * sizeof(std::int32_t);
  std::byte* host = ring_.next(bytes);
  auto* host_writes = reinterpret_cast<DeviceKvWrite*>(host);
  auto* host_ids = reinterpret_cast<std::int32_t*>(host + writes_bytes);
  std::int32_t* host_positions = host_ids + ids;
  std::int64_t ids_at = 0, positions_at = 0;
  for (std::size_t i = 0; i < writes.size(); ++i) {
    const KvWrite& write = writes[i];
    host_writes[i] = {.first_slot = write.first_slot,
                      .count = write.count,
                      .row_begin = write.row_begin,
                      .ids_begin = 0,
                      .positions_begin = -1,
                      .head = write.head};
    if (write.count == 0) continue;
    const std::int64_t first = write.first_slot / kPageTokens;
    const std::int64_t pages = (write.first_slot + write.count - 1) / kPageTokens - first + 1;
    host_writes[i].ids_begin = ids_at - first;
    std::copy_n(write.page_ids.begin() + first, pages, host_ids + ids_at);
    ids_at += pages;
    if (write.positions.empty()) continue;
    host_writes[i].positions_begin = positions_at;
    std::copy_n(write.positions.begin(), write.count, host_positions + positions_at);
    positions_at += write.count;
  }
  std::byte* device = send_to_scratch(bytes);
  const auto* device_ids = reinterpret_cast<const std::int32_t*>(device + writes_bytes);
  launch_store_kv({.k = bf16(k),
                   .v = bf16(v),
                   .k_head_stride = k.head_stride,
                   .k_token_stride = k.token_stride,
                   .v_head_stride = v.head_stride,
                   .v_token_stride = v.token_stride,
                   .head_dim = k.head_dim,
                   .writes = reinterpret_cast<const DeviceKvWrite*>(device),
                   .ids = device_ids,
                   .positions = device_ids + ids,
                   .write_count = static_cast<int>(writes.size()),
                   .most_tokens = most_tokens,
                   .pool = static_cast<__nv_bfloat16*>(pool.base),
                   .page_elements = pool.page_elements},
                  stream_);
}

void CudaOps::copy_pages(std::span<const PageCopy> copies, const PoolView& pool) {
  LACUNA_CHECK(pool.page_elements % kVectorElements == 0, "pages of {} elements", pool.page_elements);
  // In order: a copy that touches what an earlier one reads or writes starts another launch.
  std::unordered_set<std::int32_t> read, written;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    const PageCopy& copy = copies[i];
    if (written.contains(copy.from) || written.contains(copy.to) || read.contains(copy.to)) {
      copy_pages_at_once(copies.subspan(begin, i - begin), pool);
      begin = i;
      read.clear();
      written.clear();
    }
    read.insert(copy.from);
    written.insert(copy.to);
  }
  copy_pages_at_once(copies.subspan(begin), pool);
}

void CudaOps::copy_pages_at_once(std::span<const PageCopy> copies, const PoolView& pool) {
  if (copies.empty()) return;
  static_assert(sizeof(PageCopy) == 2 * sizeof(std::int32_t));
  scratch_.clear();
  std::memcpy(ring_.next(copies.size_bytes()), copies.data(), copies.size_bytes());
  launch_copy_pages(reinterpret_cast<const std::int32_t*>(send_to_scratch(copies.size_bytes())),
                    static_cast<int>(copies.size()), static_cast<__nv_bfloat16*>(pool.base),
                    pool.page_elements, stream_);
}

// --- Decoding and results
// ----------------------------------------------------------------------------------------

void CudaOps::run_step(Communicator& communicator, const std::function<void()>& body) {
  auto* device = dynamic_cast<DeviceCommunicator*>(&communicator);
  decode_->run_step(communicator.size() == 1 || (device != nullptr && device->capturable()), communicator,
                    body);
  if (communicator.size() > 1 && device != nullptr) device->graph_launched(stream_);
}

void CudaOps::argmax(const TensorView& logits, std::span<float> values, std::span<std::int32_t> indices) {
  const std::int64_t n = logits.shape[0], columns = logits.shape[1];
  LACUNA_CHECK(n <= 65535 && std::ssize(values) >= n && std::ssize(indices) >= n, "{} rows into {} values", n,
               values.size());
  if (n == 0) return;
  scratch_.clear();
  const auto rows = static_cast<std::size_t>(n);
  auto* partial =
      scratch_.take_array<unsigned long long>(rows * static_cast<std::size_t>(argmax_partials(columns)));
  auto* found = scratch_.take_array<ArgmaxResult>(rows);
  auto* host = static_cast<ArgmaxResult*>(results(rows * sizeof(ArgmaxResult)));
  launch_argmax({.x = logits.as<float>(), .n = n, .columns = columns, .partial = partial, .results = found},
                stream_);
  LACUNA_CUDA(cudaMemcpyAsync(host, found, rows * sizeof(ArgmaxResult), cudaMemcpyDeviceToHost, stream_));
  synchronize();
  for (std::size_t i = 0; i < rows; ++i) {
    values[i] = host[i].value;
    indices[i] = host[i].index;
  }
}

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(ThreadPool& pool) { return std::make_unique<CudaOps>(pool); }

}  // namespace lacuna
