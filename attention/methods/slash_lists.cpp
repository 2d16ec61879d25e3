#include "attention/methods/slash_lists.h"

#include <algorithm>

namespace lacuna {

namespace {

/// Appends the ranges of the rows [m, m + 64).
void add_block(std::span<const std::int32_t> offsets, std::int64_t m, std::int64_t tokens, SlashTiles tiles,
               HeadLists& lists) {
  constexpr std::int64_t kBlock = kSlashRowBlock;
  const std::int64_t limit = std::min(m + kBlock, tokens);  // no row of this block sees a key from here on
  // Offsets below m + 64, walked from the largest: their blocks start from left to right.
  auto next = std::lower_bound(offsets.begin(), offsets.end(), m + kBlock);
  std::int64_t start = 0, end = -1;
  while (next != offsets.begin()) {
    const std::int64_t asked = std::max<std::int64_t>(m - *std::prev(next), 0);
    if (end < 0 || asked > end) {
      if (end >= 0) lists.add(start, std::min(end, limit));
      start = asked;
      end = asked + kBlock;
    } else {
      end = tiles == SlashTiles::kReleased ? end + kBlock : asked + kBlock;
    }
    // Blocks that end inside the range change nothing: skip all offsets of at least m + 64 - end.
    next = std::lower_bound(offsets.begin(), next, m + kBlock - end);
  }
  if (end >= 0) lists.add(start, std::min(end, limit));
}

}  // namespace

HeadLists slash_lists(std::span<const std::int32_t> columns, std::span<const std::int32_t> offsets,
                      std::int64_t tokens, SlashTiles tiles) {
  HeadLists lists;
  for (std::int64_t m = 0; m < tokens; m += kSlashRowBlock) {
    lists.begin_block();
    add_block(offsets, m, tokens, tiles, lists);
  }
  lists.columns.assign(columns.begin(), columns.end());
  return lists;
}

}  // namespace lacuna
