#include "model/cuda/decode_step.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>

#include "core/error.h"
#include "model/cuda/decode_step_kernels.h"

namespace lacuna {

namespace {

/// Captured graphs hold the longest cache in steps of this many tokens; a longer one is captured anew.
constexpr std::int64_t kLengthStep = 1024;
constexpr std::size_t kAlign = 256;

std::size_t align(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

/// True when a kv head's query heads live on several ranks.
bool groups_are_split(const LayerInfo& info) {
  return info.kv_heads * (info.q_heads_total / info.kv_heads_total) != info.q_heads;
}

/// What this rank's part of the layer looks like to a method that needs whole groups of query heads.
LayerInfo with_whole_groups(LayerInfo info) {
  const int group = info.q_heads_total / info.kv_heads_total;
  info.q_heads = info.kv_heads * group;
  info.q_head_begin = info.kv_head_begin * group;
  return info;
}

}  // namespace

class CudaDecodeStep::Impl {
 public:
  class Sequence;
  explicit Impl(cudaStream_t stream) : stream_(stream) {}

  std::unique_ptr<DecodeSequence> make_sequence(const MethodSpec& method, std::span<const LayerInfo> layers,
                                                std::int64_t most_tokens);
  void begin_step(std::span<const DecodeRow> rows, const PoolView& pool);
  void run_step(bool capturable, const std::function<void()>& body);
  void decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                    Communicator& communicator, const HeadsView& out);
  void forget_graphs();
  std::size_t bytes() const;
  ~Impl() { forget_graphs(); }

 private:
  /// Rows that one choose() serves.
  struct Group {
    std::size_t begin = 0, count = 0;
    const CudaDecodeSelector* selector = nullptr;   // null: dense
    std::size_t list_offset = 0, count_offset = 0;  // of its lists in lists_, its counts in list_counts_
    int list_heads = 0;
  };
  /// Where the arrays of a step stand in step_block_.
  struct Layout {
    std::size_t heads = 0, states = 0, budgets = 0, bytes = 0;
  };

  template <class T>
  T* at(const Buffer& buffer, std::size_t offset) const {
    return reinterpret_cast<T*>(buffer.as<std::byte>() + offset);
  }
  const DevicePagedHead* heads_of(const LayerInfo& info, std::size_t row) const {
    return at<const DevicePagedHead>(step_block_, layout_.heads) +
           (static_cast<std::size_t>(info.layer) * rows_.size() + row) *
               static_cast<std::size_t>(info.kv_heads);
  }
  void grow(Buffer& buffer, std::size_t bytes, Buffer::Kind kind);
  void harvest();
  void release(Sequence& sequence);
  void take_composition(std::span<const DecodeRow> rows);
  void form_groups();
  void reserve_workspaces();
  void upload_tables(std::span<const DecodeRow> rows);
  void upload_step(std::span<const DecodeRow> rows);
  void prepare_states();
  void count_on_host(std::span<const DecodeRow> rows);
  DecodeChoice choice_of(const Group& group, const LayerInfo& info, const void* q) const;
  void choose(const Group& group, const LayerInfo& info, Communicator& communicator);
  const void* gather_whole_groups(const LayerInfo& info, Communicator& communicator);
  void attend(const Group* group, const LayerInfo& info, void* out);
  DecodeParams params_of(const Group* group, const LayerInfo& info) const;

  cudaStream_t stream_;
  std::vector<Sequence*> rows_;  // of the step; null: gone
  std::vector<std::uint64_t> row_ids_;
  std::uint64_t next_id_ = 1;
  std::vector<Group> groups_;
  std::vector<LayerInfo> layers_;
  PoolView pool_;
  std::int64_t max_tokens_ = 0;  // bound of the step, a multiple of kLengthStep
  bool split_ = false;           // a method needs query heads of other ranks

