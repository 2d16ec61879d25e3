// Ops on the CPU: float32 activations, weights in panels of their stored type. See cpu/kernels.h for why no
// result depends on the batch, the partition or the threads.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/kernels.h"
#include "core/error.h"
#include "core/text.h"
#include "model/cpu/kernels.h"
#include "model/memory_plan.h"
#include "model/ops.h"

namespace lacuna {

namespace {

using cpu::kPanel;

/// Rows of x that one task multiplies: their packed form stays in the second-level cache.
constexpr std::int64_t kRowBlock = 192;
/// Multiply-adds below which waking threads costs more than it saves.
constexpr double kSmallWork = 1 << 20;
/// Elements per task of memory-bound loops.
constexpr std::int64_t kElementBlock = 1 << 16;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Anonymous memory that is taken when touched.
class MappedMemory final : public KvMemory {
 public:
  explicit MappedMemory(std::size_t bytes) {
    // A limit on address space (ulimit -v) may refuse what memory would allow: ask for less until it is
    // granted.
    for (bytes_ = bytes; bytes_ >= (std::size_t{64} << 10); bytes_ /= 2) {
      base_ =
          mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (base_ != MAP_FAILED) return;
    }
    base_ = nullptr;
    throw_resource("no address space for the KV cache ({} asked for)",
                   format_bytes(static_cast<double>(bytes)));
  }
  ~MappedMemory() override {
    if (base_ != nullptr) munmap(base_, bytes_);
  }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;
  void* base() const override { return base_; }
  std::size_t bytes() const override { return bytes_; }
  void commit(std::size_t) override {}
  void discard(std::size_t begin, std::size_t bytes) override {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
    if (last > first) (void)madvise(static_cast<std::byte*>(base_) + first, last - first, MADV_DONTNEED);
  }

 private:
  void* base_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A sequence with the selector and states of attention/methods.
class CpuSequence final : public DecodeSequence {
 public:
  CpuSequence(const MethodSpec& method, std::span<const LayerInfo> layers) : states(layers.size()) {
    auto made = make_decode_selector(method);
    if (made->reads_everything()) return;
    selector = std::move(made);
    for (std::size_t l = 0; l < layers.size(); ++l) {
      if (layers[l].window == 0) states[l] = selector->make_state(layers[l]);
    }
  }
  std::size_t state_bytes() const override {
    std::size_t bytes = 0;
    for (const auto& state : states) bytes += state ? state->bytes() : 0;
    return bytes;
  }
  void take_counts(AttentionCounts& sparse, AttentionCounts& all) override {
    sparse += sparse_counts;
    all += all_counts;
    sparse_counts = all_counts = {};
  }

  std::unique_ptr<DecodeSelector> selector;          // null: reads everything
  std::vector<std::unique_ptr<DecodeState>> states;  // [layers]
  AttentionCounts sparse_counts, all_counts;
};

class CpuOps final : public Ops {
 public:
  explicit CpuOps(ThreadPool& pool) : pool_(pool), kernels_(cpu::best_kernels()) {}

  Device device() const override { return Device::kCpu; }
  DType activation_dtype() const override { return DType::kF32; }
  std::int64_t free_bytes() const override {
    return static_cast<std::int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  }

  std::unique_ptr<KvMemory> reserve_kv(std::size_t bytes) override {
    return std::make_unique<MappedMemory>(bytes);
  }
  void upload(const void* host, void* device, std::size_t bytes) override {
    std::memcpy(device, host, bytes);
  }
  void download(const void* device, void* host, std::size_t bytes) override {
    std::memcpy(host, device, bytes);
  }
  void synchronize() override {}

  LinearWeight make_linear(std::span<const MatrixSlice> parts, std::span<const MatrixSlice> biases) override;
  EmbeddingWeight make_embedding(const MatrixSlice& rows, std::int64_t first_row) override;
  Tensor make_vector(const MatrixSlice& vector, float offset) override;

  void embed(const EmbeddingWeight& table, const TensorView& ids, float scale,
             const TensorView& out) override;
  void rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& out) override;
  void linear(const TensorView& x, const LinearWeight& w, bool accumulate, const TensorView& y) override;
  void linear_f32(const TensorView& x, const LinearWeight& w, float cap, const TensorView& y) override;
  void gated_activation(const TensorView& gate_up, Activation activation, const TensorView& out) override;
  void add(const TensorView& x, const TensorView& y) override;
  void norm_and_rotate(const HeadsView& q, const HeadsView& k, const HeadNorms& norms, const RopeTable& rope,
                       const TensorView& positions) override;
  void all_reduce(const TensorView& x, Communicator& communicator) override {
    communicator.all_reduce_sum(x.as<float>(), static_cast<std::size_t>(x.shape.elements()));
  }

