// story_filtering: the chapters of a story in which nothing is bought.
#include <algorithm>
#include <set>

#include "core/error.h"
#include "tasks/answer.h"
#include "tasks/narrative.h"
#include "tasks/registry.h"

namespace lacuna {

namespace {

constexpr const char* kName = "story_filtering";
constexpr PresetCount kCounts[] = {{"chapters_in_question", 3, 3, 64, "Chapters without a purchase",
                                    ", fewer in a story of less than twice as many chapters"}};

class StoryFiltering final : public Task {
 public:
  explicit StoryFiltering(const Params& params)
      : asked_(static_cast<std::size_t>(count_of(params, kCounts, "chapters_in_question"))),
        scale_(is_mini(params)),
        narrative_(make_narrative(params)),
        frame_(choose(style_of(params), wording::kFilteringExplain, wording::kFilteringDirect)) {}

  Sample generate(const SampleRequest& request) const override {
    return fit_sample(kName, request, [&](Draft& draft) { compose(draft, request); });
  }

  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_story_filtering(gold, output);
  }

 private:
  void compose(Draft& draft, const SampleRequest& request) const {
    const auto write_frame = [&](std::size_t count) {
      return frame_.write(draft, [&](const std::string&) { draft.add(fmt::format(" {}", count)); });
    };
    PromptFrame::Blocks frame = write_frame(asked_);
    Story story = tell_story(narrative_, draft, draft.budget() - frame.tokens(), request, kName);
    std::size_t asked = asked_;
    while (story.chapters.size() < 2 * asked) {
      LACUNA_REQUIRE(scale_ && asked > 1,
                     "{}: {} tokens hold only {} chapters, too few for {} without a purchase among them; ask "
                     "for a longer "
                     "prompt or detail: brief",
                     kName, request.target_tokens, story.chapters.size(), asked);
      --asked;
    }
    if (asked != asked_) frame = write_frame(asked);

    // What was not bought cannot be sold later.
    Rng rng(request.seed, stream_id(kName, request.index, 2));
    auto chosen = rng.sample(story.chapters.size(), asked);
    std::ranges::sort(chosen);
    for (const auto i : chosen) {
      story.chapters[i].buys = false;
      story.tokens -= story.chapters[i].purchase.tokens();
    }
    for (auto& chapter : story.chapters) {
      if (!chapter.sold || story.chapters[*chapter.sold].buys) continue;
      chapter.sold.reset();
      story.tokens -= chapter.sale.tokens();
    }
    const auto context =
        story.context(narrative_, draft, draft.budget() - frame.tokens() - story.tokens, rng);
    PromptFrame::place(draft, frame, context);

    std::vector<std::size_t> numbers;
    for (const auto i : chosen) numbers.push_back(i + 1);
    draft.gold = numbers;
    draft.answer_text = fmt::format("<answer> {} </answer>", fmt::join(numbers, ", "));
    draft.description = {{"chapters", story.facts(narrative_)}};
  }

  std::size_t asked_;
  bool scale_;
  Narrative narrative_;
  PromptFrame frame_;
};

}  // namespace

TaskInfo story_filtering_info() {
  return {.name = kName,
          .summary = "Name the chapters of a story in which nothing is bought",
          .metric = "iou",
          .group = TaskGroup::kHighScope,
          .params = narrative_params(kCounts)};
}

std::unique_ptr<const Task> make_story_filtering(const Params& params) {
  return std::make_unique<StoryFiltering>(params);
}

Score score_story_filtering(const nlohmann::json& gold, std::string_view output) {
  return score_answer(output, [&](const std::string& answer) {
    std::set<std::string> found, right;
    for (const auto& word : words_of(answer)) {
      if (word.find_first_not_of("0123456789") != std::string::npos) continue;
      const auto digits = word.find_first_not_of('0');
      found.insert(digits == std::string::npos ? "0" : word.substr(digits));
    }
    for (const auto& number : gold) right.insert(std::to_string(number.get<std::uint64_t>()));
    return iou(found, right);
  });
}

}  // namespace lacuna