  Layout layout_;
  Buffer step_block_, packed_q_, whole_q_, lists_, list_counts_, counters_, flags_, choice_workspace_,
      attention_workspace_, update_buffer_;
  Buffer staging_, update_staging_, fresh_staging_;  // pinned
  CudaEvent uploaded_;
  bool upload_pending_ = false;
  std::size_t clean_counters_ = 0;  // leading bytes of attention_workspace_ that are zero, within one step
  std::vector<TableUpdate> updates_;

  struct Graph {
    int seen = 0;
    cudaGraphExec_t exec = nullptr;
  };
  std::map<std::string, Graph> graphs_;
  std::string structure_;  // of the groups
};

/// Page tables, method states and counters of one sequence.
class CudaDecodeStep::Impl::Sequence final : public DecodeSequence {
 public:
  Sequence(Impl& owner, const MethodSpec& method, std::span<const LayerInfo> layers, std::int64_t most_tokens)
      : owner_(owner),
        id(owner.next_id_++),
        infos(layers.begin(), layers.end()),
        selector(make_cuda_decode_selector(method)),
        name(method.method),
        max_tokens(most_tokens),
        row_pages(pages_of(most_tokens) + 1) {
    const auto heads = static_cast<std::size_t>(infos.front().kv_heads);
    known.resize(infos.size() * heads);
    table = Buffer(known.size() * static_cast<std::size_t>(row_pages) * sizeof(std::int32_t),
                   Buffer::Kind::kDevice);
    if (!selector) return;
    budget = selector->budget();
    layer_state.assign(infos.size(), 0);
    std::size_t bytes = 0;
    for (std::size_t l = 0; l < infos.size(); ++l) {
      if (infos[l].window > 0) continue;
      layer_state[l] = bytes;
      bytes += align(selector->state_bytes(infos[l], max_tokens));
    }
    if (bytes > 0) state = Buffer(bytes, Buffer::Kind::kDevice);
  }
  ~Sequence() override { owner_.release(*this); }
  std::size_t state_bytes() const override { return state.bytes(); }
  void take_counts(AttentionCounts& sparse, AttentionCounts& all) override {
    owner_.harvest();
    sparse += sparse_counts;
    all += all_counts;
    sparse_counts = all_counts = {};
    if (not_finite) throw_usage("decode method '{}' computed scores that are not finite numbers", name);
  }
  void* state_of(std::size_t layer) const {
    return state.bytes() == 0 ? nullptr : state.as<std::byte>() + layer_state[layer];
  }
  std::int32_t* row(std::size_t index) const {
    return table.as<std::int32_t>() + static_cast<std::int64_t>(index) * row_pages;
  }

  /// A page table as the device has it: enough to find what changed, because pages are only appended, copied
  /// at the end, or dropped at the front, and never twice in a table.
  struct Known {
    std::size_t pages = 0;
    std::int32_t first = -1, last = -1;
  };

 private:
  Impl& owner_;

