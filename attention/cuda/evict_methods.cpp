// Evictors on the GPU: importance and choice on the device, kept positions on the host. index_seconds is the
// stream's own time from the first launch until the positions have arrived (see IndexSpan).
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/cuda/method_util.h"
#include "attention/methods/eviction.h"
#include "attention/methods/snapkv_params.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Whether every kv head's query heads are on one rank, so that importance per kv head needs no other rank.
/// The same on all ranks.
bool groups_are_whole(const PrefillInput& input) {
  return input.communicator->size() == 1 || input.info.kv_heads_total % input.communicator->size() == 0;
}

/// Per-query-head rows on the device, of every rank, on the host: [q_heads_total][tokens]. Collective. Throws
/// on every rank alike when the scores of a head are not finite.
template <class Value>
std::vector<std::vector<double>> gather_rows(const CudaContext& context, const PrefillInput& input,
                                             const Value* rows, const int* not_finite) {
  const LayerInfo& info = input.info;
  const std::int64_t tokens = input.q.tokens;
  const std::vector<Value> host = download(context, rows, info.q_heads * tokens);
  const std::vector<int> bad = download(context, not_finite, info.q_heads);
  std::vector<std::vector<double>> local;
  for (int head = 0; head < info.q_heads; ++head) {
    const auto begin = host.begin() + head * tokens;
    local.emplace_back(begin, begin + tokens);
    if (bad[static_cast<std::size_t>(head)] != 0) local.back().front() = kNaN;
  }
  auto all = gather_heads(input, std::move(local));
  for (std::size_t head = 0; head < all.size(); ++head) {
    if (std::isnan(all[head].front())) throw_not_finite(info, static_cast<int>(head) - info.q_head_begin);
  }
  return all;
}

/// Importance per kv head and token in device memory.
struct Importance {
  float* rows = nullptr;            ///< [heads, tokens]
  const int* not_finite = nullptr;  ///< [q_heads]; null: checked already
};

/// SnapKV's and Ada-SnapKV's importance: sum or maximum over the window, mean or maximum over the query heads
/// of a kv head, an average over neighbours. Of this rank's kv heads, or of all of the layer's.
Importance attended(const CudaContext& context, const PrefillInput& input, const AttendedRequest& request,
                    bool maximum, bool all_heads, AttentionCounts& counts) {
  const LayerInfo& info = input.info;
  const std::int64_t tokens = input.q.tokens;
  auto* rows = take<float>(context, info.q_heads * tokens);
  int* not_finite = take_flags(context, info.q_heads);
  WindowScoresOut out{.not_finite = not_finite};
  (maximum ? out.column_max : out.column_sum) = rows;
  const auto window = static_cast<int>(request.window);
  window_scores_cuda(input, window, out,
                     take_workspace(context, window_scores_workspace_bytes(info, tokens, window, false)),
                     context.stream);
  counts.index_flops += info.q_heads * window_scores_flops(info, tokens, request.window);

  if (input.communicator->size() == 1 || (!all_heads && groups_are_whole(input))) {
    auto* pooled = take<float>(context, info.kv_heads * tokens);
    pool_importance_cuda(rows, info, tokens, maximum, request.kernel, pooled, context.stream);
    return {pooled, not_finite};
  }
  // The same sums in the same order on the host, so that the bits do not depend on the number of ranks.
  const auto grouped = group_heads(info, gather_rows(context, input, rows, not_finite),
                                   maximum ? GroupBy::kMax : GroupBy::kMean);
  const int first = all_heads ? 0 : info.kv_head_begin,
            heads = all_heads ? info.kv_heads_total : info.kv_heads;
  std::vector<float> host;
  for (int head = first; head < first + heads; ++head) {
    for (const double x : average_pool(grouped[static_cast<std::size_t>(head)], request.kernel))
      host.push_back(static_cast<float>(x));
  }
  return {upload(context, host), nullptr};
}

/// The choice, brought to the host. `heads` lists from `first` on.
KeptTokens download_kept(const CudaContext& context, const LayerInfo& info, const std::int32_t* kept,
                         std::int64_t stride, const std::int32_t* counts, int heads, const int* not_finite) {
  const auto host_counts = download(context, counts, heads);
  if (not_finite != nullptr) check_finite(info, download(context, not_finite, info.q_heads));
  const auto most = static_cast<std::size_t>(*std::max_element(host_counts.begin(), host_counts.end()));
  std::vector<std::int32_t> host(static_cast<std::size_t>(heads) * most);
  LACUNA_CUDA(cudaMemcpy2DAsync(
      host.data(), most * sizeof(std::int32_t), kept, static_cast<std::size_t>(stride) * sizeof(std::int32_t),
      most * sizeof(std::int32_t), static_cast<std::size_t>(heads), cudaMemcpyDeviceToHost, context.stream));
  LACUNA_CUDA(cudaStreamSynchronize(context.stream));
  KeptTokens lists;
  for (int head = 0; head < heads; ++head) {
    const auto begin = host.begin() + head * static_cast<std::ptrdiff_t>(most);
    lists.emplace_back(begin, begin + host_counts[static_cast<std::size_t>(head)]);
  }
  return lists;
}

