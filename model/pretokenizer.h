// Pre-tokenizers of tokenizer.json: how normalized text is cut into words, inside which BPE merges.
#pragma once

#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

/// A word, or the whole text before it is cut.
struct Piece {
  std::string_view text;
  bool at_start = false;  ///< Nothing of the input lies before it.
};

/// Words with the storage of those that a stage had to rewrite. Reused from call to call.
struct Pieces {
  std::vector<Piece> items;
  std::deque<std::string> owned;  // a deque: views into its strings stay valid as it grows
};

/// One step of cutting; appends the parts of `piece` to `out`, empty ones left out.
class PreTokenizerStage {
 public:
  virtual ~PreTokenizerStage() = default;
  virtual void cut(const Piece& piece, Pieces& out) const = 0;
};

/// Split, ByteLevel, Metaspace, Digits, Punctuation and Sequence. Immutable and thread-safe.
class PreTokenizer {
 public:
  /// `field` is the file's "pre_tokenizer" (null: no cutting). Unsupported types throw kUsage by name.
  /// `keeps_start`: Normalizer::keeps_start of the same file; Metaspace "first" is refused without it.
  static PreTokenizer parse(const nlohmann::json& field, bool keeps_start, const std::string& where);

  /// Appends the words of `text` to `pieces`. They live as long as `text` and `pieces`.
  void run(std::string_view text, bool at_start, Pieces& pieces) const;
  /// Whether the words are bytes still to be mapped to the byte-level alphabet (map_bytes). Keeping that step
  /// for the model lets it work on the bytes themselves.
  bool byte_level() const { return byte_level_; }

 private:
  void add(const nlohmann::json& field, bool last, bool keeps_start, const std::string& where);
  std::vector<std::unique_ptr<const PreTokenizerStage>> stages_;
  bool byte_level_ = false;
  bool rewrites_ = false;
};

/// The byte-level alphabet of GPT-2: every byte as a printable character.
void map_bytes(std::string_view bytes, std::string& text);
/// The inverse for a whole token; false when a character is not of the alphabet.
bool unmap_bytes(std::string_view text, std::string& bytes);

}  // namespace lacuna
