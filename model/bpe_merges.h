// The merge rules of BPE and the merging itself.
#pragma once

#include <cstdint>
#include <vector>

#include "model/tokenizer.h"

namespace lacuna {

/// Rules (left, right) -> (rank, id of the joined token). A lower rank is applied first.
class MergeTable {
 public:
  struct Rule {
    std::uint32_t rank;
    TokenId joined;
  };
  void reserve(std::size_t rules);
  /// A rule given twice keeps its last rank, as in the reference.
  void set(TokenId left, TokenId right, Rule rule);
  const Rule* find(TokenId left, TokenId right) const;

  /// Merges symbols in place until no rule applies: always the lowest rank, leftmost first (Sennrich et al.
  /// 2016). O(n log n): short words by scanning, long ones with a heap over a linked list.
  void merge(std::vector<TokenId>& symbols) const;

 private:
  struct Slot {
    std::uint64_t key = kFree;
    Rule rule{};
  };
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};
  static std::uint64_t key_of(TokenId left, TokenId right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }
  std::size_t home(std::uint64_t key) const { return (key * 0x9E3779B97F4A7C15u) >> shift_; }
  void rehash(std::size_t slots);
  void merge_short(std::vector<TokenId>& symbols) const;
  void merge_long(std::vector<TokenId>& symbols) const;

  std::vector<Slot> slots_;  // a power of two, linear probing, at most half full
  int shift_ = 64;
  std::size_t rules_ = 0;
};

}  // namespace lacuna
