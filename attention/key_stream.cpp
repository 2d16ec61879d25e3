#include "attention/key_stream.h"

#include <algorithm>

#include "attention/accounting.h"
#include "core/error.h"

namespace lacuna {

namespace {

/// First key that any row from row_begin on may see.
std::int64_t first_visible(std::int64_t row_begin, int window) {
  return window > 0 ? std::max<std::int64_t>(0, row_begin - window + 1) : 0;
}

/// Calls range(begin, end) for each clipped range and column(key) for each uncovered column, ascending.
template <class OnRange, class OnColumn>
void walk(const TileLists& lists, int head, std::int64_t row_begin, std::int64_t row_end, int window,
          const OnRange& on_range, const OnColumn& on_column) {
  const std::int64_t low = first_visible(row_begin, window);
  if (lists.dense) {
    on_range(low, row_end);
    return;
  }
  const auto ranges = lists.ranges_of(head, row_begin / lists.row_block);
  for (const KeyRange& range : ranges) {
    const std::int64_t begin = std::max<std::int64_t>(range.start, low);
    const std::int64_t end = std::min<std::int64_t>(std::int64_t{range.start} + range.width, row_end);
    if (begin < end) on_range(begin, end);
  }
  std::size_t next = 0;
  for (const std::int32_t column : lists.columns_of(head)) {
    if (column >= row_end) break;
    if (column < low) continue;
    while (next < ranges.size() && ranges[next].start + ranges[next].width <= column) ++next;
    const bool covered = next < ranges.size() && ranges[next].start <= column;
    if (!covered) on_column(column);
  }
}

}  // namespace

int block_rows(const TileLists& lists) { return lists.dense ? 64 : lists.row_block; }

void visited_keys(const TileLists& lists, int head, std::int64_t row_begin, std::int64_t row_end, int window,
                  std::vector<std::int32_t>& keys) {
  keys.clear();
  walk(
      lists, head, row_begin, row_end, window,
      [&](std::int64_t begin, std::int64_t end) {
        const std::size_t size = keys.size();
        keys.resize(size + static_cast<std::size_t>(end - begin));
        for (std::int64_t key = begin; key < end; ++key) {
          keys[size + static_cast<std::size_t>(key - begin)] = static_cast<std::int32_t>(key);
        }
      },
      [&](std::int32_t column) { keys.push_back(column); });
}

AttentionCounts count_block(const TileLists& lists, int head, std::int64_t row_begin, std::int64_t row_end,
                            int window) {
  AttentionCounts counts;
  const auto rows = static_cast<double>(row_end - row_begin);
  walk(
      lists, head, row_begin, row_end, window,
      [&](std::int64_t begin, std::int64_t end) {
        counts.computed_cells += rows * static_cast<double>(end - begin);
        counts.visited_cells += visible_cells(row_begin, row_end, begin, end, window);
      },
      [&](std::int32_t column) {
        counts.computed_cells += rows;
        const bool all = column <= row_begin && (window == 0 || column > row_end - 1 - window);
        counts.visited_cells += all ? rows : visible_cells(row_begin, row_end, column, column + 1, window);
      });
  counts.causal_cells = visible_cells(row_begin, row_end, 0, row_end, window);
  return counts;
}

void check_lists(const TileLists& lists, int heads, std::int64_t tokens) {
  LACUNA_CHECK(lists.heads == heads && lists.tokens == tokens,
               "lists are for {} heads x {} tokens, the input has {} x {}", lists.heads, lists.tokens, heads,
               tokens);
  if (lists.dense) return;
  const int b = lists.row_block;
  LACUNA_CHECK(b == 1 || b == 16 || b == 32 || b == 64 || b == 128, "row block {}", b);
  LACUNA_CHECK(std::ssize(lists.range_begin) == heads * lists.row_blocks() + 1, "range_begin has {} entries",
               lists.range_begin.size());
  LACUNA_CHECK(std::ssize(lists.column_begin) == heads + 1, "column_begin has {} entries",
               lists.column_begin.size());
  LACUNA_CHECK(lists.range_begin.front() == 0 && lists.range_begin.back() == std::ssize(lists.ranges),
               "range_begin");
  LACUNA_CHECK(lists.column_begin.front() == 0 && lists.column_begin.back() == std::ssize(lists.columns),
               "column_begin");
  for (int head = 0; head < heads; ++head) {
    for (std::int64_t block = 0; block < lists.row_blocks(); ++block) {
      std::int64_t end = 0;
      for (const KeyRange& range : lists.ranges_of(head, block)) {
        LACUNA_CHECK(range.start >= end && range.width > 0, "head {} block {}: range {} + {} after {}", head,
                     block, range.start, range.width, end);
        end = std::int64_t{range.start} + range.width;
      }
    }
    std::int32_t last = -1;
    for (const std::int32_t column : lists.columns_of(head)) {
      LACUNA_CHECK(column > last && column < tokens, "head {}: column {} after {}", head, column, last);
      last = column;
    }
  }
}

}  // namespace lacuna
