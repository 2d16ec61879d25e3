// Words already merged, per thread: no lock on the hot path, bounded memory.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace lacuna {

/// Maps words to ids. When it is full it starts anew, which costs little: frequent words come back at once.
class WordCache {
 public:
  static constexpr std::size_t kMaxWordBytes = 256;
  static constexpr std::size_t kMaxWords = 48 << 10;
  static constexpr std::size_t kMaxBytes = 2 << 20;
  static constexpr std::size_t kMaxIds = 1 << 20;

  /// The cache of this thread for a model's unique number. A thread keeps the caches of the few models used
  /// last.
  static WordCache& of_thread(std::uint64_t model);

  static std::uint64_t hash(std::string_view word);
  /// Ids of a word; data() is null when it is not known. Valid until the next insert.
  std::span<const TokenId> find(std::string_view word, std::uint64_t hash) const;
  void insert(std::string_view word, std::uint64_t hash, std::span<const TokenId> ids);

  std::size_t words() const { return words_; }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t text = 0, text_size = 0;  // in text_; text_size 0: free
    std::uint32_t ids = 0, ids_size = 0;    // in ids_
  };
  std::size_t home(std::uint64_t hash) const { return hash & (slots_.size() - 1); }
  void grow();
  void clear();

  std::vector<Slot> slots_ = std::vector<Slot>(1 << 10);  // a power of two, linear probing
  std::string text_;
  std::vector<TokenId> ids_;
  std::size_t words_ = 0;
};

}  // namespace lacuna
