#include "attention/cuda/decode_methods.h"

#include <algorithm>
#include <string_view>

#include "attention/cuda/page_choice.h"
#include "attention/cuda/select_cuda.h"
#include "core/error.h"

namespace lacuna {

namespace {

constexpr std::size_t kAlign = 256;
/// DecodeBudget in units of TopKParams::budget_stride.
constexpr int kBudgetWords = sizeof(DecodeBudget) / 4;
static_assert(sizeof(DecodeBudget) % 4 == 0);

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

/// Hands out pieces of a workspace; without memory it only adds up.
class Pieces {
 public:
  explicit Pieces(void* base = nullptr) : base_(static_cast<std::byte*>(base)) {}
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = bytes_;
    bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

void check(const DecodeChoice& choice, CudaWorkspace workspace, std::size_t needed) {
  LACUNA_CHECK(choice.list_stride >= pages_of(choice.max_tokens), "lists of {} for {} tokens",
               choice.list_stride, choice.max_tokens);
  if (workspace.bytes < needed)
    throw_resource("a decode choice needs {} bytes of workspace, got {}", needed, workspace.bytes);
}

/// The top_k of a group's rows into its lists.
TopKParams selection(const DecodeChoice& choice, const float* scores, const std::int32_t* row_pages,
                     int heads) {
  TopKParams top;
  top.scores = scores;
  top.score_stride = pages_of(choice.max_tokens);
  top.rows = choice.rows * heads;
  top.n = static_cast<int>(top.score_stride);
  top.row_n = row_pages;
  top.rows_per_budget = heads;
  top.budget_stride = kBudgetWords;
  top.indices = choice.lists;
  top.index_stride = choice.list_stride;
  top.counts = choice.counts;
  return top;
}

std::size_t bounds_bytes(const LayerInfo& info, std::int64_t max_tokens) {
  return static_cast<std::size_t>(pages_of(max_tokens) + 1) * static_cast<std::size_t>(info.kv_heads) * 2 *
         static_cast<std::size_t>(info.head_dim) * sizeof(BFloat16);
}

void add_score_cost(const LayerInfo& info, bool share, std::span<const std::int64_t> head_tokens,
                    AttentionCounts& counts) {
  const int rows = share ? info.kv_heads : info.q_heads;
  for (int row = 0; row < rows; ++row) {
    const int kv = share ? row : info.kv_head_of(row);
    const auto values =
        static_cast<double>(pages_of(head_tokens[static_cast<std::size_t>(kv)]) * 2 * info.head_dim);
    counts.index_flops += 2.0 * values;
    counts.index_bytes_read += values * sizeof(BFloat16);
  }
}

void add_weight_cost(const LayerInfo& info, std::int64_t pages, AttentionCounts& counts) {
  const int group = info.q_heads_total / info.kv_heads_total;
  const auto tokens = static_cast<double>(pages * kPageTokens);
  counts.index_flops += tokens * group * (2.0 * info.head_dim + 5.0);
  counts.index_bytes_read += tokens * info.head_dim * sizeof(BFloat16);
}

/// attention/methods/decode_quest.cpp
class QuestCuda final : public CudaDecodeSelector {
 public:
  explicit QuestCuda(const Params& params)
      : pages_(std::max<std::int64_t>(1, params.get_int("budget") / kPageTokens)),
        share_(params.get_bool("share_pages")) {}

  std::string group_key() const override { return share_ ? "quest, shared" : "quest, per query head"; }
  bool lists_per_q_head() const override { return !share_; }
  DecodeBudget budget() const override { return {.pages = static_cast<std::int32_t>(pages_)}; }
  std::size_t state_bytes(const LayerInfo& info, std::int64_t max_tokens) const override {
    return bounds_bytes(info, max_tokens);
  }
  void prepare(const DecodeChoice& choice, CudaWorkspace, cudaStream_t stream) const override {
    page_bounds_update_cuda(choice, true, stream);
  }
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, workspace_bytes(choice));
    const int heads = share_ ? choice.info.kv_heads : choice.info.q_heads;
    Pieces pieces(workspace.data);
    const Scores scores = take(pieces, choice);
    quest_scores_cuda(choice, share_, scores.scores, scores.row_pages, stream);
    TopKParams top = selection(choice, scores.scores, scores.row_pages, heads);
    top.row_k = &choice.budgets->pages;
    top.append_n = true;
    top_k_cuda(top, stream);
  }
  std::size_t workspace_bytes(const DecodeChoice& choice) const override {
    Pieces pieces;
    take(pieces, choice);
    return pieces.bytes();
  }
  void add_cost(const LayerInfo& info, std::span<const std::int64_t> head_tokens,
                AttentionCounts& counts) const override {
    add_score_cost(info, share_, head_tokens, counts);
  }

