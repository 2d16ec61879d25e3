#include "model/tokenizer_post.h"

#include "core/error.h"
#include "core/json.h"

namespace lacuna {

PostProcessor PostProcessor::parse(const Json& field, const std::string& where) {
  PostProcessor processor;
  if (!field.is_null()) processor.add(field, where + ": post_processor");
  return processor;
}

void PostProcessor::add(const Json& field, const std::string& where) {
  const auto type = json_get<std::string>(field, "type", where);
  const std::string here = where + " " + type;
  if (type == "ByteLevel") return;
  if (type == "Sequence") {
    const auto it = field.find("processors");
    LACUNA_REQUIRE(it != field.end() && it->is_array(), "{}: field 'processors' must be a list", here);
    for (std::size_t i = 0; i < it->size(); ++i) add((*it)[i], fmt::format("{}[{}]", here, i));
    return;
  }
  LACUNA_REQUIRE(
      type == "TemplateProcessing",
      "{}: this post-processor is not supported (supported: TemplateProcessing, ByteLevel, Sequence)", here);
  LACUNA_REQUIRE(parts_.empty(), "{}: a second template is not supported", here);
  const auto single = field.find("single");
  LACUNA_REQUIRE(single != field.end() && single->is_array(), "{}: field 'single' must be a list", here);
  bool has_text = false;
  for (std::size_t i = 0; i < single->size(); ++i) {
    const Json& piece = (*single)[i];
    const std::string at = fmt::format("{}: single[{}]", here, i);
    Part part;
    if (piece.contains("Sequence")) {
      const auto id = json_get<std::string>(piece["Sequence"], "id", at);
      LACUNA_REQUIRE(id == "A", "{}: sequence '{}' in a template for one text", at, id);
      part.text = has_text = true;
    } else {
      LACUNA_REQUIRE(piece.contains("SpecialToken"), "{}: expected Sequence or SpecialToken", at);
      const auto name = json_get<std::string>(piece["SpecialToken"], "id", at);
      const auto tokens = field.find("special_tokens");
      LACUNA_REQUIRE(tokens != field.end() && tokens->contains(name), "{}: '{}' is missing in special_tokens",
                     at, name);
      const auto ids = (*tokens)[name].find("ids");
      LACUNA_REQUIRE(ids != (*tokens)[name].end() && ids->is_array(),
                     "{}: special_tokens: '{}' has no list 'ids'", at, name);
      for (const Json& id : *ids) {
        LACUNA_REQUIRE(id.is_number_unsigned() && id.get<std::uint64_t>() < (1u << 24),
                       "{}: special_tokens: '{}' has id {}", at, name, id.dump());
        part.ids.push_back(id.get<TokenId>());
      }
    }
    parts_.push_back(std::move(part));
  }
  LACUNA_REQUIRE(has_text, "{}: the template leaves the text out", here);
}

std::vector<TokenId> PostProcessor::apply(std::vector<TokenId> ids, bool add_special) const {
  const bool unchanged = parts_.size() <= 1 || (!add_special && [this] {
                           int texts = 0;
                           for (const Part& part : parts_) texts += part.text;
                           return texts == 1;
                         }());
  if (unchanged) return ids;
  std::vector<TokenId> out;
  for (const Part& part : parts_) {
    if (part.text) {
      out.insert(out.end(), ids.begin(), ids.end());
    } else if (add_special) {
      out.insert(out.end(), part.ids.begin(), part.ids.end());
    }
  }
  return out;
}

}  // namespace lacuna
