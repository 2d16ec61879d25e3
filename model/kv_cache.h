// The KV cache: a pool of physical pages, and per sequence, layer and kv head a table of pages with its own
// length. Sequences share pages; a shared page is copied before it is written to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "attention/types.h"
#include "model/ops.h"

namespace lacuna {

/// Physical pages with reference counts. Not thread-safe.
class PagePool {
 public:
  /// Reserves up to `bytes`; memory is taken as pages are touched (CPU).
  PagePool(Ops& ops, int head_dim, std::size_t bytes);

  /// A page with one reference. Throws kResource when the pool is full.
  std::int32_t allocate();
  void retain(std::int32_t page) { ++references_[static_cast<std::size_t>(page)]; }
  void release(std::int32_t page);
  bool shared(std::int32_t page) const { return references_[static_cast<std::size_t>(page)] > 1; }

  PoolView view() const { return view_; }
  std::int64_t page_bytes() const { return page_bytes_; }
  std::int64_t pages_in_use() const { return in_use_; }
  std::int64_t capacity() const { return capacity_; }
  /// Largest number of pages in use since reset_peak().
  std::int64_t peak_pages() const { return peak_; }
  /// The most memory since then: that of the pages, or what the device holds for them in larger pieces.
  std::int64_t peak_bytes() const {
    return std::max(peak_ * page_bytes_, static_cast<std::int64_t>(memory_->committed()));
  }
  void reset_peak() { peak_ = in_use_; }
  /// With no page in use: gives the memory beyond `keep_bytes` back to the system and starts from the first
  /// page again.
  void trim(std::size_t keep_bytes);

 private:
  std::unique_ptr<KvMemory> memory_;
  PoolView view_;
  std::int64_t page_bytes_ = 0, capacity_ = 0, in_use_ = 0, peak_ = 0;
  std::size_t committed_ = 0;             // bytes of memory_ that are usable
  std::vector<std::int32_t> references_;  // [pages ever used]
  std::vector<std::int32_t> free_;
};

/// One kv head of one layer: `tokens` slots in `pages`. Owns a reference to each page.
struct HeadCache {
  std::vector<std::int32_t> pages;
  std::int64_t tokens = 0;
  PagedHead view() const { return {.page_ids = pages, .tokens = tokens}; }
};

/// The cache of one sequence on this rank: [layers][kv_heads] tables. Move-only; fork() shares the pages.
class SequenceCache {
 public:
  SequenceCache(PagePool& pool, int layers, int kv_heads);
  ~SequenceCache() { clear(); }
  SequenceCache(SequenceCache&& other) noexcept;
  SequenceCache& operator=(SequenceCache&& other) noexcept;
  SequenceCache(const SequenceCache&) = delete;
  SequenceCache& operator=(const SequenceCache&) = delete;

  int layers() const { return layers_; }
  int kv_heads() const { return kv_heads_; }
  HeadCache& head(int layer, int kv_head) { return heads_[index(layer, kv_head)]; }
  const HeadCache& head(int layer, int kv_head) const { return heads_[index(layer, kv_head)]; }

  /// Shares all pages of `layer` of another sequence; this layer must be empty.
  void share_layer(const SequenceCache& other, int layer);
  SequenceCache fork() const;
  /// Makes room for `count` more tokens in a head: new pages where needed, a copy of the last page when it is
  /// shared (appended to `copies`; to be executed before anything is written).
  void extend(int layer, int kv_head, std::int64_t count, std::vector<PageCopy>& copies);
  /// Drops leading pages that hold only tokens older than the last `window`.
  void drop_before_window(int layer, int kv_head, std::int64_t window);
  void clear();

  /// Bytes of the pages this sequence refers to, shared or not.
  std::int64_t bytes() const;

 private:
  std::size_t index(int layer, int kv_head) const {
    return static_cast<std::size_t>(layer * kv_heads_ + kv_head);
  }
  PagePool* pool_;
  int layers_, kv_heads_;
  std::vector<HeadCache> heads_;
};

}  // namespace lacuna
