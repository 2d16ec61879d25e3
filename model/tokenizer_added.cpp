#include "model/tokenizer_added.h"

#include <algorithm>

#include "core/error.h"
#include "core/json.h"
#include "model/tokenizer_unicode.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {

bool StringMatcher::add(std::string_view text, std::int32_t value) {
  if (nodes_.empty()) nodes_.emplace_back();
  std::int32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    std::int32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<std::int32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& children = nodes_[static_cast<std::size_t>(node)].children;
      children.insert(std::lower_bound(children.begin(), children.end(), std::pair{byte, std::int32_t{0}}),
                      {byte, next});
      if (node == 0) roots_[byte] = next;
    }
    node = next;
  }
  std::int32_t& slot = nodes_[static_cast<std::size_t>(node)].value;
  if (slot >= 0) return false;
  slot = value;
  return true;
}

std::int32_t StringMatcher::child(std::int32_t node, unsigned char byte) const {
  if (node == 0) return roots_[byte];
  const auto& children = nodes_[static_cast<std::size_t>(node)].children;
  const auto it = std::lower_bound(children.begin(), children.end(), std::pair{byte, std::int32_t{0}});
  return it != children.end() && it->first == byte ? it->second : 0;
}

StringMatcher::Match StringMatcher::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    std::int32_t node = roots_[static_cast<unsigned char>(text[begin])];
    Match best{begin, begin, -1};
    for (std::size_t i = begin + 1; node != 0; ++i) {
      if (const std::int32_t value = nodes_[static_cast<std::size_t>(node)].value; value >= 0)
        best = {begin, i, value};
      if (i == text.size()) break;
      node = child(node, static_cast<unsigned char>(text[i]));
    }
    if (best.value >= 0) return best;
  }
  return {text.size(), text.size(), -1};
}

AddedVocabulary AddedVocabulary::parse(const Json& field, const Bpe& bpe, const Normalizer& normalizer,
                                       const std::string& where) {
  AddedVocabulary added;
  added.id_limit_ = bpe.id_limit();
  if (field.is_null()) return added;
  LACUNA_REQUIRE(field.is_array(), "{}: field 'added_tokens' must be a list", where);
  auto next_id = static_cast<TokenId>(bpe.size());
  for (std::size_t i = 0; i < field.size(); ++i) {
    const std::string here = fmt::format("{}: added_tokens[{}]", where, i);
    AddedToken token;
    token.content = json_get<std::string>(field[i], "content", here);
    token.single_word = json_get<bool>(field[i], "single_word", here);
    token.lstrip = json_get<bool>(field[i], "lstrip", here);
    token.rstrip = json_get<bool>(field[i], "rstrip", here);
    token.normalized = json_get<bool>(field[i], "normalized", here);
    token.special = json_get<bool>(field[i], "special", here);
    const auto declared = json_get<TokenId>(field[i], "id", here);
    if (token.content.empty()) continue;  // as the reference does

    token.id = added.find(token.content);
    if (token.id < 0) token.id = bpe.find(token.content);
    if (token.id < 0) token.id = next_id++;
    LACUNA_REQUIRE(
        token.id == declared,
        "{}: '{}' has id {}, but the vocabulary and the order of the list give it {}; mend the file's ids",
        here, token.content, declared, token.id);
    token.normalized_content = token.content;
    if (token.normalized) normalizer.apply(token.normalized_content);
    LACUNA_REQUIRE(!token.normalized_content.empty(), "{}: the normalizer leaves nothing of '{}'", here,
                   token.content);
    if (token.special) added.special_.insert(token.content);
    added.ids_[token.content] = token.id;
    added.id_limit_ = std::max(added.id_limit_, token.id + 1);
    added.tokens_[token.id] = std::move(token);
  }
  for (const auto& [id, token] : added.tokens_) {
    StringMatcher& matcher = token.normalized ? added.normalized_ : added.raw_;
    LACUNA_REQUIRE(matcher.add(token.normalized_content, id),
                   "{}: added_tokens: '{}' is '{}' like another one", where, token.content,
                   token.normalized_content);
  }
  return added;
}

void AddedVocabulary::cut(std::string_view text, bool normalized, std::vector<AddedSpan>& spans) const {
  const StringMatcher& matcher = normalized ? normalized_ : raw_;
  std::size_t done = 0;  // all before it is in spans
  const auto ends_with_word = [&](std::size_t end) {
    return end > 0 && unicode::has(utf8::before(text, end).code, unicode::kWord);
  };
  const auto starts_with_word = [&](std::size_t begin) {
    return begin < text.size() && unicode::has(utf8::at(text, begin).code, unicode::kWord);
  };
  for (std::size_t from = 0; !matcher.empty();) {
    const StringMatcher::Match match = matcher.find(text, from);
    if (match.value < 0) break;
    from = match.end;
    const AddedToken& token = tokens_.at(match.value);
    if (token.single_word && (ends_with_word(match.begin) || starts_with_word(match.end))) continue;
    std::size_t begin = match.begin, end = match.end;
    if (token.lstrip) {
      while (begin > 0 && unicode::has(utf8::before(text, begin).code, unicode::kSpace)) {
        begin -= utf8::before(text, begin).length;
      }
      begin = std::max(begin, done);
    }
    if (token.rstrip) {
      while (end < text.size() && unicode::has(utf8::at(text, end).code, unicode::kSpace)) {
        end += utf8::at(text, end).length;
      }
    }
    if (done < begin) spans.push_back({done, begin, -1});
    spans.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) spans.push_back({done, text.size(), -1});
}

const AddedToken* AddedVocabulary::by_id(TokenId id) const {
  const auto it = tokens_.find(id);
  return it == tokens_.end() ? nullptr : &it->second;
}

TokenId AddedVocabulary::find(std::string_view content) const {
  const auto it = ids_.find(std::string(content));
  return it == ids_.end() ? -1 : it->second;
}

}  // namespace lacuna
