// From the tile lists of one row block to the keys it visits: what the CPU kernel executes, what accounting
// counts and what pictures draw.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/types.h"

namespace lacuna {

/// Rows that are computed together: lists.row_block, or 64 for dense lists.
int block_rows(const TileLists& lists);

/// Keys that rows [row_begin, row_end) of `head` visit before masks: the ranges, cut to what the last row may
/// see (and the first row's window), then the columns that no range covers. Rows must lie in one block.
/// Replaces the contents of `keys`.
void visited_keys(const TileLists& lists, int head, std::int64_t row_begin, std::int64_t row_end, int window,
                  std::vector<std::int32_t>& keys);

/// Cells (not flops) of the same keys.
AttentionCounts count_block(const TileLists& lists, int head, std::int64_t row_begin, std::int64_t row_end,
                            int window);

/// Throws kInternal when lists break the contract of TileLists for this shape.
void check_lists(const TileLists& lists, int heads, std::int64_t tokens);

}  // namespace lacuna