 public:
  const std::uint64_t id;
  const std::vector<LayerInfo> infos;
  std::unique_ptr<CudaDecodeSelector> selector;
  const std::string name;
  const std::int64_t max_tokens, row_pages;
  DecodeBudget budget;
  std::vector<Known> known;
  Buffer table, state;
  std::vector<std::size_t> layer_state;
  bool prepared = false, not_finite = false;
  AttentionCounts sparse_counts, all_counts;
};

std::unique_ptr<DecodeSequence> CudaDecodeStep::Impl::make_sequence(const MethodSpec& method,
                                                                    std::span<const LayerInfo> layers,
                                                                    std::int64_t most_tokens) {
  LACUNA_CHECK(!layers.empty(), "a sequence of no layers");
  return std::make_unique<Sequence>(*this, method, layers, most_tokens);
}

/// Memory that captured graphs point to: growing it makes them useless.
void CudaDecodeStep::Impl::grow(Buffer& buffer, std::size_t bytes, Buffer::Kind kind) {
  if (buffer.bytes() >= bytes) return;
  forget_graphs();
  LACUNA_CUDA(cudaStreamSynchronize(stream_));
  buffer.reset();
  buffer = Buffer(align(bytes + bytes / 4), kind);
}

void CudaDecodeStep::Impl::forget_graphs() {
  for (auto& [key, graph] : graphs_) {
    if (graph.exec != nullptr) (void)cudaGraphExecDestroy(graph.exec);
  }
  graphs_.clear();
}

std::size_t CudaDecodeStep::Impl::bytes() const {
  std::size_t sum = 0;
  for (const Buffer* b : {&step_block_, &packed_q_, &whole_q_, &lists_, &list_counts_, &counters_, &flags_,
                          &choice_workspace_, &attention_workspace_, &update_buffer_})
    sum += b->bytes();
  for (const Sequence* s : rows_) sum += s != nullptr ? s->table.bytes() + s->state.bytes() : 0;
  return sum;
}

// --- What was executed
// --------------------------------------------------------------------------------------------

/// Brings the device's counters and flags to the sequences they belong to.
void CudaDecodeStep::Impl::harvest() {
  if (rows_.empty() || counters_.bytes() == 0) return;
  std::vector<DecodeCounters> counters(rows_.size());
  std::vector<int> flags(rows_.size());
  LACUNA_CUDA(cudaMemcpyAsync(counters.data(), counters_.data(), counters.size() * sizeof(DecodeCounters),
                              cudaMemcpyDeviceToHost, stream_));
  LACUNA_CUDA(cudaMemcpyAsync(flags.data(), flags_.data(), flags.size() * sizeof(int), cudaMemcpyDeviceToHost,
                              stream_));
  LACUNA_CUDA(cudaMemsetAsync(counters_.data(), 0, counters.size() * sizeof(DecodeCounters), stream_));
  LACUNA_CUDA(cudaMemsetAsync(flags_.data(), 0, flags.size() * sizeof(int), stream_));
  LACUNA_CUDA(cudaStreamSynchronize(stream_));
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i] == nullptr) continue;
    Sequence& s = *rows_[i];
    const int d = s.infos.front().head_dim;
    AttentionCounts counts;
    counts.visited_cells = static_cast<double>(counters[i].visited_cells);
    counts.computed_cells = static_cast<double>(counters[i].computed_cells);
    counts.flops = 4.0 * d * counts.computed_cells;
    counts.kv_bytes_read = static_cast<double>(counters[i].read_tokens) * 2.0 * d * sizeof(BFloat16);
    s.sparse_counts += counts;
    s.all_counts += counts;
    s.not_finite = s.not_finite || flags[i] != 0;
  }
}

void CudaDecodeStep::Impl::release(Sequence& sequence) {
  for (Sequence*& row : rows_) {
    if (row == &sequence) row = nullptr;
  }
}

/// What is known without looking at the device: everything for layers that read all pages, and for the others
/// what dense attention would do and what choosing costs.
void CudaDecodeStep::Impl::count_on_host(std::span<const DecodeRow> rows) {
  std::vector<std::int64_t> tokens;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Sequence& s = *rows_[i];
    for (const LayerInfo& info : layers_) {
      const auto n = static_cast<std::size_t>(info.kv_heads);
      const auto heads = rows[i].heads.subspan(static_cast<std::size_t>(info.layer) * n, n);
      const bool chooses = s.selector != nullptr && info.window == 0;
      AttentionCounts counts;
      tokens.clear();
      for (int q = 0; q < info.q_heads; ++q) {
        const PagedHead& head = heads[static_cast<std::size_t>(info.kv_head_of(q))];
        const std::int64_t context = std::max(head.tokens, rows[i].context_tokens);
        counts.causal_cells +=
            static_cast<double>(info.window > 0 ? std::min<std::int64_t>(context, info.window) : context);
        if (chooses) continue;
        const std::int64_t begin = info.window > 0 ? std::max<std::int64_t>(0, head.tokens - info.window) : 0;
        const auto computed =
            static_cast<double>((pages_of(head.tokens) - begin / kPageTokens) * kPageTokens);
        counts.visited_cells += static_cast<double>(head.tokens - begin);
        counts.computed_cells += computed;
        counts.flops += 4.0 * info.head_dim * computed;
        const bool first = q == 0 || info.kv_head_of(q) != info.kv_head_of(q - 1);
        if (first)
          counts.kv_bytes_read +=
              static_cast<double>(head.tokens - begin) * 2.0 * info.head_dim * sizeof(BFloat16);
      }
      if (chooses) {
        for (const PagedHead& head : heads) tokens.push_back(head.tokens);
        s.selector->add_cost(info, tokens, counts);
      }
      s.all_counts += counts;
      if (info.window == 0) s.sparse_counts += counts;
    }
  }
}

