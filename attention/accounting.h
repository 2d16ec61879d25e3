// Counting (query, key) cells of lists that are executed. Exact closed forms, tested against loops over every
// cell.
#pragma once

#include <cstdint>
#include <span>

#include "attention/types.h"

namespace lacuna {

/// Cells of queries [row_begin, row_end) with keys [key_begin, key_end) that the causal mask and the window
/// leave.
double visible_cells(std::int64_t row_begin, std::int64_t row_end, std::int64_t key_begin,
                     std::int64_t key_end, int window);

/// Cells of dense causal attention over `tokens` queries, one head.
inline double causal_cells(std::int64_t tokens, int window) {
  return visible_cells(0, tokens, 0, tokens, window);
}

/// visited, causal and computed cells and flops of prefill under `lists`, all heads. What attention_prefill
/// adds.
AttentionCounts count_prefill(const TileLists& lists, const LayerInfo& info);

/// Visited cells / causal cells of one head.
double density_of_head(const TileLists& lists, int head, int window);

}  // namespace lacuna