  void attention_prefill(const PrefillInput& input, const PrefillSelector* selector, const HeadsView& out,
                         AttentionCounts& counts) override;
  void store_kv(const HeadsView& k, const HeadsView& v, std::span<const KvWrite> writes,
                const PoolView& pool) override;
  void copy_pages(std::span<const PageCopy> copies, const PoolView& pool) override;
  std::unique_ptr<DecodeSequence> make_sequence(const MethodSpec& method, std::span<const LayerInfo> layers,
                                                std::int64_t) override {
    return std::make_unique<CpuSequence>(method, layers);
  }
  void begin_step(std::span<const DecodeRow> rows, const PoolView& pool) override {
    rows_.assign(rows.begin(), rows.end());
    step_pool_ = pool;
  }
  void decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                    Communicator& communicator, const HeadsView& out) override;
  void argmax(const TensorView& logits, std::span<float> values, std::span<std::int32_t> indices) override;

 private:
  /// body(begin, end) over rows, in blocks of about kElementBlock elements.
  template <class F>
  void for_rows(std::int64_t rows, std::int64_t row_elements, const F& body) {
    const std::int64_t block =
        std::max<std::int64_t>(1, kElementBlock / std::max<std::int64_t>(1, row_elements));
    const auto run = [&](std::int64_t b) { body(b * block, std::min(rows, (b + 1) * block)); };
    pool_.parallel_for(ceil_div(rows, block), std::cref(run));
  }
  void multiply(const TensorView& x, const LinearWeight& w, bool accumulate, float* y);
  void select_pages(const HeadsView& q, std::size_t row, const LayerInfo& info, Communicator& communicator,
                    bool alone);
  void append_rows(const HeadsView& k, const HeadsView& v, const LayerInfo& info);
  static CpuSequence& sequence_of(const DecodeRow& row) { return static_cast<CpuSequence&>(*row.sequence); }
  static std::span<const PagedHead> heads_of(const DecodeRow& row, const LayerInfo& info) {
    const auto n = static_cast<std::size_t>(info.kv_heads);
    return row.heads.subspan(static_cast<std::size_t>(info.layer) * n, n);
  }

