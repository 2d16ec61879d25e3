// The truth for every CPU and CUDA implementation: plain fp32 loops, one query row at a time, nothing clever.
// Written from docs/attention.md alone; it shares no code with the methods it checks.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/types.h"
#include "core/params.h"

namespace lacuna::reference {

/// visible[query][key]: what one head computes.
using Mask = std::vector<std::vector<bool>>;

/// All keys up to the query, within the window.
Mask causal_mask(std::int64_t tokens, int window);
/// What lists say about one head, under causal mask and window.
Mask mask_of(const TileLists& lists, int head, int window);

/// Softmax attention of one query head under a mask: [tokens, head_dim]. A row that sees nothing is zeros.
std::vector<float> attention(const PrefillInput& input, int q_head, const Mask& mask);

/// One query against given cached tokens of one kv head: [head_dim].
std::vector<float> decode_attention(const float* q, const PagedHead& head,
                                    const std::vector<std::int64_t>& tokens, const float* pool,
                                    std::int64_t page_elements, const LayerInfo& info);

/// scale * q . k with the soft cap, fp32.
float score(const float* q, const float* k, const LayerInfo& info);
/// P[i][j] for the last min(window, tokens) rows of one head (row 0 is the first of them), zeros where
/// masked. The softmax sums in double.
std::vector<std::vector<float>> window_weights(const PrefillInput& input, int q_head, std::int64_t window);
/// The k largest, ties to the lower index, ascending.
std::vector<std::int32_t> top(const std::vector<double>& scores, std::int64_t k);

/// The mask a prefill method selects for one head: `method` and `params` as in the registry.
Mask prefill_mask(const std::string& method, const Params& params, const PrefillInput& input, int q_head);
/// Kept tokens per kv head, for a team of one rank.
std::vector<std::vector<std::int32_t>> evict(const std::string& method, const Params& params,
                                             const PrefillInput& input);
/// One step's input for reference methods: contiguous keys.
struct Step {
  const float* q = nullptr;              ///< [q_heads, head_dim]
  std::vector<std::vector<float>> keys;  ///< [kv_heads][tokens * head_dim]
  LayerInfo info;
  std::uint64_t seed = 0;
};
/// Page lists of one step, per kv head or per query head as the method does.
std::vector<PageList> decode_pages(const std::string& method, const Params& params, const Step& step);

}  // namespace lacuna::reference
