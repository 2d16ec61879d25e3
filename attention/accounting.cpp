#include "attention/accounting.h"

#include <algorithm>

#include "attention/key_stream.h"

namespace lacuna {

namespace {

/// Sum over rows in [begin, end) of (row + offset), as an exact double.
double sum_of_rows(std::int64_t begin, std::int64_t end, std::int64_t offset) {
  if (end <= begin) return 0;
  const auto n = static_cast<double>(end - begin);
  return n * (static_cast<double>(begin + end - 1) / 2 + static_cast<double>(offset));
}

/// Cells with key < key_end and key <= row, rows in [begin, end).
double cells_below(std::int64_t begin, std::int64_t end, std::int64_t key_end) {
  key_end = std::max<std::int64_t>(key_end, 0);
  const std::int64_t edge =
      std::clamp(key_end - 1, begin, end);  // rows below see row + 1 keys, the rest key_end
  return sum_of_rows(begin, edge, 1) + static_cast<double>(end - edge) * static_cast<double>(key_end);
}

/// Cells with key < key_end and key <= row - window: those a window hides.
double cells_hidden(std::int64_t begin, std::int64_t end, std::int64_t key_end, int window) {
  const std::int64_t first = std::max<std::int64_t>(begin, window);
  if (first >= end) return 0;
  return cells_below(first - window, end - window, key_end);
}

}  // namespace

double visible_cells(std::int64_t row_begin, std::int64_t row_end, std::int64_t key_begin,
                     std::int64_t key_end, int window) {
  if (row_end <= row_begin || key_end <= key_begin) return 0;
  double cells = cells_below(row_begin, row_end, key_end) - cells_below(row_begin, row_end, key_begin);
  if (window > 0) {
    cells -= cells_hidden(row_begin, row_end, key_end, window) -
             cells_hidden(row_begin, row_end, key_begin, window);
  }
  return cells;
}

AttentionCounts count_prefill(const TileLists& lists, const LayerInfo& info) {
  AttentionCounts counts;
  const int rows_per_block = block_rows(lists);
  for (int head = 0; head < lists.heads; ++head) {
    for (std::int64_t begin = 0; begin < lists.tokens; begin += rows_per_block) {
      counts += count_block(lists, head, begin, std::min<std::int64_t>(begin + rows_per_block, lists.tokens),
                            info.window);
    }
  }
  counts.flops = 4.0 * info.head_dim * counts.computed_cells;
  return counts;
}

double density_of_head(const TileLists& lists, int head, int window) {
  double visited = 0;
  const int rows = block_rows(lists);
  for (std::int64_t begin = 0; begin < lists.tokens; begin += rows) {
    visited += count_block(lists, head, begin, std::min<std::int64_t>(begin + rows, lists.tokens), window)
                   .visited_cells;
  }
  const double causal = causal_cells(lists.tokens, window);
  return causal > 0 ? visited / causal : 0;
}

}  // namespace lacuna
