#include "model/bpe_merges.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>

namespace lacuna {
namespace {

constexpr std::size_t kShort = 24;  // symbols up to which scanning beats the heap
constexpr std::uint32_t kNoRank = ~std::uint32_t{0};
constexpr std::int32_t kNone = -1;

}  // namespace

void MergeTable::reserve(std::size_t rules) { rehash(std::bit_ceil(std::max<std::size_t>(16, rules * 2))); }

void MergeTable::rehash(std::size_t slots) {
  std::vector<Slot> old(slots);
  old.swap(slots_);
  shift_ = 64 - std::countr_zero(slots);
  rules_ = 0;
  for (const Slot& slot : old) {
    if (slot.key != kFree) {
      set(static_cast<TokenId>(slot.key >> 32), static_cast<TokenId>(slot.key & 0xFFFFFFFFu), slot.rule);
    }
  }
}

void MergeTable::set(TokenId left, TokenId right, Rule rule) {
  if ((rules_ + 1) * 2 > slots_.size()) rehash(std::max<std::size_t>(16, slots_.size() * 2));
  const std::uint64_t key = key_of(left, right);
  std::size_t i = home(key);
  while (slots_[i].key != kFree && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
  if (slots_[i].key == kFree) ++rules_;
  slots_[i] = {key, rule};
}

const MergeTable::Rule* MergeTable::find(TokenId left, TokenId right) const {
  if (slots_.empty()) return nullptr;
  const std::uint64_t key = key_of(left, right);
  for (std::size_t i = home(key);; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].key == key) return &slots_[i].rule;
    if (slots_[i].key == kFree) return nullptr;
  }
}

void MergeTable::merge(std::vector<TokenId>& symbols) const {
  if (symbols.size() < 2) return;
  if (symbols.size() <= kShort) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
}

void MergeTable::merge_short(std::vector<TokenId>& symbols) const {
  std::array<Rule, kShort> rules{};  // rules[i] joins symbols i and i + 1
  std::size_t n = symbols.size();
  const auto look = [&](std::size_t i) {
    const Rule* rule = find(symbols[i], symbols[i + 1]);
    rules[i] = rule != nullptr ? *rule : Rule{kNoRank, 0};
  };
  for (std::size_t i = 0; i + 1 < n; ++i) look(i);
  while (n > 1) {
    const auto less = [](const Rule& a, const Rule& b) { return a.rank < b.rank; };
    const auto best = static_cast<std::size_t>(
        std::min_element(rules.begin(), rules.begin() + static_cast<std::ptrdiff_t>(n - 1), less) -
        rules.begin());
    if (rules[best].rank == kNoRank) break;
    symbols[best] = rules[best].joined;
    for (std::size_t i = best + 1; i + 1 < n; ++i) {
      symbols[i] = symbols[i + 1];
      rules[i] = rules[i + 1];
    }
    --n;
    if (best > 0) look(best - 1);
    if (best + 1 < n) look(best);
  }
  symbols.resize(n);
}

void MergeTable::merge_long(std::vector<TokenId>& symbols) const {
  struct Link {
    std::int32_t previous, next;
  };
  const auto n = static_cast<std::int32_t>(symbols.size());
  std::vector<Link> links(symbols.size());
  for (std::int32_t i = 0; i < n; ++i) links[i] = {i - 1, i + 1 < n ? i + 1 : kNone};

  // An entry is rank and position in one number, so that the smallest is the lowest rank, leftmost. Entries
  // are not removed when their pair changes: a popped one counts only if its rank is still that of the pair
  // at its position.
  std::vector<std::uint64_t> heap;
  const auto entry = [&](std::int32_t i) -> std::uint64_t {
    if (links[i].next == kNone) return ~std::uint64_t{0};
    const Rule* rule = find(symbols[i], symbols[links[i].next]);
    return rule == nullptr ? ~std::uint64_t{0}
                           : static_cast<std::uint64_t>(rule->rank) << 32 | static_cast<std::uint32_t>(i);
  };
  for (std::int32_t i = 0; i < n; ++i) {
    if (const std::uint64_t e = entry(i); e != ~std::uint64_t{0}) heap.push_back(e);
  }
  const auto later = std::greater<>();
  std::make_heap(heap.begin(), heap.end(), later);
  const auto push = [&](std::int32_t i) {
    if (const std::uint64_t e = entry(i); e != ~std::uint64_t{0}) {
      heap.push_back(e);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };
  constexpr TokenId kGone = -1;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const std::uint64_t top = heap.back();
    heap.pop_back();
    const auto at = static_cast<std::int32_t>(top & 0xFFFFFFFFu);
    if (symbols[at] == kGone || links[at].next == kNone) continue;
    const std::int32_t right = links[at].next;
    const Rule* rule = find(symbols[at], symbols[right]);
    if (rule == nullptr || rule->rank != top >> 32) continue;
    symbols[at] = rule->joined;
    symbols[right] = kGone;
    links[at].next = links[right].next;
    if (links[at].next != kNone) links[links[at].next].previous = at;
    if (links[at].previous != kNone) push(links[at].previous);
    push(at);
  }
  symbols.erase(std::remove(symbols.begin(), symbols.end(), kGone), symbols.end());
}

}  // namespace lacuna
