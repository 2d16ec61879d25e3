// The inside of CudaDecodeStep: decode_step_rows.cpp brings the rows of a step to the device and counts what
// was executed, decode_step.cpp runs it.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <string>

#include "model/cuda/decode_step.h"
#include "model/cuda/decode_step_kernels.h"

namespace lacuna {

namespace decode_step {

/// Captured graphs hold the longest cache in steps of this many tokens; a longer one is captured anew.
inline constexpr std::int64_t kLengthStep = 1024;
inline constexpr std::size_t kAlign = 256;

inline std::size_t align(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
inline std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

/// True when a kv head's query heads live on several ranks.
inline bool groups_are_split(const LayerInfo& info) {
  return info.kv_heads * (info.q_heads_total / info.kv_heads_total) != info.q_heads;
}

/// What this rank's part of the layer looks like to a method that needs whole groups of query heads.
inline LayerInfo with_whole_groups(LayerInfo info) {
  const int group = info.q_heads_total / info.kv_heads_total;
  info.q_heads = info.kv_heads * group;
  info.q_head_begin = info.kv_head_begin * group;
  return info;
}

}  // namespace decode_step

class CudaDecodeStep::Impl {
 public:
  class Sequence;
  explicit Impl(cudaStream_t stream) : stream_(stream) {}

  std::unique_ptr<DecodeSequence> make_sequence(const MethodSpec& method, std::span<const LayerInfo> layers,
                                                std::int64_t most_tokens);
  void begin_step(std::span<const DecodeRow> rows, const PoolView& pool);
  void run_step(bool capturable, Communicator& team, const std::function<void()>& body);
  void decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                    Communicator& communicator, const HeadsView& out);
  NewestSlots newest_slots(const LayerInfo& info) const;
  void attend_layer(const LayerInfo& info, Communicator& communicator, const HeadsView& out);
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
  std::vector<TableUpdate> updates_;

  struct Graph {
    bool seen = false;
    bool refused = false;     // a device is too full for it
    std::int64_t number = 0;  // of the capture it comes from
    cudaGraphExec_t exec = nullptr;
  };
  bool same_on_all_ranks(std::int64_t value, Communicator& team) const;
  bool all_ranks(bool mine, Communicator& team) const;
  std::map<std::string, Graph> graphs_;
  std::int64_t captures_ = 0;
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
        row_pages(decode_step::pages_of(most_tokens) + 1) {
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
      bytes += decode_step::align(selector->state_bytes(infos[l], max_tokens));
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

}  // namespace lacuna