  ThreadPool& pool_;
  const cpu::Kernels& kernels_;
  Buffer packed_;                // packed rows of x
  TileLists lists_;              // of the layer at hand
  std::vector<DecodeRow> rows_;  // of the decode step at hand
  PoolView step_pool_;
  std::vector<KvWrite> writes_;
  std::vector<DecodeWork> work_;  // per row
  std::vector<AttentionCounts> step_counts_;
  std::vector<std::vector<PageList>> page_lists_;
};

// --- Weights
// -----------------------------------------------------------------------------------------------------

/// Elements of one row of a slice as float32. memcpy: mapped files need not be aligned.
void row_to_float(const MatrixSlice& slice, std::int64_t row, float* out) {
  const auto* from = static_cast<const std::byte*>(slice.data) +
                     static_cast<std::size_t>(row * slice.row_stride) * size_of(slice.dtype);
  for (std::int64_t c = 0; c < slice.cols; ++c) {
    std::uint16_t half = 0;
    if (slice.dtype == DType::kF32) {
      std::memcpy(out + c, from + c * 4, 4);
    } else {
      std::memcpy(&half, from + c * 2, 2);
      out[c] = slice.dtype == DType::kBF16 ? to_float(BFloat16{half}) : to_float(Float16{half});
    }
  }
}

/// Copies rows into panels [panel][inputs][kPanel] of elements of T.
template <class T>
void pack_panel(std::span<const MatrixSlice> parts, std::int64_t first_output, std::int64_t inputs,
                T* panel) {
  std::memset(panel, 0, static_cast<std::size_t>(inputs * kPanel) * sizeof(T));
  for (int lane = 0; lane < kPanel; ++lane) {
    std::int64_t row = first_output + lane;
    std::size_t part = 0;
    while (part < parts.size() && row >= parts[part].rows) row -= parts[part++].rows;
    if (part == parts.size()) return;
    const auto* from = static_cast<const std::byte*>(parts[part].data) +
                       static_cast<std::size_t>(row * parts[part].row_stride) * sizeof(T);
    for (std::int64_t k = 0; k < inputs; ++k)
      std::memcpy(panel + k * kPanel + lane, from + static_cast<std::size_t>(k) * sizeof(T), sizeof(T));
  }
}

/// The same from parts of different types, as float32.
void pack_panel_mixed(std::span<const MatrixSlice> parts, std::int64_t first_output, std::int64_t inputs,
                      float* panel) {
  std::memset(panel, 0, static_cast<std::size_t>(inputs * kPanel) * sizeof(float));
  std::vector<float> line(static_cast<std::size_t>(inputs));
  for (int lane = 0; lane < kPanel; ++lane) {
    std::int64_t row = first_output + lane;
    std::size_t part = 0;
    while (part < parts.size() && row >= parts[part].rows) row -= parts[part++].rows;
    if (part == parts.size()) return;
    row_to_float(parts[part], row, line.data());
    for (std::int64_t k = 0; k < inputs; ++k) panel[k * kPanel + lane] = line[static_cast<std::size_t>(k)];
  }
}

LinearWeight CpuOps::make_linear(std::span<const MatrixSlice> parts, std::span<const MatrixSlice> biases) {
  LinearWeight w;
  w.inputs = parts.front().cols;
  w.dtype = parts.front().dtype;
  bool same_type = true;
  for (const MatrixSlice& part : parts) {
    LACUNA_CHECK(part.cols == w.inputs, "stacked matrices have {} and {} columns", part.cols, w.inputs);
    w.outputs += part.rows;
    same_type = same_type && part.dtype == w.dtype;
  }
  if (!same_type) w.dtype = DType::kF32;
  const std::int64_t panels = ceil_div(w.outputs, kPanel);
  const std::size_t panel_bytes = static_cast<std::size_t>(w.inputs * kPanel) * size_of(w.dtype);
  w.storage = Buffer(static_cast<std::size_t>(panels) * panel_bytes, Buffer::Kind::kHost);
  pool_.parallel_for(panels, [&](std::int64_t p) {
    auto* panel = w.storage.as<std::byte>() + static_cast<std::size_t>(p) * panel_bytes;
    if (!same_type) return pack_panel_mixed(parts, p * kPanel, w.inputs, reinterpret_cast<float*>(panel));
    if (w.dtype == DType::kF32)
      return pack_panel(parts, p * kPanel, w.inputs, reinterpret_cast<float*>(panel));
    pack_panel(parts, p * kPanel, w.inputs, reinterpret_cast<std::uint16_t*>(panel));
  });
  if (!biases.empty()) {
    w.bias = Tensor(Shape{w.outputs}, DType::kF32);
    float* out = w.bias.as<float>();
    for (const MatrixSlice& bias : biases) {
      row_to_float(bias, 0, out);
      out += bias.cols;
    }
    LACUNA_CHECK(out == w.bias.as<float>() + w.outputs, "biases do not fit the {} outputs", w.outputs);
  }
  return w;
}

EmbeddingWeight CpuOps::make_embedding(const MatrixSlice& rows, std::int64_t first_row) {
  // Left in the mapped file: only the rows that prompts use are ever read.
  EmbeddingWeight e{
      .first_row = first_row, .rows = rows.rows, .hidden = rows.cols, .table = {}, .storage = {}};
  e.table = {.data = const_cast<void*>(rows.data),
             .dtype = rows.dtype,
             .device = Device::kCpu,
             .shape = {rows.rows, rows.cols}};
  return e;
}

Tensor CpuOps::make_vector(const MatrixSlice& vector, float offset) {
  Tensor out(Shape{vector.cols}, DType::kF32);
  row_to_float(vector, 0, out.as<float>());
  for (std::int64_t i = 0; i < vector.cols; ++i) out.as<float>()[i] += offset;
  return out;
}

// --- Layers
// ------------------------------------------------------------------------------------------------------

void CpuOps::embed(const EmbeddingWeight& table, const TensorView& ids, float scale, const TensorView& out) {
  const MatrixSlice slice{.data = table.table.data,
                          .dtype = table.table.dtype,
                          .rows = table.rows,
                          .cols = table.hidden,
                          .row_stride = table.hidden};
  for_rows(ids.shape.elements(), table.hidden, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* row = out.as<float>() + t * table.hidden;
      const std::int64_t local = ids.as<std::int32_t>()[t] - table.first_row;
      if (local < 0 || local >= table.rows) {
        std::fill_n(row, table.hidden, 0.0f);
        continue;
      }
      row_to_float(slice, local, row);
      if (scale == 1.0f) continue;
      for (std::int64_t c = 0; c < table.hidden; ++c) row[c] *= scale;
    }
  });
}

