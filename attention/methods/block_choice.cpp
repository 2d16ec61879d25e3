#include "attention/methods/block_choice.h"

#include <algorithm>
#include <limits>

namespace lacuna {

std::vector<std::int32_t> BlockRule::choose(std::span<const double> scores, bool keep_first) const {
  std::vector<double> ranked(scores.begin(), scores.end());
  std::int64_t count = blocks_;
  if (count < 0) {
    double total = 0, sum = 0;
    for (const double s : scores) total += s;
    const auto order = sorted_indices(scores);
    count = 0;
    while (count < std::ssize(order) && sum < mass_ * total)
      sum += scores[static_cast<std::size_t>(order[static_cast<std::size_t>(count++)])];
    std::vector<std::int32_t> kept(order.begin(), order.begin() + count);
    kept.push_back(static_cast<std::int32_t>(scores.size()) - 1);
    if (keep_first) kept.push_back(0);
    std::sort(kept.begin(), kept.end());
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    return kept;
  }
  ranked.back() = std::numeric_limits<double>::infinity();
  if (keep_first) ranked.front() = std::numeric_limits<double>::infinity();
  return top_indices(ranked, std::max<std::int64_t>(count, keep_first ? 2 : 1));
}

void add_blocks(std::span<const std::int32_t> blocks, int block, std::int64_t tokens, HeadLists& lists) {
  lists.begin_block();
  for (const std::int32_t b : blocks) {
    const std::int64_t start = std::int64_t{b} * block;
    lists.add(start, std::min(start + block, tokens));
  }
}

ParamSpec block_param(std::int64_t default_value) {
  return {.name = "block",
          .default_value = default_value,
          .help = "Rows and columns of a block",
          .unit = "tokens",
          .choices = {"16", "32", "64", "128"}};
}

}  // namespace lacuna
