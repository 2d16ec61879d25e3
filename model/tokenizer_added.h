// Added tokens: content that becomes one id wherever it stands in the text, before any other rule sees it.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "model/bpe.h"
#include "model/normalizer.h"
#include "model/tokenizer.h"

namespace lacuna {

struct AddedToken {
  TokenId id = -1;
  std::string content;
  std::string normalized_content;  ///< What the normalizer makes of it, where `normalized`.
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

/// Part of a text: an added token, or (id -1) text between two of them.
struct AddedSpan {
  std::size_t begin, end;
  TokenId id;
};

/// Finds a set of strings: leftmost first, and the longest of those that start there. One byte trie.
class StringMatcher {
 public:
  /// `value` >= 0. A string that is already there keeps its first value and false is returned.
  bool add(std::string_view text, std::int32_t value);
  bool empty() const { return nodes_.empty(); }
  struct Match {
    std::size_t begin, end;
    std::int32_t value;  // -1: nothing found
  };
  Match find(std::string_view text, std::size_t from) const;

 private:
  struct Node {
    std::int32_t value = -1;
    std::vector<std::pair<unsigned char, std::int32_t>> children;
  };
  std::int32_t child(std::int32_t node, unsigned char byte) const;
  std::vector<Node> nodes_;
  std::array<std::int32_t, 256> roots_{};  // 0: none (node 0 is the root)
};

class AddedVocabulary {
 public:
  /// `field` is the file's "added_tokens" (null: none). Throws kUsage when an id differs from the one the
  /// reference would give, which is decided by the vocabulary and the order of the list.
  static AddedVocabulary parse(const nlohmann::json& field, const Bpe& bpe, const Normalizer& normalizer,
                               const std::string& where);

  /// Cuts text at the tokens that are matched before normalization, or (normalized) behind it. Covers all of
  /// it.
  void cut(std::string_view text, bool normalized, std::vector<AddedSpan>& spans) const;

  const AddedToken* by_id(TokenId id) const;
  TokenId find(std::string_view content) const;
  /// Whether a token is left out when special tokens are skipped. Asked by content, as the reference does.
  bool is_special(std::string_view content) const { return special_.contains(std::string(content)); }
  TokenId id_limit() const { return id_limit_; }

 private:
  std::unordered_map<TokenId, AddedToken> tokens_;
  std::unordered_map<std::string, TokenId> ids_;
  std::unordered_set<std::string> special_;
  StringMatcher raw_, normalized_;
  TokenId id_limit_ = 0;
};

}  // namespace lacuna
