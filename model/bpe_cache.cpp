#include "model/bpe_cache.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <memory>

namespace lacuna {

WordCache& WordCache::of_thread(std::uint64_t model) {
  struct Owned {
    std::uint64_t model = 0;
    std::unique_ptr<WordCache> cache;
  };
  thread_local std::array<Owned, 4> caches;  // most recently used first
  if (caches[0].model == model && caches[0].cache) return *caches[0].cache;
  auto it = std::find_if(caches.begin(), caches.end() - 1,
                         [&](const Owned& o) { return o.model == model && o.cache; });
  if (it->model != model || !it->cache) *it = {model, std::make_unique<WordCache>()};
  std::rotate(caches.begin(), it, it + 1);
  return *caches[0].cache;
}

std::uint64_t WordCache::hash(std::string_view word) { return XXH3_64bits(word.data(), word.size()); }

std::span<const TokenId> WordCache::find(std::string_view word, std::uint64_t hash) const {
  for (std::size_t i = home(hash);; i = (i + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[i];
    if (slot.text_size == 0) return {};
    if (slot.hash == hash && std::string_view(text_).substr(slot.text, slot.text_size) == word) {
      return {ids_.data() + slot.ids, slot.ids_size};
    }
  }
}

void WordCache::insert(std::string_view word, std::uint64_t hash, std::span<const TokenId> ids) {
  if (word.empty() || word.size() > kMaxWordBytes) return;
  if (words_ >= kMaxWords || text_.size() + word.size() > kMaxBytes || ids_.size() + ids.size() > kMaxIds)
    clear();
  if ((words_ + 1) * 4 > slots_.size() * 3) grow();
  std::size_t i = home(hash);
  while (slots_[i].text_size != 0) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = {hash, static_cast<std::uint32_t>(text_.size()), static_cast<std::uint32_t>(word.size()),
               static_cast<std::uint32_t>(ids_.size()), static_cast<std::uint32_t>(ids.size())};
  text_ += word;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++words_;
}

void WordCache::grow() {
  std::vector<Slot> old(slots_.size() * 2);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.text_size == 0) continue;
    std::size_t i = home(slot.hash);
    while (slots_[i].text_size != 0) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = slot;
  }
}

void WordCache::clear() {
  std::fill(slots_.begin(), slots_.end(), Slot{});
  text_.clear();
  ids_.clear();
  words_ = 0;
}

}  // namespace lacuna
