// What the methods share: loops over heads, top-k with the one tie rule, building lists, timing, the NaN
// error.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "attention/types.h"

namespace lacuna {

/// The always-kept entries of the paper's methods: attention sinks and the local band.
inline constexpr int kSinkColumns = 4;
inline constexpr int kLocalOffsets = 64;
inline constexpr int kLocalTokens = 128;

/// body(i) for i in [0, count) on `threads`, or in a plain loop when it is null.
void for_each(ThreadPool* threads, std::int64_t count, const std::function<void(std::int64_t)>& body);

/// Throws kUsage: layer, global query head, and what is wrong.
[[noreturn]] void throw_not_finite(const LayerInfo& info, int q_head);

/// Adds the time until it is destroyed to counts.index_seconds.
class IndexTimer {
 public:
  explicit IndexTimer(AttentionCounts& counts) : counts_(counts), start_(Clock::now()) {}
  ~IndexTimer() { counts_.index_seconds += std::chrono::duration<double>(Clock::now() - start_).count(); }
  IndexTimer(const IndexTimer&) = delete;
  IndexTimer& operator=(const IndexTimer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  AttentionCounts& counts_;
  Clock::time_point start_;
};

/// Indices of the k largest scores, ascending. Equal scores: the lower index wins. k is clamped to [0, size].
std::vector<std::int32_t> top_indices(std::span<const double> scores, std::int64_t k);
std::vector<std::int32_t> top_indices(std::span<const float> scores, std::int64_t k);

/// All indices, best first, by the same rule.
std::vector<std::int32_t> sorted_indices(std::span<const double> scores);

/// Smallest n such that the n first of `order` have a mass above `mass` (a fraction of `total`); at most all
/// of them.
std::int64_t prefix_above(std::span<const double> scores, std::span<const std::int32_t> order, double mass,
                          double total);

/// What ranking columns and diagonals and merging them into lists costs, as the paper counts it: 2 L log2 L
/// for two sorts, and one step per kept entry and row block.
double selection_flops(std::int64_t tokens, std::int64_t kept);

/// The lists of one head while they are made.
struct HeadLists {
  std::vector<KeyRange> ranges;
  std::vector<std::int64_t> block_begin;  ///< Push ranges.size() before each block's ranges.
  std::vector<std::int32_t> columns;

  void begin_block() { block_begin.push_back(static_cast<std::int64_t>(ranges.size())); }
  /// Adds keys [start, end), joined to the block's last range when they touch it. Calls come in ascending
  /// order.
  void add(std::int64_t start, std::int64_t end);
};

/// Joins the heads' lists, in head order.
TileLists join_lists(std::vector<HeadLists> heads, std::int64_t tokens, int row_block);

/// Everything causal.
TileLists dense_lists(int heads, std::int64_t tokens);

}  // namespace lacuna
