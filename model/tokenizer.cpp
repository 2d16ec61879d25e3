#include "model/tokenizer.h"

#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "model/bpe.h"
#include "model/normalizer.h"
#include "model/pretokenizer.h"
#include "model/tokenizer_added.h"
#include "model/tokenizer_decoder.h"
#include "model/tokenizer_post.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {

struct Tokenizer::Impl {
  std::string where, fingerprint;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Bpe bpe;
  AddedVocabulary added;
  PostProcessor post_processor;
  Decoder decoder;

  void encode_text(std::string_view text, bool at_start, std::vector<TokenId>& ids) const;
  void encode_normalized(std::string_view text, bool at_start, std::vector<TokenId>& ids) const;
  std::string_view decoded_token(TokenId id) const;
};

namespace {

const Json& field_or_null(const Json& object, const char* key) {
  static const Json kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

/// Settings that the reference applies to every encoding, and that would cut or fill prompts behind our back.
void refuse_length_settings(const Json& root, const std::string& where) {
  for (const char* key : {"truncation", "padding"}) {
    LACUNA_REQUIRE(field_or_null(root, key).is_null(),
                   "{}: field '{}' would change the length of prompts; set it to null in the file", where,
                   key);
  }
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::string& folder) {
  const std::filesystem::path path = std::filesystem::path(folder) / "tokenizer.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored) &&
      std::filesystem::exists(std::filesystem::path(folder) / "tokenizer.model", ignored)) {
    throw_usage(
        "{}: there is a tokenizer.model but no tokenizer.json; convert it once, in Python: "
        "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        folder);
  }
  return parse(read_file(path.string()), path.string());
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& where) {
  const Json root = parse_json(json, where);
  LACUNA_REQUIRE(root.is_object(), "{}: expected a JSON object", where);
  const auto version = json_get_or<std::string>(root, "version", "1.0", where);
  LACUNA_REQUIRE(version == "1.0", "{}: tokenizer version '{}' is unknown (1.0 is supported)", where,
                 version);
  refuse_length_settings(root, where);
  auto impl = std::make_unique<Impl>();
  impl->where = where;
  impl->fingerprint = Hasher().add_bytes(json.data(), json.size()).digest_hex();
  impl->normalizer = Normalizer::parse(field_or_null(root, "normalizer"), where);
  impl->pre_tokenizer =
      PreTokenizer::parse(field_or_null(root, "pre_tokenizer"), impl->normalizer.keeps_start(), where);
  LACUNA_REQUIRE(field_or_null(root, "model").is_object(), "{}: field 'model' must be an object", where);
  impl->bpe = Bpe::parse(root["model"], where);
  impl->added =
      AddedVocabulary::parse(field_or_null(root, "added_tokens"), impl->bpe, impl->normalizer, where);
  impl->post_processor = PostProcessor::parse(field_or_null(root, "post_processor"), where);
  impl->decoder = Decoder::parse(field_or_null(root, "decoder"), where);
  return Tokenizer(std::move(impl));
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool add_special) const {
  std::string storage;
  text = utf8::replace_invalid(text, storage);
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 4 + 8);
  std::vector<AddedSpan> spans;
  impl_->added.cut(text, false, spans);
  for (const AddedSpan& span : spans) {
    if (span.id >= 0) {
      if (span.begin < span.end) ids.push_back(span.id);
    } else {
      impl_->encode_text(text.substr(span.begin, span.end - span.begin), span.begin == 0, ids);
    }
  }
  return impl_->post_processor.apply(std::move(ids), add_special);
}

void Tokenizer::Impl::encode_text(std::string_view text, bool at_start, std::vector<TokenId>& ids) const {
  if (normalizer.empty()) return encode_normalized(text, at_start, ids);
  std::string normalized(text);
  normalizer.apply(normalized);
  encode_normalized(normalized, at_start, ids);
}

void Tokenizer::Impl::encode_normalized(std::string_view text, bool at_start,
                                        std::vector<TokenId>& ids) const {
  std::vector<AddedSpan> spans;
  added.cut(text, true, spans);
  Pieces pieces;
  for (const AddedSpan& span : spans) {
    if (span.id >= 0) {
      if (span.begin < span.end) ids.push_back(span.id);
      continue;
    }
    pieces.items.clear();
    pieces.owned.clear();
    pre_tokenizer.run(text.substr(span.begin, span.end - span.begin), at_start && span.begin == 0, pieces);
    for (const Piece& piece : pieces.items) bpe.encode(piece.text, pre_tokenizer.byte_level(), ids);
  }
}

/// The string that the decoder sees for an id; throws kUsage for an unknown one.
std::string_view Tokenizer::Impl::decoded_token(TokenId id) const {
  if (const AddedToken* token = added.by_id(id)) return token->normalized_content;
  if (const std::string* token = bpe.token(id)) return *token;
  throw_usage("{}: there is no token with id {} (ids go from 0 to {})", where, id, added.id_limit() - 1);
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  DecoderRun run = impl_->decoder.start();
  std::string text;
  for (const TokenId id : ids) {
    const std::string_view token = impl_->decoded_token(id);
    if (!skip_special || !impl_->added.is_special(token)) run.push(token, text);
  }
  run.finish(text);
  return text;
}

int Tokenizer::vocab_size() const { return impl_->added.id_limit(); }

TokenId Tokenizer::token_id(std::string_view content) const {
  const TokenId id = impl_->added.find(content);
  return id >= 0 ? id : impl_->bpe.find(content);
}

bool Tokenizer::is_special(TokenId id) const {
  const AddedToken* token = impl_->added.by_id(id);
  return token != nullptr && token->special;
}

const std::string& Tokenizer::fingerprint() const { return impl_->fingerprint; }

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer),
      skip_special_(skip_special),
      run_(std::make_unique<DecoderRun>(tokenizer.impl_->decoder.start())) {}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(TokenId id) {
  const std::string_view token = tokenizer_->impl_->decoded_token(id);
  std::string text;
  if (!skip_special_ || !tokenizer_->impl_->added.is_special(token)) run_->push(token, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  run_->finish(text);
  return text;
}

}  // namespace lacuna
