// The BPE model of tokenizer.json: vocabulary, merges, and the ids of a word.
#pragma once

#include <array>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/bpe_merges.h"
#include "model/tokenizer.h"

namespace lacuna {

/// Immutable and thread-safe: what it remembers of past words is kept per thread.
class Bpe {
 public:
  /// `field` is the file's "model". Throws kUsage for anything but a BPE model that this class applies
  /// exactly.
  static Bpe parse(const nlohmann::json& field, const std::string& where);

  /// Appends the ids of a word of text (valid UTF-8). `byte_level`: the word is bytes that stand for
  /// characters of the byte-level alphabet.
  void encode(std::string_view word, bool byte_level, std::vector<TokenId>& ids) const;

  /// Id of a token, or -1.
  TokenId find(std::string_view token) const;
  /// The token of an id, or nullptr.
  const std::string* token(TokenId id) const;
  /// Number of tokens, and one past the largest id: they differ when ids have gaps.
  std::size_t size() const { return vocab_.size(); }
  TokenId id_limit() const { return static_cast<TokenId>(tokens_.size()); }

 private:
  void parse_vocab(const nlohmann::json& field, const std::string& where);
  void parse_merges(const nlohmann::json& field, const std::string& where);
  void index_bytes();

  void encode_uncached(std::string_view word, bool byte_level, std::vector<TokenId>& ids) const;
  void encode_cached(std::string_view word, bool byte_level, std::vector<TokenId>& ids) const;
  /// One symbol per character, before any merge.
  void split_characters(std::string_view word, std::vector<TokenId>& symbols) const;
  bool append_fallback_bytes(std::string_view character, std::vector<TokenId>& symbols) const;

  std::string where_;
  std::vector<std::string> tokens_;  // by id; unused ids are empty and not in vocab_
  std::unordered_map<std::string_view, TokenId> vocab_;
  MergeTable merges_;
  std::optional<std::string> unknown_, prefix_, suffix_;
  bool fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;

  std::uint64_t number_ = 0;                 // names this model in the threads' caches
  std::array<TokenId, 256> byte_symbols_{};  // token of each byte of the byte-level alphabet
  bool raw_bytes_ = false;                   // byte_symbols_ is complete: byte-level words need no mapping
  std::unordered_map<std::string, TokenId> raw_tokens_;  // whole tokens as bytes, for ignore_merges
  std::array<TokenId, 256> fallback_{};                  // <0x00> ... <0xFF>, -1 where missing
  bool cut_at_metaspace_ = false;                        // no merge crosses from another character to U+2581
};

}  // namespace lacuna
