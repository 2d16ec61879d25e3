// The rows of a decode step: page tables and states on the device, workspaces, counters.
#include <cstring>

#include "core/error.h"
#include "model/cuda/decode_step_impl.h"

namespace lacuna {

using namespace decode_step;

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
  params.settled = true;  // begin_step() writes all of it, and ends with a copy or waits
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
          .not_finite = flags_.as<int>() + group.begin,
          .settled = true};
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
  bool wrote = false;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Sequence& s = *rows_[i];
    if (s.prepared) continue;
    s.prepared = true;
    if (s.selector == nullptr || s.state.bytes() == 0) continue;
    Group alone = *std::find_if(groups_.begin(), groups_.end(),
                                [&](const Group& g) { return i >= g.begin && i < g.begin + g.count; });
    alone.begin = i;
    alone.count = 1;
    wrote = true;
    for (const LayerInfo& info : layers_) {
      if (info.window > 0) continue;
      s.selector->prepare(choice_of(alone, with_whole_groups(info), packed_q_.data()),
                          {choice_workspace_.data(), choice_workspace_.bytes()}, stream_);
    }
  }
  // DecodeChoice::settled: what the step's kernels read before their turn has been written.
  if (wrote) LACUNA_CUDA(cudaStreamSynchronize(stream_));
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

}  // namespace lacuna