// --- The rows of a step
// -------------------------------------------------------------------------------------------

void CudaDecodeStep::Impl::take_composition(std::span<const DecodeRow> rows) {
  std::vector<std::uint64_t> ids;
  for (const DecodeRow& row : rows) ids.push_back(static_cast<Sequence&>(*row.sequence).id);
  if (ids == row_ids_ && !rows_.empty()) return;
  harvest();
  row_ids_ = std::move(ids);
  rows_.clear();
  for (const DecodeRow& row : rows) rows_.push_back(static_cast<Sequence*>(row.sequence));
  layers_ = rows_.front()->infos;
  form_groups();
  const std::size_t counter_bytes = rows_.size() * sizeof(DecodeCounters),
                    flag_bytes = rows_.size() * sizeof(int);
  grow(counters_, counter_bytes, Buffer::Kind::kDevice);
  grow(flags_, flag_bytes, Buffer::Kind::kDevice);
  LACUNA_CUDA(cudaMemsetAsync(counters_.data(), 0, counter_bytes, stream_));
  LACUNA_CUDA(cudaMemsetAsync(flags_.data(), 0, flag_bytes, stream_));

  const std::size_t per_layer = rows_.size() * layers_.size();
  layout_ = {};
  layout_.states =
      align(per_layer * static_cast<std::size_t>(layers_.front().kv_heads) * sizeof(DevicePagedHead));
  layout_.budgets = layout_.states + align(per_layer * sizeof(void*));
  layout_.bytes = layout_.budgets + align(rows_.size() * sizeof(DecodeBudget));
  grow(step_block_, layout_.bytes, Buffer::Kind::kDevice);
}

void CudaDecodeStep::Impl::form_groups() {
  groups_.clear();
  structure_.clear();
  split_ = false;
  const bool split_layers = groups_are_split(layers_.front());
  std::string last;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const CudaDecodeSelector* selector = rows_[i]->selector.get();
    const std::string key = selector == nullptr ? "dense" : selector->group_key();
    if (!groups_.empty() && key == last) {
      ++groups_.back().count;
    } else {
      Group group{.begin = i, .count = 1, .selector = selector};
      if (selector != nullptr)
        group.list_heads = selector->lists_per_q_head() ? layers_.front().q_heads : layers_.front().kv_heads;
      groups_.push_back(group);
      last = key;
    }
    split_ = split_ || (split_layers && selector != nullptr && !selector->lists_per_q_head());
  }
  for (const Group& group : groups_)
    structure_ +=
        fmt::format("{}:{};", group.count, group.selector == nullptr ? "dense" : group.selector->group_key());
}