void CpuOps::rms_norm(const TensorView& x, const TensorView& weight, float eps, const TensorView& out) {
  const std::int64_t n = x.shape[1];
  for_rows(x.shape[0], n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      kernels_.rms_norm(x.as<float>() + t * n, weight.as<float>(), eps, n, out.as<float>() + t * n);
    }
  });
}

void CpuOps::multiply(const TensorView& x, const LinearWeight& w, bool accumulate, float* y) {
  const std::int64_t rows = x.shape[0], inputs = w.inputs, panels = ceil_div(w.outputs, kPanel);
  LACUNA_CHECK(x.shape[1] == inputs, "x has {} columns, the weight {} inputs", x.shape[1], inputs);
  const std::int64_t group = kernels_.row_group;
  const std::int64_t row_block = kRowBlock / group * group;
  const std::int64_t pass = std::max(row_block, kPackedFloats / inputs / row_block * row_block);
  const auto needed = static_cast<std::size_t>(std::min(rows, pass) * inputs) * sizeof(float);
  if (packed_.bytes() < needed) {
    packed_.reset();
    packed_ = Buffer(needed, Buffer::Kind::kHost);
  }
  const auto panel_bytes = static_cast<std::size_t>(inputs * kPanel) * size_of(w.dtype);
  const float* bias = w.bias.shape().rank() > 0 ? w.bias.as<float>() : nullptr;

  for (std::int64_t first = 0; first < rows; first += pass) {
    const std::int64_t count = std::min(pass, rows - first);
    const std::int64_t row_blocks = ceil_div(count, row_block);
    const bool small = static_cast<double>(count) * static_cast<double>(inputs * w.outputs) < kSmallWork;
    // Enough tasks for every thread; no result depends on how many there are.
    const std::int64_t wanted = small ? 1 : 4 * std::int64_t{pool_.threads()};
    const std::int64_t column_tasks = std::min(panels, ceil_div(wanted, row_blocks));
    const auto pack = [&](std::int64_t rb) {
      const std::int64_t begin = rb * row_block, n = std::min(row_block, count - begin);
      kernels_.pack_rows(x.as<float>() + (first + begin) * inputs, inputs, n, inputs,
                         packed_.as<float>() + begin * inputs);
    };
    const auto task = [&](std::int64_t i) {
      const std::int64_t rb = i / column_tasks, c = i % column_tasks;
      const std::int64_t begin = rb * row_block, n = std::min(row_block, count - begin);
      const std::int64_t p0 = panels * c / column_tasks, p1 = panels * (c + 1) / column_tasks;
      if (column_tasks == 1) pack(rb);
      kernels_.gemm({.a = packed_.as<float>() + begin * inputs,
                     .rows = n,
                     .b = w.storage.as<std::byte>() + static_cast<std::size_t>(p0) * panel_bytes,
                     .dtype = w.dtype,
                     .panels = p1 - p0,
                     .inputs = inputs,
                     .columns = std::min(w.outputs, p1 * kPanel) - p0 * kPanel,
                     .bias = bias != nullptr ? bias + p0 * kPanel : nullptr,
                     .accumulate = accumulate,
                     .y = y + (first + begin) * w.outputs + p0 * kPanel,
                     .y_stride = w.outputs});
    };
    if (column_tasks > 1) pool_.parallel_for(row_blocks, std::cref(pack));
    pool_.parallel_for(row_blocks * column_tasks, std::cref(task));
  }
}

void CpuOps::linear(const TensorView& x, const LinearWeight& w, bool accumulate, const TensorView& y) {
  multiply(x, w, accumulate, y.as<float>());
}

void CpuOps::linear_f32(const TensorView& x, const LinearWeight& w, float cap, const TensorView& y) {
  multiply(x, w, false, y.as<float>());
  if (cap <= 0) return;
  for_rows(y.shape[0], y.shape[1], [&](std::int64_t begin, std::int64_t end) {
    kernels_.soft_cap(y.as<float>() + begin * y.shape[1], cap, (end - begin) * y.shape[1]);
  });
}

