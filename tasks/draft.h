// Composing a prompt out of small pieces of text while counting its tokens, so that a 128K-token prompt is
// tokenised piece by piece (repeated pieces once) and checked once as a whole.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.h"

namespace lacuna {

/// A run of pieces inside a Draft.
struct Block {
  std::size_t text_begin = 0, text_end = 0;
  std::size_t id_begin = 0, id_end = 0;
  std::int64_t tokens() const { return static_cast<std::int64_t>(id_end - id_begin); }
};

/// One prompt being written. Pieces are added, taken as blocks, and blocks are placed in the order of the
/// prompt; what is not placed is not part of it. A piece must end where the tokenizer splits in any case:
/// before a space that a word follows, between a letter or digit and punctuation, or after a newline that no
/// white space follows.
class Draft {
 public:
  /// `budget`: tokens the message may take.
  Draft(PieceCache& cache, std::int64_t budget) : cache_(cache), budget_(budget) {}

  std::int64_t budget() const { return budget_; }
  /// An empty draft over the same cache: a scratch pad for counting.
  Draft sibling() const { return Draft(cache_, budget_); }

  /// Appends a piece whose ids are remembered from sample to sample: wording, words, numbers.
  Draft& add(std::string_view piece);
  /// Appends a piece that will hardly come again: random strings, documents.
  Draft& add_fresh(std::string_view piece);
  Draft& add_number(std::uint64_t number);
  /// All that was added since the last take().
  Block take();

  std::string_view text(const Block& block) const {
    return std::string_view(text_).substr(block.text_begin, block.text_end - block.text_begin);
  }

  /// Starts a section; blocks placed from now on count for it.
  void section(std::string name);
  void place(const Block& block);
  void place(std::span<const Block> blocks);
  /// Tokens placed so far.
  std::int64_t placed() const { return static_cast<std::int64_t>(ids_out_.size()); }

  const std::string& message() const { return message_; }
  const std::vector<TokenId>& ids() const { return ids_out_; }
  /// Tokens of each section by its pieces.
  const std::vector<std::pair<std::string, std::int64_t>>& sections() const { return sections_; }
  std::string_view section_text(std::size_t section) const;

  // What the task says about the sample.
  nlohmann::json gold, description;
  std::string answer_text;

 private:
  PieceCache& cache_;
  std::int64_t budget_;
  std::string text_, message_;
  std::vector<TokenId> ids_, ids_out_;
  std::size_t text_taken_ = 0, id_taken_ = 0;
  std::vector<std::pair<std::string, std::int64_t>> sections_;
  std::vector<std::size_t> section_begins_;  ///< In message_
};

/// Composes until the whole prompt, tokenised as one text with its chat frame, fills 95 to 100 % of the
/// target (at least 90 %, else kUsage with the reason). `compose` is called again with another budget where
/// the tokenizer joins pieces, so it must depend on its draft alone. `who` names the task in messages.
Sample fit_sample(const std::string& who, const SampleRequest& request,
                  const std::function<void(Draft&)>& compose);

/// A text with {placeholders}, cut once into fixed fragments and names.
class Template {
 public:
  explicit Template(std::string_view text);

  /// Calls fixed(fragment) and slot(name) in order.
  template <class Fixed, class Slot>
  void visit(Fixed&& fixed, Slot&& slot) const {
    for (const auto& part : parts_) {
      if (part.is_slot) {
        slot(part.text);
      } else {
        fixed(part.text);
      }
    }
  }
  /// Adds the fixed fragments to the draft and calls slot(name), which adds the rest.
  template <class Slot>
  void add_to(Draft& draft, Slot&& slot) const {
    visit([&](const std::string& fragment) { draft.add(fragment); }, slot);
  }
  /// A template without placeholders.
  void add_to(Draft& draft) const;

 private:
  struct Part {
    bool is_slot;
    std::string text;
  };
  std::vector<Part> parts_;
};

}  // namespace lacuna