DecodeParams CudaDecodeStep::Impl::params_of(const Group* group, const LayerInfo& info) const {
  DecodeParams params;
  params.pool = pool_.base;
  params.page_elements = pool_.page_elements;
  params.batch = static_cast<int>(group != nullptr ? group->count : rows_.size());
  params.heads = heads_of(info, group != nullptr ? group->begin : 0);
  params.info = info;
  params.max_tokens = max_tokens_;
  if (group != nullptr && group->selector != nullptr) {
    params.lists = lists_.as<std::int32_t>() + group->list_offset;
    params.list_counts = list_counts_.as<std::int32_t>() + group->count_offset;
    params.list_stride = pages_of(max_tokens_);
    params.lists_per_q_head = group->list_heads != info.kv_heads;
  }
  return params;
}

DecodeChoice CudaDecodeStep::Impl::choice_of(const Group& group, const LayerInfo& info, const void* q) const {
  const std::size_t layer = static_cast<std::size_t>(info.layer) * rows_.size() + group.begin;
  return {.q = q,
          .pool = pool_.base,
          .page_elements = pool_.page_elements,
          .heads = heads_of(info, group.begin),
          .states = at<void*>(step_block_, layout_.states) + layer,
          .budgets = at<const DecodeBudget>(step_block_, layout_.budgets) + group.begin,
          .rows = static_cast<int>(group.count),
          .info = info,
          .max_tokens = max_tokens_,
          .lists = lists_.as<std::int32_t>() + group.list_offset,
          .counts = list_counts_.as<std::int32_t>() + group.count_offset,
          .list_stride = pages_of(max_tokens_),
          .not_finite = flags_.as<int>() + group.begin};
}

void CudaDecodeStep::Impl::reserve_workspaces() {
  std::size_t lists = 0, counts = 0, choice_bytes = 0, attention_bytes = 0;
  const std::int64_t stride = pages_of(max_tokens_);
  for (Group& group : groups_) {
    if (group.selector == nullptr) continue;
    group.list_offset = lists;
    group.count_offset = counts;
    const std::size_t rows = group.count * static_cast<std::size_t>(group.list_heads);
    lists += rows * static_cast<std::size_t>(stride);
    counts += rows;
  }
  for (const LayerInfo& info : layers_) {
    for (const Group& group : groups_) {
      attention_bytes = std::max(attention_bytes, decode_workspace_bytes(params_of(&group, info)));
      if (group.selector != nullptr && info.window == 0)
        choice_bytes = std::max(
            choice_bytes,
            group.selector->workspace_bytes(choice_of(
                group, group.selector->lists_per_q_head() ? info : with_whole_groups(info), nullptr)));
    }
    attention_bytes = std::max(attention_bytes, decode_workspace_bytes(params_of(nullptr, info)));
  }
  grow(lists_, lists * sizeof(std::int32_t), Buffer::Kind::kDevice);
  grow(list_counts_, counts * sizeof(std::int32_t), Buffer::Kind::kDevice);
  grow(choice_workspace_, choice_bytes, Buffer::Kind::kDevice);
  grow(attention_workspace_, attention_bytes, Buffer::Kind::kDevice);
  const LayerInfo& info = layers_.front();
  const std::size_t row_bytes = static_cast<std::size_t>(info.head_dim) * rows_.size() * sizeof(BFloat16);
  grow(packed_q_, row_bytes * static_cast<std::size_t>(info.q_heads), Buffer::Kind::kDevice);
  if (split_)
    grow(whole_q_, row_bytes * static_cast<std::size_t>(with_whole_groups(info).q_heads),
         Buffer::Kind::kDevice);
}

