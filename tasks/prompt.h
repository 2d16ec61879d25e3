// The skeleton that all generated prompts share: question, context, question again.
#pragma once

#include <span>

#include "core/rng.h"
#include "tasks/draft.h"
#include "tasks/wording.h"

namespace lacuna {

/// A Wording, cut into templates once per task.
class PromptFrame {
 public:
  explicit PromptFrame(const Wording& wording)
      : intro_(wording.intro),
        question_(wording.question),
        open_(wording.open),
        close_(wording.close),
        again_(wording.format.empty() ? without_last_newline(wording.question) : wording.question),
        format_(wording.format) {}

  /// The blocks around a context. `slot(name)` adds what fills a placeholder; it is called twice per name.
  struct Blocks {
    Block intro, question, open, close, again, format;
    std::int64_t tokens() const {
      return intro.tokens() + question.tokens() + open.tokens() + close.tokens() + again.tokens() +
             format.tokens();
    }
  };
  template <class Slot>
  Blocks write(Draft& draft, Slot&& slot) const {
    const auto part = [&](const Template& text) {
      text.add_to(draft, slot);
      return draft.take();
    };
    return {.intro = part(intro_),
            .question = part(question_),
            .open = part(open_),
            .close = part(close_),
            .again = part(again_),
            .format = part(format_)};
  }
  /// Puts everything in its place. `context` is the final order.
  static void place(Draft& draft, const Blocks& blocks, std::span<const Block> context);

 private:
  /// A message must not end in white space: chat templates trim it.
  static std::string_view without_last_newline(std::string_view text) {
    while (text.ends_with('\n')) text.remove_suffix(1);
    return text;
  }

  Template intro_, question_, open_, close_, again_, format_;
};

/// Noise out of `texts` while it fits into `room` tokens: the fine grain that brings short prompts close to
/// their target.
std::vector<Block> noise_for(Draft& draft, std::int64_t room, std::span<const std::string_view> texts,
                             Rng& rng);

/// The same as lines, put at random places of `context`. Returns their number.
std::size_t top_up(Draft& draft, std::vector<Block>& context, std::int64_t room, Rng& rng);

}  // namespace lacuna
