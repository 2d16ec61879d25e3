// A paged cache filled from a layer's K and V: pages in shuffled order, unused slots poisoned with NaN, and
// ragged lengths per head when kept positions are given.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "attention/strategy.h"
#include "core/rng.h"

namespace lacuna::test {

class PagedCache {
 public:
  /// kept: positions per kv head (empty: all tokens).
  PagedCache(const PrefillInput& input, const std::vector<std::vector<std::int32_t>>& kept = {},
             std::uint64_t seed = 1)
      : dim_(input.info.head_dim), page_elements_(2 * kPageTokens * dim_) {
    const auto heads = static_cast<std::size_t>(input.info.kv_heads);
    positions_.resize(heads);
    std::size_t pages = 0;
    for (std::size_t h = 0; h < heads; ++h) {
      positions_[h].resize(static_cast<std::size_t>(input.k.tokens));
      std::iota(positions_[h].begin(), positions_[h].end(), 0);
      if (!kept.empty()) positions_[h] = kept[h];
      pages += (positions_[h].size() + kPageTokens - 1) / kPageTokens;
    }
    pool_.assign((pages + 3) * static_cast<std::size_t>(page_elements_), NAN);
    std::vector<std::int32_t> free(pages + 3);
    std::iota(free.begin(), free.end(), 0);
    Rng(seed).shuffle(free);
    ids_.resize(heads);
    for (std::size_t h = 0; h < heads; ++h) {
      for (std::size_t t = 0; t < positions_[h].size(); ++t) {
        if (t % kPageTokens == 0) {
          ids_[h].push_back(free.back());
          free.pop_back();
        }
        float* page = pool_.data() + ids_[h].back() * page_elements_;
        const auto slot = static_cast<std::int64_t>(t % kPageTokens);
        std::copy_n(input.k.row(static_cast<int>(h), positions_[h][t]), dim_, page + slot * dim_);
        std::copy_n(input.v.row(static_cast<int>(h), positions_[h][t]), dim_,
                    page + (kPageTokens + slot) * dim_);
      }
      heads_.push_back({ids_[h], static_cast<std::int64_t>(positions_[h].size())});
    }
  }
  PagedCache(const PagedCache&) = delete;
  PagedCache& operator=(const PagedCache&) = delete;

  DecodeInput input(const float* q, const LayerInfo& info, Communicator& communicator) const {
    return {.q = q,
            .heads = heads_,
            .pool = pool_.data(),
            .page_elements = page_elements_,
            .info = info,
            .communicator = &communicator};
  }
  /// The first `tokens` of every head.
  std::vector<PagedHead> prefix(std::int64_t tokens) const {
    auto heads = heads_;
    for (auto& head : heads) head.tokens = std::min(head.tokens, tokens);
    return heads;
  }
  const std::vector<PagedHead>& heads() const { return heads_; }
  const float* pool() const { return pool_.data(); }
  std::int64_t page_elements() const { return page_elements_; }

 private:
  std::int64_t dim_, page_elements_;
  std::vector<float> pool_;
  std::vector<std::vector<std::int32_t>> positions_, ids_;
  std::vector<PagedHead> heads_;
};

}  // namespace lacuna::test