/// New sequences' tables whole, the others' changes.
void CudaDecodeStep::Impl::upload_tables(std::span<const DecodeRow> rows) {
  updates_.clear();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Sequence& s = *rows_[i];
    LACUNA_CHECK(rows[i].heads.size() == s.known.size(), "{} page tables, {} expected", rows[i].heads.size(),
                 s.known.size());
    const bool fresh = !s.prepared;
    if (fresh) {
      grow(fresh_staging_, s.table.bytes(), Buffer::Kind::kPinned);
      std::memset(fresh_staging_.data(), 0, s.table.bytes());
    }
    for (std::size_t r = 0; r < s.known.size(); ++r) {
      const auto ids = rows[i].heads[r].page_ids;
      Sequence::Known& known = s.known[r];
      LACUNA_CHECK(std::ssize(ids) <= s.row_pages, "{} pages in a table of {}", ids.size(), s.row_pages);
      const Sequence::Known now{.pages = ids.size(),
                                .first = ids.empty() ? -1 : ids.front(),
                                .last = ids.empty() ? -1 : ids.back()};
      if (fresh) {
        std::copy(ids.begin(), ids.end(),
                  fresh_staging_.as<std::int32_t>() + static_cast<std::int64_t>(r) * s.row_pages);
      } else if (now.pages != known.pages || now.first != known.first || now.last != known.last) {
        const bool appended = now.first == known.first && known.pages > 0 && now.pages >= known.pages;
        for (std::size_t p = appended ? known.pages - 1 : 0; p < ids.size(); ++p)
          updates_.push_back({s.row(r) + p, ids[p]});
      }
      known = now;
    }
    if (fresh) {
      LACUNA_CUDA(cudaMemcpyAsync(s.table.data(), fresh_staging_.data(), s.table.bytes(),
                                  cudaMemcpyHostToDevice, stream_));
      LACUNA_CUDA(cudaStreamSynchronize(stream_));  // the staging memory is used again at once
    }
  }
  if (updates_.empty()) return;
  const std::size_t bytes = updates_.size() * sizeof(TableUpdate);
  grow(update_buffer_, bytes, Buffer::Kind::kDevice);
  grow(update_staging_, bytes, Buffer::Kind::kPinned);
  std::memcpy(update_staging_.data(), updates_.data(), bytes);
  LACUNA_CUDA(
      cudaMemcpyAsync(update_buffer_.data(), update_staging_.data(), bytes, cudaMemcpyHostToDevice, stream_));
  apply_table_updates(update_buffer_.as<TableUpdate>(), std::ssize(updates_), stream_);
}

void CudaDecodeStep::Impl::upload_step(std::span<const DecodeRow> rows) {
  grow(staging_, layout_.bytes, Buffer::Kind::kPinned);
  auto* heads = at<DevicePagedHead>(staging_, layout_.heads);
  auto* states = at<void*>(staging_, layout_.states);
  auto* budgets = at<DecodeBudget>(staging_, layout_.budgets);
  const auto kv_heads = static_cast<std::size_t>(layers_.front().kv_heads);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Sequence& s = *rows_[i];
    budgets[i] = s.budget;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      states[l * rows.size() + i] = s.selector != nullptr && layers_[l].window == 0 ? s.state_of(l) : nullptr;
      for (std::size_t h = 0; h < kv_heads; ++h) {
        heads[(l * rows.size() + i) * kv_heads + h] = {.page_ids = s.row(l * kv_heads + h),
                                                       .tokens = rows[i].heads[l * kv_heads + h].tokens};
      }
    }
  }
  LACUNA_CUDA(
      cudaMemcpyAsync(step_block_.data(), staging_.data(), layout_.bytes, cudaMemcpyHostToDevice, stream_));
  uploaded_.record(stream_);
  upload_pending_ = true;
}

void CudaDecodeStep::Impl::prepare_states() {
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Sequence& s = *rows_[i];
    if (s.prepared) continue;
    s.prepared = true;
    if (s.selector == nullptr || s.state.bytes() == 0) continue;
    Group alone = *std::find_if(groups_.begin(), groups_.end(),
                                [&](const Group& g) { return i >= g.begin && i < g.begin + g.count; });
    alone.begin = i;
    alone.count = 1;
    for (const LayerInfo& info : layers_) {
      if (info.window > 0) continue;
      s.selector->prepare(choice_of(alone, with_whole_groups(info), packed_q_.data()),
                          {choice_workspace_.data(), choice_workspace_.bytes()}, stream_);
    }
  }
}

