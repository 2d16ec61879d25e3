// Methods that score (query block, key block) pairs and keep the best per query block: oracles, xattention,
// random.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "attention/methods/common.h"
#include "core/params.h"

namespace lacuna {

/// Which key blocks of a query block stay, given their scores (causal part, ascending).
class BlockRule {
 public:
  /// The `blocks` best, forced ones among them.
  static BlockRule top_k(std::int64_t blocks) { return {blocks, -1}; }
  /// The smallest set of best blocks whose scores reach `mass` of the row's sum, forced ones beside them.
  static BlockRule top_p(double mass) { return {-1, mass}; }

  /// Indices to keep, ascending. The last (diagonal) block is always kept, and the first when `keep_first`.
  std::vector<std::int32_t> choose(std::span<const double> scores, bool keep_first) const;

 private:
  BlockRule(std::int64_t blocks, double mass) : blocks_(blocks), mass_(mass) {}
  std::int64_t blocks_;
  double mass_;
};

/// Appends one row block's key blocks to `lists`.
void add_blocks(std::span<const std::int32_t> blocks, int block, std::int64_t tokens, HeadLists& lists);

/// The parameter every block method shares.
ParamSpec block_param(std::int64_t default_value);

}  // namespace lacuna