 private:
  struct Scores {
    float* scores;
    std::int32_t* row_pages;
  };
  Scores take(Pieces& pieces, const DecodeChoice& choice) const {
    const std::int64_t rows =
        std::int64_t{choice.rows} * (share_ ? choice.info.kv_heads : choice.info.q_heads);
    auto* scores = pieces.take<float>(rows * pages_of(choice.max_tokens));
    return {scores, pieces.take<std::int32_t>(rows)};
  }

  std::int64_t pages_;
  bool share_;
};

/// What exact page weights need.
struct WeightPieces {
  float *partial, *weights;
  std::int32_t* row_pages;
  WeightPieces(Pieces& pieces, const DecodeChoice& choice) {
    const std::int64_t pages = pages_of(choice.max_tokens),
                       lists = std::int64_t{choice.rows} * choice.info.kv_heads;
    partial = pieces.take<float>(std::int64_t{choice.rows} * choice.info.q_heads * pages * 2);
    weights = pieces.take<float>(lists * pages);
    row_pages = pieces.take<std::int32_t>(lists);
  }
};

/// The fewest pages that hold budget.mass of the weights, and the current one.
TopKParams mass_selection(const DecodeChoice& choice, const WeightPieces& pieces) {
  TopKParams top = selection(choice, pieces.weights, pieces.row_pages, choice.info.kv_heads);
  top.mass = 0.0f;
  top.mass_total = 1.0f;
  top.row_mass = &choice.budgets->mass;
  top.reaches = true;
  top.add_last = true;
  return top;
}

/// attention/methods/decode_oracle.cpp
class OracleCuda final : public CudaDecodeSelector {
 public:
  OracleCuda(std::int64_t pages, double mass) : pages_(pages), mass_(mass) {}

  std::string group_key() const override { return pages_ > 0 ? "oracle_top_k" : "oracle_top_p"; }
  DecodeBudget budget() const override {
    return {.pages = static_cast<std::int32_t>(pages_), .mass = static_cast<float>(mass_)};
  }
  std::size_t state_bytes(const LayerInfo&, std::int64_t) const override { return 0; }
  void prepare(const DecodeChoice&, CudaWorkspace, cudaStream_t) const override {}
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, workspace_bytes(choice));
    Pieces pieces(workspace.data);
    const WeightPieces w(pieces, choice);
    page_weights_cuda(choice, {}, w.partial, w.weights, w.row_pages, stream);
    if (pages_ == 0) return top_k_cuda(mass_selection(choice, w), stream);
    // The best of the others and the current page: the last one is forced and counts beside the budget.
    TopKParams top = selection(choice, w.weights, w.row_pages, choice.info.kv_heads);
    top.row_k = &choice.budgets->pages;
    top.k_more = 1;
    top.last = 1;
    top_k_cuda(top, stream);
  }
  std::size_t workspace_bytes(const DecodeChoice& choice) const override {
    Pieces pieces;
    WeightPieces(pieces, choice);
    return pieces.bytes();
  }
  void add_cost(const LayerInfo& info, std::span<const std::int64_t> head_tokens,
                AttentionCounts& counts) const override {
    for (const std::int64_t tokens : head_tokens) add_weight_cost(info, pages_of(tokens), counts);
  }

 private:
  std::int64_t pages_;  // 0: by mass
  double mass_;
};

/// attention/methods/decode_twilight.cpp
class TwilightCuda final : public CudaDecodeSelector {
 public:
  explicit TwilightCuda(const Params& params)
      : pages_(params.get_int("budget") / kPageTokens), mass_(params.get_double("top_p")) {}