void CudaDecodeStep::Impl::begin_step(std::span<const DecodeRow> rows, const PoolView& pool) {
  LACUNA_CHECK(!rows.empty(), "a decode step of no rows");
  if (upload_pending_) uploaded_.synchronize();  // the staging memory of the last step
  pool_ = pool;
  take_composition(rows);
  std::int64_t longest = 1;
  for (const DecodeRow& row : rows) {
    for (const PagedHead& head : row.heads) longest = std::max(longest, head.tokens);
  }
  max_tokens_ = (longest + kLengthStep - 1) / kLengthStep * kLengthStep;
  reserve_workspaces();
  upload_tables(rows);
  upload_step(rows);
  prepare_states();
  count_on_host(rows);
}

// --- Running
// ------------------------------------------------------------------------------------------------------

void CudaDecodeStep::Impl::run_step(bool capturable, const std::function<void()>& body) {
  clean_counters_ = 0;
  if (!capturable || split_) return body();
  // The first run allocates what a first run allocates; the second one is captured.
  Graph& graph = graphs_[fmt::format("{}|{}", structure_, max_tokens_)];
  if (graph.seen++ == 0) return body();
  if (graph.exec == nullptr) {
    LACUNA_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t captured = nullptr;
    try {
      body();
    } catch (...) {
      (void)cudaStreamEndCapture(stream_, &captured);
      if (captured != nullptr) (void)cudaGraphDestroy(captured);
      throw;
    }
    LACUNA_CUDA(cudaStreamEndCapture(stream_, &captured));
    const cudaError_t status = cudaGraphInstantiate(&graph.exec, captured, 0);
    (void)cudaGraphDestroy(captured);
    LACUNA_CUDA(status);
  }
  LACUNA_CUDA(cudaGraphLaunch(graph.exec, stream_));
}

/// Query heads of the whole groups of this rank's kv heads, from the ranks that hold them. Through the host:
/// it happens only where there are more ranks than kv heads.
const void* CudaDecodeStep::Impl::gather_whole_groups(const LayerInfo& info, Communicator& communicator) {
  const LayerInfo whole = with_whole_groups(info);
  const std::size_t head_bytes = static_cast<std::size_t>(info.head_dim) * sizeof(BFloat16),
                    row_bytes = static_cast<std::size_t>(info.q_heads) * head_bytes,
                    bytes = rows_.size() * row_bytes;
  std::vector<std::byte> mine(bytes), all(bytes * static_cast<std::size_t>(communicator.size())),
      groups(rows_.size() * static_cast<std::size_t>(whole.q_heads) * head_bytes);
  LACUNA_CUDA(cudaMemcpyAsync(mine.data(), packed_q_.data(), bytes, cudaMemcpyDeviceToHost, stream_));
  LACUNA_CUDA(cudaStreamSynchronize(stream_));
  communicator.all_gather(mine.data(), all.data(), bytes);
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    for (int h = 0; h < whole.q_heads; ++h) {
      const int global = whole.q_head_begin + h, rank = global / info.q_heads, local = global % info.q_heads;
      std::memcpy(
          groups.data() +
              (row * static_cast<std::size_t>(whole.q_heads) + static_cast<std::size_t>(h)) * head_bytes,
          all.data() + static_cast<std::size_t>(rank) * bytes + row * row_bytes +
              static_cast<std::size_t>(local) * head_bytes,
          head_bytes);
    }
  }
  LACUNA_CUDA(
      cudaMemcpyAsync(whole_q_.data(), groups.data(), groups.size(), cudaMemcpyHostToDevice, stream_));
  LACUNA_CUDA(cudaStreamSynchronize(stream_));
  return whole_q_.data();
}

