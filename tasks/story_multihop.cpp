// story_multihop: the item bought last before a given item.
#include "core/error.h"
#include "tasks/answer.h"
#include "tasks/narrative.h"
#include "tasks/registry.h"

namespace lacuna {

namespace {

constexpr const char* kName = "story_multihop";

class StoryMultihop final : public Task {
 public:
  explicit StoryMultihop(const Params& params)
      : narrative_(make_narrative(params)),
        frame_(choose(style_of(params), wording::kMultihopExplain, wording::kMultihopDirect)) {}

  Sample generate(const SampleRequest& request) const override {
    return fit_sample(kName, request, [&](Draft& draft) { compose(draft, request); });
  }

  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_story_multihop(gold, output);
  }

 private:
  void compose(Draft& draft, const SampleRequest& request) const {
    // Any item serves to measure the question; what the real one leaves open is topped up.
    const auto write_frame = [&](std::size_t item) {
      return frame_.write(draft, [&](const std::string&) { narrative_.add_item(draft, item); });
    };
    const std::int64_t reserve = write_frame(0).tokens() + 4;
    const Story story = tell_story(narrative_, draft, draft.budget() - reserve, request, kName);
    LACUNA_REQUIRE(story.chapters.size() >= 2,
                   "{}: {} tokens hold fewer than two chapters; ask for a longer prompt or detail: brief",
                   kName, request.target_tokens);
    Rng rng(request.seed, stream_id(kName, request.index, 2));
    const std::size_t second = 1 + rng.below(story.chapters.size() - 1);
    const auto frame = write_frame(story.chapters[second].item);
    const auto context =
        story.context(narrative_, draft, draft.budget() - frame.tokens() - story.tokens, rng);
    PromptFrame::place(draft, frame, context);

    const std::string answer = narrative_.item(story.chapters[second - 1].item);
    draft.gold = answer;
    draft.answer_text = fmt::format("<answer> {} </answer>", answer);
    draft.description = {{"asked", narrative_.item(story.chapters[second].item)},
                         {"answer_chapter", second},
                         {"chapters", story.facts(narrative_)}};
  }

  Narrative narrative_;
  PromptFrame frame_;
};

}  // namespace

TaskInfo story_multihop_info() {
  return {.name = kName,
          .summary = "Name the item bought last before a given item",
          .metric = "exact_match",
          .group = TaskGroup::kHighDispersion,
          .params = narrative_params({})};
}

std::unique_ptr<const Task> make_story_multihop(const Params& params) {
  return std::make_unique<StoryMultihop>(params);
}

Score score_story_multihop(const nlohmann::json& gold, std::string_view output) {
  return score_answer(output, [&](const std::string& answer) {
    return normalize_item(answer) == normalize_item(gold.get_ref<const std::string&>()) ? 1.0 : 0.0;
  });
}

}  // namespace lacuna
