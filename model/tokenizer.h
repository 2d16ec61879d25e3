// Text to token ids and back, exactly as the reference `tokenizers` library does, from a tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

using TokenId = std::int32_t;

class DecoderRun;

/// Byte-level BPE (Qwen, Llama 3) and SentencePiece-style BPE with byte fallback (Gemma, Mistral). Immutable
/// and safe to use from several threads once loaded.
class Tokenizer {
 public:
  /// Loads FOLDER/tokenizer.json. Anything in it that would change ids and is not supported is refused by
  /// name (kUsage).
  static Tokenizer load(const std::string& folder);
  /// From the JSON text itself; `where` starts error messages.
  static Tokenizer parse(std::string_view json, const std::string& where);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text`. Added and special tokens inside the text become their ids. With `add_special`, the
  /// post-processor's tokens (BOS) are added. Invalid UTF-8 is replaced by U+FFFD as Python's
  /// errors="replace" does.
  std::vector<TokenId> encode(std::string_view text, bool add_special = false) const;

  /// Text of `ids`; special tokens are left out when `skip_special`. Unknown ids throw kUsage.
  std::string decode(std::span<const TokenId> ids, bool skip_special = true) const;

  /// Number of ids: one past the largest (a model's embedding may have more rows).
  int vocab_size() const;
  /// Id of a token's exact content ("<|im_end|>"), or -1.
  TokenId token_id(std::string_view content) const;
  bool is_special(TokenId id) const;
  /// XXH3-128 of the JSON text, for provenance.
  const std::string& fingerprint() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Decodes ids one at a time; never emits half a UTF-8 character. The concatenated output equals decode().
/// Each id costs the same, however many came before.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  /// Text that became certain with this token; may be empty.
  /// An unknown id throws kUsage and leaves the decoder as it was.
  std::string push(TokenId id);
  /// What is left at the end. Nothing may be pushed afterwards.
  std::string finish();

  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

 private:
  const Tokenizer* tokenizer_;  // must outlive this
  bool skip_special_;
  std::unique_ptr<DecoderRun> run_;
};

}  // namespace lacuna