void CudaDecodeStep::Impl::choose(const Group& group, const LayerInfo& info, Communicator& communicator) {
  const bool per_q = group.selector->lists_per_q_head();
  const bool gathers = groups_are_split(info) && !per_q;
  const LayerInfo seen = per_q ? info : with_whole_groups(info);
  const auto* q =
      static_cast<const std::byte*>(gathers ? gather_whole_groups(info, communicator) : packed_q_.data());
  q += group.begin * static_cast<std::size_t>(seen.q_heads * info.head_dim) * sizeof(BFloat16);
  const DecodeChoice choice = choice_of(group, seen, q);
  group.selector->choose(choice, {choice_workspace_.data(), choice_workspace_.bytes()}, stream_);
  count_lists({.lists = choice.lists,
               .counts = choice.counts,
               .stride = choice.list_stride,
               .list_heads = group.list_heads,
               .heads = choice.heads,
               .info = info,
               .rows = choice.rows,
               .counters = counters_.as<DecodeCounters>() + group.begin},
              stream_);
}

void CudaDecodeStep::Impl::attend(const Group* group, const LayerInfo& info, void* out) {
  DecodeParams params = params_of(group, info);
  const std::size_t row = (group != nullptr ? group->begin : 0) *
                          static_cast<std::size_t>(info.q_heads * info.head_dim) * sizeof(BFloat16);
  params.q = packed_q_.as<std::byte>() + row;
  params.out = static_cast<std::byte*>(out) + row;
  const std::size_t counters = decode_counter_bytes(params);
  if (counters > clean_counters_)
    LACUNA_CUDA(cudaMemsetAsync(attention_workspace_.data(), 0, counters, stream_));
  attention_decode_cuda(params, {attention_workspace_.data(), attention_workspace_.bytes()}, stream_);
  clean_counters_ = counters;  // what lies behind was written to
}

void CudaDecodeStep::Impl::decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v,
                                        const LayerInfo& info, Communicator& communicator,
                                        const HeadsView& out) {
  LACUNA_CHECK(q.tokens == std::ssize(rows_), "{} rows, the step has {}", q.tokens, rows_.size());
  LACUNA_CHECK(
      out.token_stride == std::int64_t{info.q_heads} * info.head_dim && out.head_stride == info.head_dim,
      "the output of a decode step must be packed, its token stride is {}", out.token_stride);
  append_rows({.q = q,
               .k = k,
               .v = v,
               .heads = heads_of(info, 0),
               .pool = pool_.base,
               .page_elements = pool_.page_elements,
               .packed_q = packed_q_.data()},
              stream_);
  if (info.window > 0) return attend(nullptr, info, out.data);
  for (const Group& group : groups_) {
    if (group.selector != nullptr) choose(group, info, communicator);
    attend(&group, info, out.data);
  }
}

// --- The handle
// ---------------------------------------------------------------------------------------------------

CudaDecodeStep::CudaDecodeStep(cudaStream_t stream) : impl_(std::make_unique<Impl>(stream)) {}
CudaDecodeStep::~CudaDecodeStep() = default;
std::unique_ptr<DecodeSequence> CudaDecodeStep::make_sequence(const MethodSpec& method,
                                                              std::span<const LayerInfo> layers,
                                                              std::int64_t most_tokens) {
  return impl_->make_sequence(method, layers, most_tokens);
}
void CudaDecodeStep::begin_step(std::span<const DecodeRow> rows, const PoolView& pool) {
  impl_->begin_step(rows, pool);
}
void CudaDecodeStep::run_step(bool capturable, const std::function<void()>& body) {
  impl_->run_step(capturable, body);
}
void CudaDecodeStep::decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v,
                                  const LayerInfo& info, Communicator& communicator, const HeadsView& out) {
  impl_->decode_layer(q, k, v, info, communicator, out);
}
void CudaDecodeStep::forget_graphs() { impl_->forget_graphs(); }
std::size_t CudaDecodeStep::bytes() const { return impl_->bytes(); }

}  // namespace lacuna
