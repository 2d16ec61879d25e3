// Running a decode step: choices, attention, CUDA graphs.
#include <cstring>

#include "core/error.h"
#include "model/cuda/decode_step_impl.h"

namespace lacuna {

using namespace decode_step;

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
// --- Running
// ------------------------------------------------------------------------------------------------------

bool CudaDecodeStep::Impl::same_on_all_ranks(std::int64_t value, Communicator& team) const {
  if (team.size() == 1) return true;
  std::vector<std::int64_t> all(static_cast<std::size_t>(team.size()));
  team.all_gather(&value, all.data(), sizeof(value));
  return std::all_of(all.begin(), all.end(), [&](std::int64_t other) { return other == value; });
}

bool CudaDecodeStep::Impl::all_ranks(bool mine, Communicator& team) const {
  std::vector<std::uint8_t> all(static_cast<std::size_t>(team.size()));
  const std::uint8_t value = mine ? 1 : 0;
  team.all_gather(&value, all.data(), sizeof(value));
  return std::find(all.begin(), all.end(), 0) == all.end();
}

void CudaDecodeStep::Impl::run_step(bool capturable, Communicator& team, const std::function<void()>& body) {
  if (!capturable || split_) return body();
  // The first run allocates what a first run allocates; the second one is captured.
  Graph& graph = graphs_[fmt::format("{}|{}", structure_, max_tokens_)];
  // A sum over the team is captured on all ranks or on none, and the graphs launched together are those
  // captured together. Ranks may differ: heads kept with budgets of their own are longer on one rank than on
  // another.
  if (!same_on_all_ranks(graph.exec != nullptr ? graph.number : graph.seen ? 0 : -1, team)) {
    if (graph.exec != nullptr) (void)cudaGraphExecDestroy(graph.exec);
    graph = {.seen = true};
    return body();
  }
  if (!graph.seen || graph.refused) {
    graph.seen = true;
    return body();
  }
  if (graph.exec == nullptr) {
    graph.number = ++captures_;
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
    if (status != cudaErrorMemoryAllocation) LACUNA_CUDA(status);
    // Where one rank has no memory for its graph, all do without.
    if (!all_ranks(status == cudaSuccess, team)) {
      (void)cudaGetLastError();
      if (graph.exec != nullptr) (void)cudaGraphExecDestroy(graph.exec);
      graph = {.seen = true, .refused = true};
      return body();
    }
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
  DecodeChoice choice = choice_of(group, seen, q);
  choice.counters = counters_.as<DecodeCounters>() + group.begin;
  choice.first_reader = info.q_head_begin;
  choice.end_reader = info.q_head_begin + info.q_heads;
  group.selector->choose(choice, {choice_workspace_.data(), choice_workspace_.bytes()}, stream_);
}

void CudaDecodeStep::Impl::attend(const Group* group, const LayerInfo& info, void* out) {
  DecodeParams params = params_of(group, info);
  const std::size_t row = (group != nullptr ? group->begin : 0) *
                          static_cast<std::size_t>(info.q_heads * info.head_dim) * sizeof(BFloat16);
  params.q = packed_q_.as<std::byte>() + row;
  params.out = static_cast<std::byte*>(out) + row;
  attention_decode_cuda(params, {attention_workspace_.data(), attention_workspace_.bytes()}, stream_);
}

NewestSlots CudaDecodeStep::Impl::newest_slots(const LayerInfo& info) const {
  return {.heads = heads_of(info, 0),
          .pool = static_cast<__nv_bfloat16*>(pool_.base),
          .page_elements = pool_.page_elements,
          .q = packed_q_.as<__nv_bfloat16>()};
}

void CudaDecodeStep::Impl::decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v,
                                        const LayerInfo& info, Communicator& communicator,
                                        const HeadsView& out) {
  LACUNA_CHECK(q.tokens == std::ssize(rows_), "{} rows, the step has {}", q.tokens, rows_.size());
  launch_rotate_to_cache({.rotate = {.q = static_cast<__nv_bfloat16*>(q.data),
                                     .k = static_cast<__nv_bfloat16*>(k.data),
                                     .q_head_stride = q.head_stride,
                                     .q_token_stride = q.token_stride,
                                     .k_head_stride = k.head_stride,
                                     .k_token_stride = k.token_stride,
                                     .q_heads = q.heads,
                                     .k_heads = k.heads,
                                     .tokens = q.tokens,
                                     .head_dim = q.head_dim},
                          .v = static_cast<const __nv_bfloat16*>(v.data),
                          .v_head_stride = v.head_stride,
                          .v_token_stride = v.token_stride,
                          .to = newest_slots(info)},
                         stream_);
  attend_layer(info, communicator, out);
}

void CudaDecodeStep::Impl::attend_layer(const LayerInfo& info, Communicator& communicator,
                                        const HeadsView& out) {
  LACUNA_CHECK(out.tokens == std::ssize(rows_), "{} rows, the step has {}", out.tokens, rows_.size());
  LACUNA_CHECK(
      out.token_stride == std::int64_t{info.q_heads} * info.head_dim && out.head_stride == info.head_dim,
      "the output of a decode step must be packed, its token stride is {}", out.token_stride);
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
void CudaDecodeStep::run_step(bool capturable, Communicator& team, const std::function<void()>& body) {
  impl_->run_step(capturable, team, body);
}
void CudaDecodeStep::decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v,
                                  const LayerInfo& info, Communicator& communicator, const HeadsView& out) {
  impl_->decode_layer(q, k, v, info, communicator, out);
}
NewestSlots CudaDecodeStep::newest_slots(const LayerInfo& info) const { return impl_->newest_slots(info); }
void CudaDecodeStep::attend_layer(const LayerInfo& info, Communicator& communicator, const HeadsView& out) {
  impl_->attend_layer(info, communicator, out);
}
void CudaDecodeStep::forget_graphs() { impl_->forget_graphs(); }
std::size_t CudaDecodeStep::bytes() const { return impl_->bytes(); }

}  // namespace lacuna
