// The kernels that the decode selectors are made of. Lists of a group of sequences are numbered [rows, lists
// of one sequence]: one per kv head, or one per query head. Launch shapes follow from host constants alone.
#pragma once

#include <cstdint>

#include "attention/cuda/decode_methods.h"

namespace lacuna {

/// Floats from one list's scores to the next one's: pages of max_tokens in whole 16-byte words.
inline std::int64_t page_score_stride(std::int64_t max_tokens) {
  return ((max_tokens + kPageTokens - 1) / kPageTokens + 3) / 4 * 4;
}

// --- Bounds
// State of quest and twilight, one layer of one sequence: channel-wise minima and maxima of the keys of each
// page, bf16 [pages, kv_heads, 2, head_dim], minima first. Pages come first, so that the layout does not
// depend on how many there may be.

/// Bounds of every page of every head.
void prepare_page_bounds_cuda(const DecodeChoice& choice, cudaStream_t stream);

/// Brings the bounds of each head's last page up to date and writes upper bounds of q . k of all pages:
/// scores [rows, lists, page_score_stride], lists per kv head, summed over its query heads (`share`), or per
/// query head. Sets choice.not_finite[row] where one is NaN or infinite.
void page_bound_scores_cuda(const DecodeChoice& choice, bool share, float* scores, cudaStream_t stream);

// --- Exact weights

/// Query heads that one kv head may serve.
inline constexpr int kMaxPageGroup = 128;

/// Pages to choose from, sorted, the current page last. Null lists: every page. Otherwise counts[i] entries
/// from lists + i * stride, i = row * kv_heads + kv head.
struct PageCandidates {
  const std::int32_t* lists = nullptr;
  const std::int32_t* counts = nullptr;
  std::int64_t stride = 0;
};

/// weights [rows, kv_heads, page_score_stride], by place among the candidates: softmax weights of the
/// candidates' tokens, summed per page, averaged over the group's query heads. Sets choice.not_finite[row]
/// where a score is NaN or infinite.
void page_weights_cuda(const DecodeChoice& choice, const PageCandidates& candidates, float* weights,
                       CudaWorkspace workspace, cudaStream_t stream);
std::size_t page_weights_workspace_bytes(const DecodeChoice& choice);

// --- Choosing

enum class PageRule {
  kBest,  ///< the budget.pages best of all candidates but the current page, and the current page
  kMass,  ///< the fewest candidates with a share of budget.mass of the sum of scores, and the current page
};

/// Lists of `lists_per_row` heads of each row, kv or query heads, from their scores; equal scores: the lower
/// index wins. kMass needs scores in [0, 2].
void choose_pages_cuda(const DecodeChoice& choice, PageRule rule, int lists_per_row, const float* scores,
                       const PageCandidates& candidates, std::int32_t* lists, std::int32_t* counts,
                       std::int64_t list_stride, cudaStream_t stream);

/// Pages of the first budget.sinks and the last budget.pages tokens.
void streaming_pages_cuda(const DecodeChoice& choice, cudaStream_t stream);

}  // namespace lacuna