void CpuOps::gated_activation(const TensorView& gate_up, Activation activation, const TensorView& out) {
  const std::int64_t m = out.shape[1];
  const auto f = activation == Activation::kSilu ? kernels_.silu_mul : kernels_.gelu_mul;
  for_rows(out.shape[0], m, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up.as<float>() + t * 2 * m;
      f(gate, gate + m, m, out.as<float>() + t * m);
    }
  });
}

void CpuOps::add(const TensorView& x, const TensorView& y) {
  for_rows(ceil_div(x.shape.elements(), 1024), 1024, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t first = begin * 1024, last = std::min(x.shape.elements(), end * 1024);
    kernels_.add(x.as<float>() + first, last - first, y.as<float>() + first);
  });
}

void CpuOps::norm_and_rotate(const HeadsView& q, const HeadsView& k, const HeadNorms& norms,
                             const RopeTable& rope, const TensorView& positions) {
  const std::int64_t half = q.head_dim / 2;
  const auto one = [&](const HeadsView& heads, const TensorView* norm, std::int64_t t) {
    const std::int64_t at = positions.as<std::int32_t>()[t] * half;
    for (int h = 0; h < heads.heads; ++h) {
      float* row = heads.row(h, t);
      if (norm != nullptr) kernels_.rms_norm(row, norm->as<float>(), norms.eps, heads.head_dim, row);
      kernels_.rotate(row, rope.cos.as<float>() + at, rope.sin.as<float>() + at, half);
    }
  };
  for_rows(q.tokens, std::int64_t{q.heads + k.heads} * q.head_dim, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      one(q, norms.q_weight, t);
      one(k, norms.k_weight, t);
    }
  });
}

// --- Attention
// ---------------------------------------------------------------------------------------------------

void CpuOps::attention_prefill(const PrefillInput& input, const PrefillSelector* selector,
                               const HeadsView& out, AttentionCounts& counts) {
  lists_ = TileLists{.heads = input.q.heads,
                     .tokens = input.q.tokens,
                     .dense = selector == nullptr,
                     .ranges = {},
                     .range_begin = {},
                     .columns = {},
                     .column_begin = {}};
  if (selector != nullptr) selector->select(input, lists_, counts);
  lacuna::attention_prefill(input, lists_, out, pool_, counts);
}

void CpuOps::append_rows(const HeadsView& k, const HeadsView& v, const LayerInfo& info) {
  writes_.clear();
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (!rows_[i].error->empty()) continue;
    const auto heads = heads_of(rows_[i], info);
    for (int h = 0; h < info.kv_heads; ++h) {
      const PagedHead& head = heads[static_cast<std::size_t>(h)];
      writes_.push_back({.page_ids = head.page_ids,
                         .first_slot = head.tokens - 1,
                         .count = 1,
                         .head = h,
                         .row_begin = static_cast<std::int64_t>(i),
                         .positions = {}});
    }
  }
  store_kv(k, v, writes_, step_pool_);
}

void CpuOps::select_pages(const HeadsView& q, std::size_t i, const LayerInfo& info,
                          Communicator& communicator, bool alone) {
  const DecodeRow& row = rows_[i];
  CpuSequence& sequence = sequence_of(row);
  std::vector<PageList>& lists = page_lists_[i];
  try {
    sequence.selector->select({.q = q.row(0, static_cast<std::int64_t>(i)),
                               .heads = heads_of(row, info),
                               .pool = static_cast<const float*>(step_pool_.base),
                               .page_elements = step_pool_.page_elements,
                               .info = info,
                               .communicator = &communicator,
                               .seed = row.seed,
                               .threads = alone ? &pool_ : nullptr},
                              sequence.states[static_cast<std::size_t>(info.layer)].get(), lists,
                              step_counts_[i]);
    work_[i].lists = lists;
  } catch (const Error& e) {
    *row.error = e.what();
  }
}

