#include "model/kv_cache.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/text.h"

namespace lacuna {

PagePool::PagePool(Ops& ops, int head_dim, std::size_t bytes) {
  const std::int64_t elements = 2 * std::int64_t{kPageTokens} * head_dim;
  page_bytes_ = elements * static_cast<std::int64_t>(size_of(ops.activation_dtype()));
  memory_ = ops.reserve_kv(bytes);
  constexpr std::int64_t kMostPages = std::int64_t{1} << 31;  // page ids are int32
  capacity_ = std::min(kMostPages - 1, static_cast<std::int64_t>(memory_->bytes()) / page_bytes_);
  view_ = {.base = memory_->base(), .page_elements = elements};
}

std::int32_t PagePool::allocate() {
  std::int32_t page = 0;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
    references_[static_cast<std::size_t>(page)] = 1;
  } else {
    const auto used = static_cast<std::int64_t>(references_.size());
    if (used >= capacity_) {
      throw_resource(
          "the KV cache is full: {} in {} pages; use shorter prompts, fewer variants at once, or more ranks",
          format_bytes(static_cast<double>(capacity_ * page_bytes_)), capacity_);
    }
    const std::size_t end = static_cast<std::size_t>((used + 1) * page_bytes_);
    if (end > committed_) {
      memory_->commit(end);
      committed_ = end;
    }
    page = static_cast<std::int32_t>(used);
    references_.push_back(1);
  }
  peak_ = std::max(peak_, ++in_use_);
  return page;
}

void PagePool::release(std::int32_t page) {
  if (--references_[static_cast<std::size_t>(page)] > 0) return;
  free_.push_back(page);
  --in_use_;
}

void PagePool::trim(std::size_t keep_bytes) {
  LACUNA_CHECK(in_use_ == 0, "{} pages are in use", in_use_);
  const std::size_t used = references_.size() * static_cast<std::size_t>(page_bytes_);
  if (used > keep_bytes) {
    memory_->discard(keep_bytes, used - keep_bytes);
    committed_ = keep_bytes;
  }
  references_.clear();
  free_.clear();
}

SequenceCache::SequenceCache(PagePool& pool, int layers, int kv_heads)
    : pool_(&pool),
      layers_(layers),
      kv_heads_(kv_heads),
      heads_(static_cast<std::size_t>(layers * kv_heads)) {}

SequenceCache::SequenceCache(SequenceCache&& other) noexcept
    : pool_(other.pool_),
      layers_(other.layers_),
      kv_heads_(other.kv_heads_),
      heads_(std::move(other.heads_)) {
  other.heads_.clear();
}

SequenceCache& SequenceCache::operator=(SequenceCache&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(layers_, other.layers_);
  std::swap(kv_heads_, other.kv_heads_);
  std::swap(heads_, other.heads_);
  return *this;
}

void SequenceCache::share_layer(const SequenceCache& other, int layer) {
  for (int h = 0; h < kv_heads_; ++h) {
    HeadCache& mine = head(layer, h);
    LACUNA_CHECK(mine.pages.empty(), "layer {} is not empty", layer);
    mine = other.head(layer, h);
    for (const std::int32_t page : mine.pages) pool_->retain(page);
  }
}

SequenceCache SequenceCache::fork() const {
  SequenceCache copy(*pool_, layers_, kv_heads_);
  for (int layer = 0; layer < layers_; ++layer) copy.share_layer(*this, layer);
  return copy;
}

void SequenceCache::extend(int layer, int kv_head, std::int64_t count, std::vector<PageCopy>& copies) {
  HeadCache& cache = head(layer, kv_head);
  if (count > 0 && cache.tokens % kPageTokens != 0 && pool_->shared(cache.pages.back())) {
    const std::int32_t fresh = pool_->allocate();
    copies.push_back({.from = cache.pages.back(), .to = fresh});
    pool_->release(cache.pages.back());
    cache.pages.back() = fresh;
  }
  // Pages first: when the pool is full, this throws and the head keeps its length.
  while (static_cast<std::int64_t>(cache.pages.size()) * kPageTokens < cache.tokens + count) {
    cache.pages.push_back(pool_->allocate());
  }
  cache.tokens += count;
}

void SequenceCache::drop_before_window(int layer, int kv_head, std::int64_t window) {
  HeadCache& cache = head(layer, kv_head);
  const std::int64_t old_pages = std::max<std::int64_t>(0, cache.tokens - window) / kPageTokens;
  if (old_pages == 0) return;
  for (std::int64_t p = 0; p < old_pages; ++p) pool_->release(cache.pages[static_cast<std::size_t>(p)]);
  cache.pages.erase(cache.pages.begin(), cache.pages.begin() + old_pages);
  cache.tokens -= old_pages * kPageTokens;
}

void SequenceCache::clear() {
  for (HeadCache& cache : heads_) {
    for (const std::int32_t page : cache.pages) pool_->release(page);
    cache = {};
  }
}

std::int64_t SequenceCache::bytes() const {
  std::int64_t pages = 0;
  for (const HeadCache& cache : heads_) pages += static_cast<std::int64_t>(cache.pages.size());
  return pages * pool_->page_bytes();
}

}  // namespace lacuna