  std::string group_key() const override { return "twilight"; }
  DecodeBudget budget() const override {
    return {.pages = static_cast<std::int32_t>(pages_), .mass = static_cast<float>(mass_)};
  }
  std::size_t state_bytes(const LayerInfo& info, std::int64_t max_tokens) const override {
    return bounds_bytes(info, max_tokens);
  }
  void prepare(const DecodeChoice& choice, CudaWorkspace, cudaStream_t stream) const override {
    page_bounds_update_cuda(choice, true, stream);
  }
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, workspace_bytes(choice));
    Pieces pieces(workspace.data);
    const WeightPieces w(pieces, choice);
    const Proposal p(pieces, choice);
    quest_scores_cuda(choice, true, p.scores, w.row_pages, stream);
    TopKParams propose = selection(choice, p.scores, w.row_pages, choice.info.kv_heads);
    propose.row_k = &choice.budgets->pages;
    propose.append_n = true;
    propose.indices = p.lists;
    propose.counts = p.counts;
    top_k_cuda(propose, stream);
    const PageCandidates candidates{.lists = p.lists, .counts = p.counts, .stride = choice.list_stride};
    page_weights_cuda(choice, candidates, w.partial, w.weights, w.row_pages, stream);
    top_k_cuda(mass_selection(choice, w), stream);
    map_to_candidates_cuda(choice.lists, choice.counts, choice.list_stride, candidates,
                           choice.rows * choice.info.kv_heads, stream);
  }
  std::size_t workspace_bytes(const DecodeChoice& choice) const override {
    Pieces pieces;
    WeightPieces(pieces, choice);
    Proposal(pieces, choice);
    return pieces.bytes();
  }
  void add_cost(const LayerInfo& info, std::span<const std::int64_t> head_tokens,
                AttentionCounts& counts) const override {
    add_score_cost(info, true, head_tokens, counts);
    for (const std::int64_t tokens : head_tokens)
      add_weight_cost(info, std::min(pages_of(tokens), pages_ + 1), counts);
  }

 private:
  struct Proposal {
    float* scores;
    std::int32_t *lists, *counts;
    Proposal(Pieces& pieces, const DecodeChoice& choice) {
      const std::int64_t rows = std::int64_t{choice.rows} * choice.info.kv_heads;
      scores = pieces.take<float>(rows * pages_of(choice.max_tokens));
      lists = pieces.take<std::int32_t>(rows * choice.list_stride);
      counts = pieces.take<std::int32_t>(rows);
    }
  };

  std::int64_t pages_;
  double mass_;
};

/// attention/methods/decode_streaming.cpp
class StreamingCuda final : public CudaDecodeSelector {
 public:
  explicit StreamingCuda(const Params& params)
      : sinks_(params.get_int("sinks")), window_(params.get_int("window")) {}

  std::string group_key() const override { return "streaming"; }
  DecodeBudget budget() const override {
    constexpr std::int64_t kMost = INT32_MAX;
    return {.pages = static_cast<std::int32_t>(std::min(window_, kMost)),
            .sinks = static_cast<std::int32_t>(std::min(sinks_, kMost - kPageTokens))};
  }
  std::size_t state_bytes(const LayerInfo&, std::int64_t) const override { return 0; }
  void prepare(const DecodeChoice&, CudaWorkspace, cudaStream_t) const override {}
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, 0);
    streaming_pages_cuda(choice, stream);
  }
  std::size_t workspace_bytes(const DecodeChoice&) const override { return 0; }
  void add_cost(const LayerInfo&, std::span<const std::int64_t>, AttentionCounts&) const override {}

 private:
  std::int64_t sinks_, window_;
};

}  // namespace

std::unique_ptr<CudaDecodeSelector> make_cuda_decode_selector(const MethodSpec& spec) {
  const std::string_view method = spec.method;
  if (method == "dense") return nullptr;
  if (method == "quest") return std::make_unique<QuestCuda>(spec.params);
  if (method == "twilight") return std::make_unique<TwilightCuda>(spec.params);
  if (method == "streaming") return std::make_unique<StreamingCuda>(spec.params);
  if (method == "oracle_top_k")
    return std::make_unique<OracleCuda>(spec.params.get_int("budget") / kPageTokens, 0.0);
  if (method == "oracle_top_p") return std::make_unique<OracleCuda>(0, spec.params.get_double("top_p"));
  throw_usage("decode method '{}' has no CUDA implementation; use device cpu", spec.method);
}

}  // namespace lacuna
