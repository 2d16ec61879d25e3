#include "attention/methods/common.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace lacuna {

void for_each(ThreadPool* threads, std::int64_t count, const std::function<void(std::int64_t)>& body) {
  if (threads != nullptr) {
    threads->parallel_for(count, body);
  } else {
    for (std::int64_t i = 0; i < count; ++i) body(i);
  }
}

void throw_not_finite(const LayerInfo& info, int q_head) {
  throw_usage(
      "layer {}, query head {}: attention scores are not finite: Q or K holds NaN, infinity or values that "
      "overflow",
      info.layer, info.q_head_begin + q_head);
}

namespace {

template <class T>
std::vector<std::int32_t> top_indices_of(std::span<const T> scores, std::int64_t k) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  k = std::clamp<std::int64_t>(k, 0, std::ssize(scores));
  if (k < std::ssize(scores)) {
    const auto better = [&](std::int32_t a, std::int32_t b) {
      const T x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
      return x > y || (x == y && a < b);
    };
    std::nth_element(order.begin(), order.begin() + k, order.end(), better);
    order.resize(static_cast<std::size_t>(k));
    std::sort(order.begin(), order.end());
  }
  return order;
}

}  // namespace

std::vector<std::int32_t> top_indices(std::span<const double> scores, std::int64_t k) {
  return top_indices_of(scores, k);
}
std::vector<std::int32_t> top_indices(std::span<const float> scores, std::int64_t k) {
  return top_indices_of(scores, k);
}

std::vector<std::int32_t> sorted_indices(std::span<const double> scores) {
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const double x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  });
  return order;
}

std::int64_t prefix_above(std::span<const double> scores, std::span<const std::int32_t> order, double mass,
                          double total) {
  double sum = 0;
  for (std::size_t n = 0; n < order.size(); ++n) {
    sum += scores[static_cast<std::size_t>(order[n])];
    if (sum > mass * total) return static_cast<std::int64_t>(n) + 1;
  }
  return std::ssize(order);
}

double selection_flops(std::int64_t tokens, std::int64_t kept) {
  const auto n = static_cast<double>(tokens);
  return 2 * n * std::log2(std::max(n, 2.0)) + n / 64 * static_cast<double>(kept);
}

void HeadLists::add(std::int64_t start, std::int64_t end) {
  if (start >= end) return;
  const bool first = static_cast<std::int64_t>(ranges.size()) == block_begin.back();
  if (!first && ranges.back().start + ranges.back().width >= start) {
    ranges.back().width =
        static_cast<std::int32_t>(std::max<std::int64_t>(ranges.back().width, end - ranges.back().start));
  } else {
    ranges.push_back({static_cast<std::int32_t>(start), static_cast<std::int32_t>(end - start)});
  }
}

TileLists join_lists(std::vector<HeadLists> heads, std::int64_t tokens, int row_block) {
  TileLists lists{.heads = static_cast<int>(heads.size()), .tokens = tokens, .row_block = row_block};
  std::size_t ranges = 0, columns = 0;
  for (const HeadLists& head : heads) {
    ranges += head.ranges.size();
    columns += head.columns.size();
  }
  lists.ranges.reserve(ranges);
  lists.columns.reserve(columns);
  lists.range_begin.reserve(heads.size() * static_cast<std::size_t>(lists.row_blocks()) + 1);
  for (HeadLists& head : heads) {
    LACUNA_CHECK(std::ssize(head.block_begin) == lists.row_blocks(), "{} of {} row blocks were listed",
                 head.block_begin.size(), lists.row_blocks());
    const auto base = static_cast<std::int64_t>(lists.ranges.size());
    for (const std::int64_t begin : head.block_begin) lists.range_begin.push_back(base + begin);
    lists.ranges.insert(lists.ranges.end(), head.ranges.begin(), head.ranges.end());
    lists.column_begin.push_back(static_cast<std::int64_t>(lists.columns.size()));
    lists.columns.insert(lists.columns.end(), head.columns.begin(), head.columns.end());
    head = {};
  }
  lists.range_begin.push_back(static_cast<std::int64_t>(lists.ranges.size()));
  lists.column_begin.push_back(static_cast<std::int64_t>(lists.columns.size()));
  return lists;
}

TileLists dense_lists(int heads, std::int64_t tokens) {
  return {.heads = heads, .tokens = tokens, .row_block = 64, .dense = true};
}

}  // namespace lacuna
