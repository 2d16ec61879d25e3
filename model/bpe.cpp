#include "model/bpe.h"

#include <algorithm>
#include <atomic>

#include "core/error.h"
#include "core/json.h"
#include "model/bpe_cache.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

constexpr std::int64_t kMaxId =
    1 << 24;  // far above any vocabulary; bounds what a damaged file can make us allocate
constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581

std::optional<std::string> optional_text(const Json& field, const char* key, const std::string& where) {
  const auto it = field.find(key);
  if (it == field.end() || it->is_null()) return std::nullopt;
  return json_get<std::string>(field, key, where);
}

std::uint64_t next_number() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

Bpe Bpe::parse(const Json& field, const std::string& where) {
  Bpe bpe;
  bpe.where_ = where + ": model";
  const std::string& here = bpe.where_;
  // Very old files leave the type out.
  const auto type = json_get_or<std::string>(field, "type", "BPE", here);
  LACUNA_REQUIRE(type == "BPE", "{}: type '{}' is not supported; only BPE models are", here, type);
  if (const auto it = field.find("dropout"); it != field.end() && !it->is_null()) {
    LACUNA_REQUIRE(it->is_number() && it->get<double>() == 0.0,
                   "{}: dropout {} makes ids random; set it to null in the file", here, it->dump());
  }
  bpe.unknown_ = optional_text(field, "unk_token", here);
  bpe.prefix_ = optional_text(field, "continuing_subword_prefix", here);
  bpe.suffix_ = optional_text(field, "end_of_word_suffix", here);
  bpe.fuse_unknown_ = json_get_or<bool>(field, "fuse_unk", false, here);
  bpe.byte_fallback_ = json_get_or<bool>(field, "byte_fallback", false, here);
  bpe.ignore_merges_ = json_get_or<bool>(field, "ignore_merges", false, here);
  bpe.parse_vocab(field, here);
  bpe.cut_at_metaspace_ = !bpe.prefix_ && !bpe.suffix_ && !bpe.ignore_merges_ && bpe.find(kMetaspace) >= 0;
  bpe.parse_merges(field, here);
  bpe.index_bytes();
  bpe.number_ = next_number();
  return bpe;
}

void Bpe::parse_vocab(const Json& field, const std::string& where) {
  const auto it = field.find("vocab");
  LACUNA_REQUIRE(it != field.end() && it->is_object(), "{}: field 'vocab' must be an object", where);
  std::int64_t largest = -1;
  for (const auto& [token, id] : it->items()) {
    LACUNA_REQUIRE(id.is_number_unsigned() && id.get<std::uint64_t>() < kMaxId,
                   "{}: vocab: token '{}' has id {}; ids are whole numbers below {}", where, token, id.dump(),
                   kMaxId);
    largest = std::max(largest, id.get<std::int64_t>());
  }
  tokens_.resize(static_cast<std::size_t>(largest + 1));
  std::vector<bool> taken(tokens_.size());
  for (const auto& [token, id] : it->items()) {
    const auto i = id.get<std::size_t>();
    LACUNA_REQUIRE(!taken[i], "{}: vocab: id {} belongs to both '{}' and '{}'", where, i, tokens_[i], token);
    taken[i] = true;
    tokens_[i] = token;
  }
  vocab_.reserve(it->size());
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    if (taken[i]) vocab_.emplace(tokens_[i], static_cast<TokenId>(i));
  }
}

void Bpe::parse_merges(const Json& field, const std::string& where) {
  const auto it = field.find("merges");
  LACUNA_REQUIRE(it != field.end() && it->is_array(), "{}: field 'merges' must be a list", where);
  const std::size_t skip = prefix_ ? prefix_->size() : 0;
  merges_.reserve(it->size());
  std::string joined;
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < it->size(); ++i) {
    const Json& rule = (*it)[i];
    std::string left, right;
    if (rule.is_string()) {
      const auto& text = rule.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const std::size_t space = text.find(' ');
      LACUNA_REQUIRE(space != text.npos && text.find(' ', space + 1) == text.npos,
                     "{}: merges[{}] is '{}', expected two tokens with one space between", where, i, text);
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      LACUNA_REQUIRE(rule.is_array() && rule.size() == 2 && rule[0].is_string() && rule[1].is_string(),
                     "{}: merges[{}] is not a pair of tokens", where, i);
      left = rule[0].get<std::string>();
      right = rule[1].get<std::string>();
    }
    const TokenId a = find(left), b = find(right);
    LACUNA_REQUIRE(a >= 0, "{}: merges[{}]: token '{}' is not in the vocabulary", where, i, left);
    LACUNA_REQUIRE(b >= 0, "{}: merges[{}]: token '{}' is not in the vocabulary", where, i, right);
    LACUNA_REQUIRE(right.size() >= skip, "{}: merges[{}]: '{}' is shorter than continuing_subword_prefix",
                   where, i, right);
    joined.assign(left).append(right, skip);
    const TokenId c = find(joined);
    LACUNA_REQUIRE(c >= 0, "{}: merges[{}]: the joined token '{}' is not in the vocabulary", where, i,
                   joined);
    if (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) cut_at_metaspace_ = false;
    merges_.set(a, b, {rank++, c});
  }
}