void CpuOps::decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                          Communicator& communicator, const HeadsView& out) {
  append_rows(k, v, info);
  work_.resize(rows_.size());
  if (page_lists_.size() < rows_.size()) page_lists_.resize(rows_.size());
  step_counts_.assign(rows_.size(), {});
  const auto selects = [&](const DecodeRow& row) {
    return info.window == 0 && row.error->empty() && sequence_of(row).selector != nullptr;
  };
  std::size_t selecting = 0;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i);
    work_[i] = {.q = q.row(0, row),
                .out = out.row(0, row),
                .heads = heads_of(rows_[i], info),
                .lists = {},
                .context_tokens = rows_[i].context_tokens};
    selecting += selects(rows_[i]) ? 1 : 0;
  }
  const auto select = [&](std::int64_t i) {
    const auto row = static_cast<std::size_t>(i);
    if (selects(rows_[row])) select_pages(q, row, info, communicator, selecting == 1);
  };
  // A selector may call collectives, which every rank must make in the same order: sequences one after the
  // other.
  if (selecting > 1 && communicator.size() == 1) {
    pool_.parallel_for(static_cast<std::int64_t>(rows_.size()), std::cref(select));
  } else if (selecting > 0) {
    for (std::size_t i = 0; i < rows_.size(); ++i) select(static_cast<std::int64_t>(i));
  }
  std::vector<AttentionCounts> executed(rows_.size());
  lacuna::attention_decode(work_, static_cast<const float*>(step_pool_.base), step_pool_.page_elements, info,
                           pool_, executed);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    step_counts_[i] += executed[i];
    CpuSequence& sequence = sequence_of(rows_[i]);
    sequence.all_counts += step_counts_[i];
    if (info.window == 0) sequence.sparse_counts += step_counts_[i];
  }
}

void CpuOps::store_kv(const HeadsView& k, const HeadsView& v, std::span<const KvWrite> writes,
                      const PoolView& pool) {
  const std::int64_t d = k.head_dim;
  const auto row_bytes = static_cast<std::size_t>(d) * sizeof(float);
  // Long writes are cut at multiples of whole pages; one task copies some of one write.
  constexpr std::int64_t kSlots = 1024;
  std::int64_t tasks = 0;
  for (const KvWrite& write : writes) tasks += ceil_div(write.count, kSlots);
  const auto store = [&](const KvWrite& write, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t slot = write.first_slot + i;
      const std::int64_t row =
          write.positions.empty() ? write.row_begin + i : write.positions[static_cast<std::size_t>(i)];
      float* page = static_cast<float*>(pool.base) +
                    write.page_ids[static_cast<std::size_t>(slot / kPageTokens)] * pool.page_elements;
      std::memcpy(page + slot % kPageTokens * d, k.row(write.head, row), row_bytes);
      std::memcpy(page + (kPageTokens + slot % kPageTokens) * d, v.row(write.head, row), row_bytes);
    }
  };
  if (tasks <= static_cast<std::int64_t>(writes.size())) {  // a decode step: a token per write
    for (const KvWrite& write : writes) store(write, 0, write.count);
    return;
  }
  std::vector<std::pair<const KvWrite*, std::int64_t>> pieces;
  for (const KvWrite& write : writes) {
    for (std::int64_t at = 0; at < write.count; at += kSlots) pieces.emplace_back(&write, at);
  }
  pool_.parallel_for(static_cast<std::int64_t>(pieces.size()), [&](std::int64_t i) {
    const auto& [write, at] = pieces[static_cast<std::size_t>(i)];
    store(*write, at, std::min(write->count, at + kSlots));
  });
}

void CpuOps::copy_pages(std::span<const PageCopy> copies, const PoolView& pool) {
  auto* base = static_cast<float*>(pool.base);
  for (const PageCopy& copy : copies) {
    std::memcpy(base + copy.to * pool.page_elements, base + copy.from * pool.page_elements,
                static_cast<std::size_t>(pool.page_elements) * sizeof(float));
  }
}

// --- Results
// -----------------------------------------------------------------------------------------------------

void CpuOps::argmax(const TensorView& logits, std::span<float> values, std::span<std::int32_t> indices) {
  const std::int64_t n = logits.shape[1];
  for_rows(logits.shape[0], n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* row = logits.as<float>() + t * n;
      const float largest = kernels_.max(row, n);
      values[static_cast<std::size_t>(t)] = largest;
      indices[static_cast<std::size_t>(t)] =
          std::isnan(largest) ? -1 : static_cast<std::int32_t>(std::find(row, row + n, largest) - row);
    }
  });
}

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool) { return std::make_unique<CpuOps>(pool); }

}  // namespace lacuna