/// The k best of every row; the first `first` and the last `last` among them.
KeptTokens keep_best(const CudaContext& context, const PrefillInput& input, const Importance& importance,
                     int heads, std::int64_t capacity, std::int64_t first, std::int64_t last) {
  const std::int64_t tokens = input.q.tokens;
  TopKParams top;
  top.scores = importance.rows;
  top.score_stride = tokens;
  top.rows = heads;
  top.n = static_cast<int>(tokens);
  top.k = static_cast<int>(std::min(tokens, std::max(capacity, first + last)));
  top.first = static_cast<int>(std::min(tokens, first));
  top.last = static_cast<int>(std::min(tokens, last));
  top.index_stride = top.k;
  top.indices = take<std::int32_t>(context, heads * top.index_stride);
  top.counts = take<std::int32_t>(context, heads);
  top_k_cuda(top, take_workspace(context, top_k_workspace_bytes(heads, tokens, false)), context.stream);
  return download_kept(context, input.info, top.indices, top.index_stride, top.counts, heads,
                       importance.not_finite);
}

/// SnapKV, and PyramidKV when beta is set.
class SnapKv final : public Evictor {
 public:
  SnapKv(const Params& params, double beta, const CudaContext& context)
      : context_(context), request_(attended_request(params)), beta_(beta) {}

  KeptTokens keep(const PrefillInput& input, AttentionCounts& counts) const override {
    const std::int64_t tokens = input.q.tokens;
    if (request_.capacity >= tokens) return {};
    const std::int64_t capacity =
        beta_ > 0 ? pyramid_capacity(request_.capacity, beta_, input.info, tokens) : request_.capacity;
    if (capacity >= tokens) return {};
    const IndexSpan span(context_, counts);
    const Importance importance = attended(context_, input, request_, false, false, counts);
    return keep_best(context_, input, importance, input.info.kv_heads, capacity, request_.first,
                     request_.last);
  }

 private:
  CudaContext context_;
  AttendedRequest request_;
  double beta_;
};

class AdaSnapKv final : public Evictor {
 public:
  AdaSnapKv(const Params& params, const CudaContext& context)
      : context_(context), request_(attended_request(params)), floor_(params.get_double("min_share")) {}

  KeptTokens keep(const PrefillInput& input, AttentionCounts& counts) const override {
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens;
    if (request_.capacity >= tokens) return {};
    const IndexSpan span(context_, counts);
    const Importance importance = attended(context_, input, request_, true, true, counts);
    SharedBudgetParams budget;
    budget.importance = importance.rows;
    budget.kv_heads = info.kv_heads_total;
    budget.tokens = tokens;
    budget.capacity = request_.capacity;
    const auto share = static_cast<std::int64_t>(floor_ * static_cast<double>(request_.capacity));
    budget.floor = static_cast<int>(std::min(tokens, std::max(share, request_.first + request_.last)));
    budget.first = static_cast<int>(std::min(tokens, request_.first));
    budget.last = static_cast<int>(std::min(tokens, request_.last));
    budget.kept = take<std::int32_t>(context_, info.kv_heads_total * tokens);
    budget.kept_stride = tokens;
    budget.counts = take<std::int32_t>(context_, info.kv_heads_total);
    shared_budget_cuda(budget,
                       take_workspace(context_, shared_budget_workspace_bytes(info.kv_heads_total, tokens)),
                       context_.stream);
    return download_kept(context_, info, budget.kept + info.kv_head_begin * tokens, tokens,
                         budget.counts + info.kv_head_begin, info.kv_heads, importance.not_finite);
  }

 private:
  CudaContext context_;
  AttendedRequest request_;
  double floor_;
};

/// The k best of every row of doubles.
KeptTokens keep_best(const CudaContext& context, const PrefillInput& input, const double* scores, int rows,
                     std::int64_t k, std::int64_t first, std::int64_t last, const int* not_finite) {
  const std::int64_t tokens = input.q.tokens;
  DoubleTopKParams top;
  top.scores = scores;
  top.rows = rows;
  top.n = static_cast<int>(tokens);
  top.k = static_cast<int>(std::min(tokens, std::max(k, first + last)));
  top.first = static_cast<int>(std::min(tokens, first));
  top.last = static_cast<int>(std::min(tokens, last));
  top.index_stride = top.k;
  top.indices = take<std::int32_t>(context, rows * top.index_stride);
  double_top_k_cuda(top, take_workspace(context, double_top_k_workspace_bytes(rows, tokens)), context.stream);
  const auto host = download(context, top.indices, rows * top.index_stride);
  if (not_finite != nullptr) check_finite(input.info, download(context, not_finite, input.info.q_heads));
  KeptTokens lists;
  for (int row = 0; row < rows; ++row) {
    const auto begin = host.begin() + row * top.index_stride;
    lists.emplace_back(begin, begin + top.k);
  }
  return lists;
}

