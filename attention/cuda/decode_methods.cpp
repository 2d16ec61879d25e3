#include "attention/cuda/decode_methods.h"

#include <algorithm>
#include <string_view>

#include "attention/cuda/page_choice.h"
#include "core/error.h"

namespace lacuna {

namespace {

constexpr std::size_t kAlign = 256;

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

void check_layer(const LayerInfo& info) {
  const int d = info.head_dim, group = info.q_heads_total / info.kv_heads_total;
  if (d != 64 && d != 96 && d != 128 && d != 256)
    throw_usage("attention on CUDA: head_dim {} is not supported; 64, 96, 128 and 256 are", d);
  if (group > kMaxPageGroup)
    throw_usage("decode methods on CUDA: {} query heads share a kv head; at most {} are supported", group,
                kMaxPageGroup);
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
    check_layer(choice.info);
    prepare_page_bounds_cuda(choice, stream);
  }
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, workspace_bytes(choice));
    check_layer(choice.info);
    auto* scores = static_cast<float*>(workspace.data);
    page_bound_scores_cuda(choice, share_, scores, stream);
    choose_pages_cuda(choice, PageRule::kBest, heads(choice.info), scores, {}, choice.lists, choice.counts,
                      choice.list_stride, stream);
  }
  std::size_t workspace_bytes(const DecodeChoice& choice) const override {
    Pieces pieces;
    pieces.take<float>(std::int64_t{choice.rows} * heads(choice.info) * page_score_stride(choice.max_tokens));
    return pieces.bytes();
  }
  void add_cost(const LayerInfo& info, std::span<const std::int64_t> head_tokens,
                AttentionCounts& counts) const override {
    add_score_cost(info, share_, head_tokens, counts);
  }

 private:
  int heads(const LayerInfo& info) const { return share_ ? info.kv_heads : info.q_heads; }

  std::int64_t pages_;
  bool share_;
};

/// What exact page weights need.
struct WeightPieces {
  float* weights;
  CudaWorkspace workspace;
  WeightPieces(Pieces& pieces, const DecodeChoice& choice) {
    const std::size_t bytes = page_weights_workspace_bytes(choice);
    weights = pieces.take<float>(std::int64_t{choice.rows} * choice.info.kv_heads *
                                 page_score_stride(choice.max_tokens));
    workspace = {pieces.take<std::byte>(static_cast<std::int64_t>(bytes)), bytes};
  }
};

/// attention/methods/decode_oracle.cpp
class OracleCuda final : public CudaDecodeSelector {
 public:
  OracleCuda(std::int64_t pages, double mass) : pages_(pages), mass_(mass) {}

  std::string group_key() const override { return pages_ > 0 ? "oracle_top_k" : "oracle_top_p"; }
  DecodeBudget budget() const override { return {.pages = static_cast<std::int32_t>(pages_), .mass = mass_}; }
  std::size_t state_bytes(const LayerInfo&, std::int64_t) const override { return 0; }
  void prepare(const DecodeChoice&, CudaWorkspace, cudaStream_t) const override {}
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, workspace_bytes(choice));
    check_layer(choice.info);
    Pieces pieces(workspace.data);
    const WeightPieces w(pieces, choice);
    page_weights_cuda(choice, {}, w.weights, w.workspace, stream);
    choose_pages_cuda(choice, pages_ > 0 ? PageRule::kBest : PageRule::kMass, choice.info.kv_heads, w.weights,
                      {}, choice.lists, choice.counts, choice.list_stride, stream);
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
  DecodeBudget budget() const override { return {.pages = static_cast<std::int32_t>(pages_), .mass = mass_}; }
  std::size_t state_bytes(const LayerInfo& info, std::int64_t max_tokens) const override {
    return bounds_bytes(info, max_tokens);
  }
  void prepare(const DecodeChoice& choice, CudaWorkspace, cudaStream_t stream) const override {
    check_layer(choice.info);
    prepare_page_bounds_cuda(choice, stream);
  }
  void choose(const DecodeChoice& choice, CudaWorkspace workspace, cudaStream_t stream) const override {
    check(choice, workspace, workspace_bytes(choice));
    check_layer(choice.info);
    const int heads = choice.info.kv_heads;
    Pieces pieces(workspace.data);
    const WeightPieces w(pieces, choice);
    const Proposal p(pieces, choice);
    page_bound_scores_cuda(choice, true, p.scores, stream);
    choose_pages_cuda(choice, PageRule::kBest, heads, p.scores, {}, p.lists, p.counts, choice.list_stride,
                      stream);
    const PageCandidates candidates{.lists = p.lists, .counts = p.counts, .stride = choice.list_stride};
    page_weights_cuda(choice, candidates, w.weights, w.workspace, stream);
    choose_pages_cuda(choice, PageRule::kMass, heads, w.weights, candidates, choice.lists, choice.counts,
                      choice.list_stride, stream);
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
      scores = pieces.take<float>(rows * page_score_stride(choice.max_tokens));
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
