// The kernels behind FlexPrefill's query-aware branch and its `original` variant: see
// methods/prefill_flexprefill.cpp. Asynchronous on `stream`, no allocation, the same bits every time.
#pragma once

#include "attention/cuda/select_cuda.h"

namespace lacuna {

/// Means over blocks of rows, fp32, sums ascending: [heads, ceil(tokens / block), head_dim].
void mean_blocks_cuda(const HeadsView& x, int block, float* means, cudaStream_t stream);

/// Which heads' block-level estimate lies nearer than tau to the truth (square root of the Jensen-Shannon
/// divergence, natural logarithm).
struct BlockEstimateParams {
  const float* column_sum = nullptr;  ///< [q_heads, tokens], as window_scores_cuda writes it
  int rows = 0;                       ///< of the window
  const float* key_means = nullptr;   ///< [kv_heads, blocks, head_dim]
  int block = 64;
  double tau = 0;
  double* scratch = nullptr;  ///< [q_heads, head_dim + 2 * blocks]
  int* near_truth = nullptr;  ///< [q_heads]: 1 or 0
};
void block_estimate_cuda(const PrefillInput& input, const BlockEstimateParams& params, cudaStream_t stream);

/// Pairs of pooled blocks, [q_heads, blocks, map_stride]: first scores, scale times mean query . mean key;
/// then in place the softmax of every row, with zeros after the diagonal.
struct BlockMapParams {
  const float* query_means = nullptr;  ///< [q_heads, blocks, head_dim]
  const float* key_means = nullptr;    ///< [kv_heads, blocks, head_dim]
  int blocks = 0;
  const int* only_heads = nullptr;  ///< device, [q_heads]: heads with 0 are left alone
  float* map = nullptr;
  std::int64_t map_stride = 0;
};
void block_map_scores_cuda(const LayerInfo& info, const BlockMapParams& params, cudaStream_t stream);
void block_map_softmax_cuda(const LayerInfo& info, const BlockMapParams& params, cudaStream_t stream);

/// Blocks that a kept column lies in or a kept diagonal crosses, the first and the diagonal block, as bits
/// [heads, blocks, words] of the heads for which skip_heads (device; null: none) is 0.
void slash_bits_cuda(const SlashListsParams& kept, int block, const int* skip_heads, std::uint32_t* bits,
                     std::int64_t words, cudaStream_t stream);

}  // namespace lacuna
