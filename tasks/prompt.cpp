#include "tasks/prompt.h"

namespace lacuna {

void PromptFrame::place(Draft& draft, const Blocks& blocks, std::span<const Block> context) {
  draft.section("instruction");
  draft.place(blocks.intro);
  draft.section("question");
  draft.place(blocks.question);
  draft.section("context");
  draft.place(blocks.open);
  draft.place(context);
  draft.place(blocks.close);
  draft.section("question again");
  draft.place(blocks.again);
  draft.section("answer format");
  draft.place(blocks.format);
}

std::vector<Block> noise_for(Draft& draft, std::int64_t room, std::span<const std::string_view> texts,
                             Rng& rng) {
  std::vector<Block> noise;
  while (room > 0) {
    draft.add(texts[rng.below(texts.size())]);
    Block line = draft.take();
    for (std::size_t i = 0; line.tokens() > room && i < texts.size();
         ++i) {  // else the first one that still fits
      draft.add(texts[i]);
      line = draft.take();
    }
    if (line.tokens() > room) break;
    room -= line.tokens();
    noise.push_back(line);
  }
  return noise;
}

std::size_t top_up(Draft& draft, std::vector<Block>& context, std::int64_t room, Rng& rng) {
  const auto noise = noise_for(draft, room, wording::kNoiseShort, rng);
  for (const auto& line : noise) {
    context.insert(context.begin() + static_cast<std::ptrdiff_t>(rng.below(context.size() + 1)), line);
  }
  return noise.size();
}

}  // namespace lacuna
