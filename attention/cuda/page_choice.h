// The kernels behind the decode selectors: bounds, scores and weights of pages for a group of sequences.
// Their shapes depend on host constants alone.
#pragma once

#include "attention/cuda/decode_methods.h"

namespace lacuna {

// State of quest and twilight, one layer of one sequence: channel-wise minima and maxima of the keys of each
// page, bf16 [page, kv_heads, 2, head_dim], minima first. The layout does not depend on how many pages there
// may be.

/// Bounds of every page of every head (`every`), or of the last page alone.
void page_bounds_update_cuda(const DecodeChoice& choice, bool every, cudaStream_t stream);

/// Upper bounds of q . k of every page but the last, [rows, heads, max pages]: heads are the kv heads, summed
/// over their group (`share`), or the query heads. Brings the last page's bounds up to date. row_pages [rows
/// * heads]: the pages that may be chosen.
void quest_scores_cuda(const DecodeChoice& choice, bool share, float* scores, std::int32_t* row_pages,
                       cudaStream_t stream);

/// Pages to weigh: null lists: all of them. Otherwise counts[i] entries from lists + i * stride, i = row *
/// kv_heads
/// + kv head.
struct PageCandidates {
  const std::int32_t* lists = nullptr;
  const std::int32_t* counts = nullptr;
  std::int64_t stride = 0;
};
/// weights [rows, kv_heads, max pages]: softmax weights of the candidates' tokens, summed per page, averaged
/// over the group's query heads. row_pages [rows * kv_heads]: how many. partial: two floats per query head
/// and page.
void page_weights_cuda(const DecodeChoice& choice, const PageCandidates& candidates, float* partial,
                       float* weights, std::int32_t* row_pages, cudaStream_t stream);

/// entries[i] = candidates' page number of entries[i], for counts[i] entries of each of `lists` lists.
void map_to_candidates_cuda(std::int32_t* entries, const std::int32_t* counts, std::int64_t stride,
                            const PageCandidates& candidates, int lists, cudaStream_t stream);

/// Pages of the first budget.sinks and the last budget.pages tokens.
void streaming_pages_cuda(const DecodeChoice& choice, cudaStream_t stream);

}  // namespace lacuna
