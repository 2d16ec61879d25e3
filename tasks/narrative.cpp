#include "tasks/narrative.h"

#include <algorithm>

#include "core/error.h"
#include "tasks/story_words.h"

namespace lacuna {

namespace {

std::vector<Template> templates(std::span<const std::string_view> texts) {
  return {texts.begin(), texts.end()};
}

}  // namespace

Narrative::Narrative(bool brief, bool small, double sale_chance)
    : places_(small ? story_words::kSmallPlaces : std::size(story_words::kPlaces)),
      people_(small ? story_words::kSmallPeople : std::size(story_words::kPeople)),
      adjectives_(small ? story_words::kSmallAdjectives : std::size(story_words::kAdjectives)),
      materials_(small ? story_words::kSmallMaterials : std::size(story_words::kMaterials)),
      kinds_(small ? story_words::kSmallKinds : std::size(story_words::kKinds)),
      talk_lines_(brief ? 1 : 3),
      sale_chance_(sale_chance) {
  using namespace story_words;
  heading_ = {Template(brief ? kBriefHeading : kHeading)};
  scene_ = brief ? templates(kBriefScene) : templates(kScene);
  meeting_ = brief ? templates(kBriefMeeting) : templates(kMeeting);
  talk_ = brief ? templates(kBriefTalk) : templates(kTalk);
  purchase_ = brief ? templates(kBriefPurchase) : templates(kPurchase);
  sale_ = brief ? templates(kBriefSale) : templates(kSale);
  farewell_ = brief ? templates(kBriefFarewell) : templates(kFarewell);
}

Narrative::Plot::Plot(const Narrative& narrative, Rng rng)
    : narrative_(narrative),
      rng_(rng),
      pairs_(narrative.places_ * narrative.people_),
      items_(narrative.adjectives_ * narrative.materials_ * narrative.kinds_) {}

Chapter Narrative::Plot::next() {
  // Drawing again until something new comes up stays cheap while a tenth is left.
  LACUNA_REQUIRE(used_ * 10 < std::min(pairs_.size(), items_.size()) * 9,
                 "story: more than {} chapters have no different places, people and items left; ask for a "
                 "shorter prompt, "
                 "detail: full or preset: paper",
                 used_);
  const auto draw_new = [&](std::vector<bool>& seen) {
    std::size_t pick = 0;
    do pick = rng_.below(seen.size());
    while (seen[pick]);
    seen[pick] = true;
    return pick;
  };
  Chapter chapter;
  const std::size_t pair = draw_new(pairs_);
  chapter.place = pair / narrative_.people_;
  chapter.person = pair % narrative_.people_;
  chapter.item = draw_new(items_);
  const bool wants_sale = rng_.uniform() < narrative_.sale_chance_;
  if (wants_sale && !owned_.empty()) {
    const std::size_t pick = rng_.below(owned_.size());
    chapter.sold = owned_[pick];
    owned_[pick] = owned_.back();
    owned_.pop_back();
  }
  owned_.push_back(used_++);
  return chapter;
}

std::string Narrative::place(const Chapter& chapter) const {
  return std::string(story_words::kPlaces[chapter.place].substr(1));
}

std::string Narrative::person(const Chapter& chapter) const {
  return std::string(story_words::kPeople[chapter.person].substr(1));
}

std::string Narrative::item(std::size_t item) const {
  std::string text(story_words::kAdjectives[item % adjectives_].substr(1));
  item /= adjectives_;
  text += story_words::kMaterials[item % materials_];
  text += story_words::kKinds[item / materials_];
  return text;
}

void Narrative::add_item(Draft& draft, std::size_t item) const {
  draft.add(story_words::kAdjectives[item % adjectives_]);
  item /= adjectives_;
  draft.add(story_words::kMaterials[item % materials_]);
  draft.add(story_words::kKinds[item / materials_]);
}

void Narrative::add_part(Draft& draft, const Texts& texts, const Chapter& chapter, std::uint64_t number,
                         std::size_t sold_item, Rng& rng) const {
  texts[rng.below(texts.size())].add_to(draft, [&](const std::string& slot) {
    if (slot == "number")
      draft.add(fmt::format(" {}", number));
    else if (slot == "place")
      draft.add(story_words::kPlaces[chapter.place]);
    else if (slot == "person")
      draft.add(story_words::kPeople[chapter.person]);
    else
      add_item(draft, slot == "sold" ? sold_item : chapter.item);
  });
}

void Narrative::write(Draft& draft, Chapter& chapter, std::uint64_t number, std::size_t sold_item,
                      Rng& rng) const {
  add_part(draft, heading_, chapter, number, sold_item, rng);
  add_part(draft, scene_, chapter, number, sold_item, rng);
  add_part(draft, meeting_, chapter, number, sold_item, rng);
  for (const auto pick : rng.sample(talk_.size(), static_cast<std::uint64_t>(talk_lines_)))
    talk_[pick].add_to(draft);
  chapter.begin = draft.take();
  add_part(draft, purchase_, chapter, number, sold_item, rng);
  chapter.purchase = draft.take();
  if (chapter.sold) add_part(draft, sale_, chapter, number, sold_item, rng);
  chapter.sale = draft.take();
  add_part(draft, farewell_, chapter, number, sold_item, rng);
  chapter.end = draft.take();
}

std::vector<Block> Narrative::small_talk(Draft& draft, std::int64_t room, Rng& rng) const {
  std::vector<Block> talk;
  while (true) {
    talk_[rng.below(talk_.size())].add_to(draft);
    const Block line = draft.take();
    if (line.tokens() > room) break;
    room -= line.tokens();
    talk.push_back(line);
  }
  const auto shorter = noise_for(draft, room, wording::kNoiseInline, rng);
  talk.insert(talk.end(), shorter.begin(), shorter.end());
  return talk;
}

nlohmann::json Story::facts(const Narrative& narrative) const {
  auto facts = nlohmann::json::array();
  for (const auto& chapter : chapters) {
    nlohmann::json fact = {{"place", narrative.place(chapter)}, {"person", narrative.person(chapter)}};
    if (chapter.buys) fact["bought"] = narrative.item(chapter.item);
    if (chapter.sold) fact["sold"] = narrative.item(chapters[*chapter.sold].item);
    facts.push_back(std::move(fact));
  }
  return facts;
}

std::vector<Block> Story::context(const Narrative& narrative, Draft& draft, std::int64_t room,
                                  Rng& rng) const {
  auto talk = narrative.small_talk(draft, room, rng);
  std::vector<std::size_t> more(chapters.size());
  for (std::size_t i = 0; i < talk.size(); ++i) ++more[rng.below(more.size())];
  std::vector<Block> context;
  for (std::size_t i = 0; i < chapters.size(); ++i) {
    context.push_back(chapters[i].begin);
    for (; more[i] > 0; --more[i]) {
      context.push_back(talk.back());
      talk.pop_back();
    }
    if (chapters[i].buys) context.push_back(chapters[i].purchase);
    if (chapters[i].sold) context.push_back(chapters[i].sale);
    context.push_back(chapters[i].end);
  }
  return context;
}

Story tell_story(const Narrative& narrative, Draft& draft, std::int64_t room, const SampleRequest& request,
                 const char* task) {
  Narrative::Plot plot(narrative, Rng(request.seed, stream_id(task, request.index, 0)));
  Rng words(request.seed, stream_id(task, request.index, 1));
  Story story;
  while (true) {
    Chapter chapter = plot.next();
    narrative.write(draft, chapter, story.chapters.size() + 1,
                    chapter.sold ? story.chapters[*chapter.sold].item : 0, words);
    const std::int64_t tokens =
        chapter.begin.tokens() + chapter.purchase.tokens() + chapter.sale.tokens() + chapter.end.tokens();
    if (story.tokens + tokens > room) return story;
    story.tokens += tokens;
    story.chapters.push_back(chapter);
  }
}

std::vector<ParamSpec> narrative_params(std::span<const PresetCount> counts) {
  auto params = generator_params(counts);
  params.push_back({.name = "detail",
                    .default_value = std::string("auto"),
                    .help = "Length of a chapter: full is about 150 tokens, brief about 30; auto takes the "
                            "preset's: paper full, "
                            "mini brief",
                    .choices = {"auto", "full", "brief"}});
  params.push_back({.name = "sale_chance",
                    .default_value = 0.5,
                    .help = "How likely something bought earlier is sold in a chapter",
                    .unit = "probability",
                    .min = 0,
                    .max = 1});
  return params;
}

Narrative make_narrative(const Params& params) {
  const std::string& detail = params.get_string("detail");
  const bool brief = detail == "auto" ? is_mini(params) : detail == "brief";
  return Narrative(brief, is_mini(params), params.get_double("sale_chance"));
}

}  // namespace lacuna