class Tova final : public Evictor {
 public:
  Tova(const Params& params, const CudaContext& context)
      : context_(context), capacity_(params.get_int("capacity")) {}

  KeptTokens keep(const PrefillInput& input, AttentionCounts& counts) const override {
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens;
    if (capacity_ >= tokens) return {};
    const IndexSpan span(context_, counts);
    auto* rows = take<float>(context_, info.q_heads * tokens);
    int* not_finite = take_flags(context_, info.q_heads);
    window_scores_cuda(input, 1, {.column_sum = rows, .not_finite = not_finite},
                       take_workspace(context_, window_scores_workspace_bytes(info, tokens, 1, false)),
                       context_.stream);
    counts.index_flops += info.q_heads * window_scores_flops(info, tokens, 1);
    const double* total = nullptr;
    if (input.communicator->size() == 1) {
      auto* sum = take<double>(context_, tokens);
      sum_rows_cuda(rows, info.q_heads, tokens, sum, context_.stream);
      total = sum;
    } else {
      // All heads of the layer decide together.
      std::vector<double> sum(static_cast<std::size_t>(tokens));
      for (const auto& head : gather_rows(context_, input, rows, not_finite)) {
        for (std::size_t t = 0; t < sum.size(); ++t) sum[t] += head[t];
      }
      total = upload(context_, sum);
      not_finite = nullptr;
    }
    const KeptTokens kept = keep_best(context_, input, total, 1, capacity_, 0, 1, not_finite);
    return KeptTokens(static_cast<std::size_t>(info.kv_heads), kept.front());
  }

 private:
  CudaContext context_;
  std::int64_t capacity_;
};

class ExpectedAttention final : public Evictor {
 public:
  ExpectedAttention(const Params& params, const CudaContext& context)
      : context_(context),
        capacity_(params.get_int("capacity")),
        window_(params.get_int("window")),
        sinks_(params.get_int("sinks")),
        epsilon_(params.get_double("epsilon")),
        value_norm_(params.get_bool("value_norm")) {}

  KeptTokens keep(const PrefillInput& input, AttentionCounts& counts) const override {
    const LayerInfo& info = input.info;
    const std::int64_t tokens = input.q.tokens;
    if (capacity_ >= tokens) return {};
    const IndexSpan span(context_, counts);
    ExpectedAttentionParams params;
    params.window = static_cast<int>(std::min(window_, tokens));
    params.epsilon = epsilon_;
    params.value_norm = value_norm_;
    params.importance = take<double>(context_, info.q_heads * tokens);
    params.not_finite = take_flags(context_, info.q_heads);
    expected_attention_cuda(input, params,
                            take_workspace(context_, expected_attention_workspace_bytes(info, tokens)),
                            context_.stream);
    counts.index_flops +=
        info.q_heads * static_cast<double>(tokens) * info.head_dim * (2.0 * info.head_dim + 6.0);
    const double* means = nullptr;
    if (groups_are_whole(input)) {
      auto* to = take<double>(context_, info.kv_heads * tokens);
      group_means_cuda(params.importance, info, tokens, to, context_.stream);
      means = to;
    } else {
      const auto grouped = group_heads(
          info, gather_rows(context_, input, params.importance, params.not_finite), GroupBy::kMean);
      std::vector<double> own;
      for (int head = info.kv_head_begin; head < info.kv_head_begin + info.kv_heads; ++head) {
        const auto& row = grouped[static_cast<std::size_t>(head)];
        own.insert(own.end(), row.begin(), row.end());
      }
      means = upload(context_, own);
      params.not_finite = nullptr;
    }
    return keep_best(context_, input, means, info.kv_heads, capacity_, sinks_, 0, params.not_finite);
  }

 private:
  CudaContext context_;
  std::int64_t capacity_, window_, sinks_;
  double epsilon_;
  bool value_norm_;
};

}  // namespace

std::unique_ptr<Evictor> make_cuda_evictor(const MethodSpec& spec, CudaContext context) {
  find_method(Slot::kEvict, spec.method, "evict");
  // Rules about positions alone: the CPU's.
  for (const char* name : {"none", "streaming", "random"}) {
    if (spec.method == name) return make_evictor(spec);
  }
  if (spec.method == "snapkv") return std::make_unique<SnapKv>(spec.params, 0.0, context);
  if (spec.method == "pyramidkv")
    return std::make_unique<SnapKv>(spec.params, spec.params.get_double("beta"), context);
  if (spec.method == "ada_snapkv") return std::make_unique<AdaSnapKv>(spec.params, context);
  if (spec.method == "tova") return std::make_unique<Tova>(spec.params, context);
  if (spec.method == "expected_attention") return std::make_unique<ExpectedAttention>(spec.params, context);
  throw_usage("evict {} is not available on CUDA yet; use device cpu", spec.method);
}

}  // namespace lacuna
