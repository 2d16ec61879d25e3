// story_retrieval: facts (place, person or item) of given chapters of a story.
#include <algorithm>

#include "core/error.h"
#include "tasks/answer.h"
#include "tasks/narrative.h"
#include "tasks/registry.h"

namespace lacuna {

namespace {

constexpr const char* kName = "story_retrieval";
constexpr PresetCount kCounts[] = {
    {"num_queries", 16, 4, 256, "Facts asked for", ", fewer where the story has not as many facts"}};

class StoryRetrieval final : public Task {
 public:
  explicit StoryRetrieval(const Params& params)
      : num_queries_(static_cast<std::size_t>(count_of(params, kCounts, "num_queries"))),
        scale_(is_mini(params)),
        narrative_(make_narrative(params)),
        frame_(choose(style_of(params), wording::kRetrievalExplain, wording::kRetrievalDirect)) {
    const bool direct = style_of(params) == Style::kDirect;
    for (std::size_t kind = 0; kind < 3; ++kind) {
      ask_.emplace_back(direct ? wording::kRetrievalAskDirect[kind] : wording::kRetrievalAsk[kind]);
    }
  }

  Sample generate(const SampleRequest& request) const override {
    return fit_sample(kName, request, [&](Draft& draft) {
      std::size_t queries = num_queries_;
      while (!compose(draft, request, queries)) {
        LACUNA_REQUIRE(
            scale_ && queries > 1,
            "{}: {} tokens hold too few chapters for {} questions; ask for a longer prompt, fewer questions "
            "(num_queries) or detail: brief",
            kName, request.target_tokens, queries);
        --queries;
      }
    });
  }

  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_story_retrieval(gold, output);
  }

 private:
  struct Question {
    std::size_t chapter, kind;
  };

  PromptFrame::Blocks write_frame(Draft& draft, std::span<const Question> questions) const {
    return frame_.write(draft, [&](const std::string&) {
      for (std::size_t i = 0; i < questions.size(); ++i) {
        if (i > 0) draft.add("\n");
        draft.add_number(i + 1).add(".");
        ask_[questions[i].kind].add_to(
            draft, [&](const std::string&) { draft.add(fmt::format(" {}", questions[i].chapter + 1)); });
      }
    });
  }

  /// False when the story has not enough facts to ask for.
  bool compose(Draft& draft, const SampleRequest& request, std::size_t queries) const {
    // Room for the dearest questions first; what the real ones leave open is topped up.
    std::int64_t reserve = 0;
    const auto worst = static_cast<std::size_t>(std::max<std::int64_t>(draft.budget() / 25, 9));
    for (std::size_t kind = 0; kind < 3; ++kind) {
      const std::vector<Question> same(queries, Question{worst, kind});
      reserve = std::max(reserve, write_frame(draft, same).tokens());
    }
    if (reserve >= draft.budget()) return false;
    const Story story = tell_story(narrative_, draft, draft.budget() - reserve, request, kName);
    const std::size_t facts = 3 * story.chapters.size();
    if (facts < 2 * queries && facts < queries + 2) return false;

    Rng rng(request.seed, stream_id(kName, request.index, 2));
    std::vector<Question> questions;
    for (const auto pick : rng.sample(facts, queries)) questions.push_back({pick / 3, pick % 3});
    const auto frame = write_frame(draft, questions);
    const auto context =
        story.context(narrative_, draft, draft.budget() - frame.tokens() - story.tokens, rng);
    PromptFrame::place(draft, frame, context);

    draft.gold = nlohmann::json::array();
    auto asked = nlohmann::json::array();
    draft.answer_text = "<answer>\n";
    for (std::size_t i = 0; i < queries; ++i) {
      const auto& chapter = story.chapters[questions[i].chapter];
      const std::string fact = questions[i].kind == 0   ? narrative_.place(chapter)
                               : questions[i].kind == 1 ? narrative_.person(chapter)
                                                        : narrative_.item(chapter.item);
      draft.gold.push_back(fact);
      static constexpr const char* kKinds[] = {"place", "person", "item"};
      asked.push_back({{"chapter", questions[i].chapter + 1}, {"kind", kKinds[questions[i].kind]}});
      draft.answer_text += fmt::format("{}. {}\n", i + 1, fact);
    }
    draft.answer_text += "</answer>";
    draft.description = {{"questions", asked}, {"chapters", story.facts(narrative_)}};
    return true;
  }

  std::size_t num_queries_;
  bool scale_;
  Narrative narrative_;
  PromptFrame frame_;
  std::vector<Template> ask_;
};

}  // namespace

TaskInfo story_retrieval_info() {
  return {.name = kName,
          .summary = "Answer questions about single chapters of a story: its place, person or item",
          .metric = "exact_match",
          .group = TaskGroup::kMultipleQa,
          .params = narrative_params(kCounts)};
}

std::unique_ptr<const Task> make_story_retrieval(const Params& params) {
  return std::make_unique<StoryRetrieval>(params);
}

Score score_story_retrieval(const nlohmann::json& gold, std::string_view output) {
  return score_answer(output, [&](const std::string& answer) {
    const auto entries = list_entries(answer);
    std::size_t right = 0;
    for (std::size_t i = 0; i < gold.size() && i < entries.size(); ++i) {
      if (normalize_item(entries[i]) == normalize_item(gold[i].get_ref<const std::string&>())) ++right;
    }
    return gold.empty() ? 0.0 : static_cast<double>(right) / static_cast<double>(gold.size());
  });
}

}  // namespace lacuna