void Bpe::index_bytes() {
  raw_bytes_ = !prefix_ && !suffix_;
  char hex[8];
  for (unsigned b = 0; b < 256; ++b) {
    std::string mapped;
    const char byte = static_cast<char>(b);
    map_bytes({&byte, 1}, mapped);
    byte_symbols_[b] = find(mapped);
    if (byte_symbols_[b] < 0) raw_bytes_ = false;
    const auto end = fmt::format_to_n(hex, sizeof hex, "<0x{:02X}>", b);
    fallback_[b] = find({hex, end.size});
  }
  if (!raw_bytes_ || !ignore_merges_) return;
  std::string bytes;
  for (const auto& [token, id] : vocab_) {
    if (unmap_bytes(token, bytes)) raw_tokens_.emplace(bytes, id);
  }
}

TokenId Bpe::find(std::string_view token) const {
  const auto it = vocab_.find(token);
  return it == vocab_.end() ? -1 : it->second;
}

const std::string* Bpe::token(TokenId id) const {
  if (id < 0 || id >= id_limit()) return nullptr;
  const std::string& token = tokens_[static_cast<std::size_t>(id)];
  if (token.empty() && find(token) != id) return nullptr;  // a gap in the ids
  return &token;
}

void Bpe::encode(std::string_view word, bool byte_level, std::vector<TokenId>& ids) const {
  if (word.empty()) return;
  if (byte_level && !raw_bytes_) {
    std::string mapped;
    map_bytes(word, mapped);
    return encode_cached(mapped, false, ids);
  }
  if (byte_level || !cut_at_metaspace_) return encode_cached(word, byte_level, ids);
  // SentencePiece models see a whole document as one word. No merge crosses into U+2581 from another
  // character, so cutting there changes nothing, and makes words that repeat.
  std::size_t begin = 0;
  for (std::size_t at = word.find(kMetaspace, 1); at != word.npos;
       at = word.find(kMetaspace, at + kMetaspace.size())) {
    if (word.substr(begin, at - begin).ends_with(kMetaspace)) continue;  // inside a run of them
    encode_cached(word.substr(begin, at - begin), false, ids);
    begin = at;
  }
  encode_cached(word.substr(begin), false, ids);
}

void Bpe::encode_cached(std::string_view word, bool byte_level, std::vector<TokenId>& ids) const {
  if (word.size() > WordCache::kMaxWordBytes) return encode_uncached(word, byte_level, ids);
  WordCache& cache = WordCache::of_thread(number_);
  const std::uint64_t hash = WordCache::hash(word);
  if (const auto known = cache.find(word, hash); known.data() != nullptr) {
    ids.insert(ids.end(), known.begin(), known.end());
    return;
  }
  const std::size_t first = ids.size();
  encode_uncached(word, byte_level, ids);
  cache.insert(word, hash, std::span(ids).subspan(first));
}

void Bpe::encode_uncached(std::string_view word, bool byte_level, std::vector<TokenId>& ids) const {
  if (ignore_merges_) {
    const auto raw = byte_level ? raw_tokens_.find(std::string(word)) : raw_tokens_.end();
    const TokenId whole = byte_level ? (raw == raw_tokens_.end() ? -1 : raw->second) : find(word);
    if (whole >= 0) {
      ids.push_back(whole);
      return;
    }
  }
  std::vector<TokenId> symbols;
  symbols.reserve(word.size());
  if (byte_level) {
    for (const char c : word) symbols.push_back(byte_symbols_[static_cast<unsigned char>(c)]);
  } else {
    split_characters(word, symbols);
  }
  merges_.merge(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void Bpe::split_characters(std::string_view word, std::vector<TokenId>& symbols) const {
  // One unknown token may be waiting: the next unknown character joins it (fuse_unk) or pushes it out. The
  // reference lets fallback bytes overtake a waiting one; so do we.
  bool waiting = false;
  TokenId unknown = -1;
  std::string decorated;
  for (std::size_t i = 0; i < word.size();) {
    const std::size_t length = utf8::at(word, i).length;
    std::string_view character = word.substr(i, length);
    const bool first = i == 0, last = i + length == word.size();
    i += length;
    if ((prefix_ && !first) || (suffix_ && last)) {
      decorated.assign(prefix_ && !first ? *prefix_ : "").append(character);
      if (suffix_ && last) decorated += *suffix_;
      character = decorated;
    }
    if (const TokenId id = find(character); id >= 0) {
      if (waiting) symbols.push_back(unknown);
      waiting = false;
      symbols.push_back(id);
      continue;
    }
    if (byte_fallback_ && append_fallback_bytes(character, symbols)) continue;
    if (!unknown_) continue;  // the reference drops what it has no token for
    if (waiting && !fuse_unknown_) symbols.push_back(unknown);
    unknown = find(*unknown_);
    LACUNA_REQUIRE(unknown >= 0, "{}: unk_token '{}' is needed for '{}' but is not in the vocabulary", where_,
                   *unknown_, character);
    waiting = true;
  }
  if (waiting) symbols.push_back(unknown);
}

bool Bpe::append_fallback_bytes(std::string_view character, std::vector<TokenId>& symbols) const {
  const auto id = [&](char c) { return fallback_[static_cast<unsigned char>(c)]; };
  if (!std::all_of(character.begin(), character.end(), [&](char c) { return id(c) >= 0; })) return false;
  for (const char c : character) symbols.push_back(id(c));
  return true;
}

}  // namespace lacuna
