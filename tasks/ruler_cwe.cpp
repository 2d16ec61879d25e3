// ruler_cwe: common-words extraction (Hsieh et al. 2024, "RULER").
#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/rng.h"
#include "tasks/answer.h"
#include "tasks/prompt.h"
#include "tasks/registry.h"

namespace lacuna {

namespace {

constexpr std::string_view kWords[] = {
#include "tasks/words/english.inc"
};

constexpr PresetCount kCounts[] = {
    {"common_words", 10, 5, 100, "Words that are asked for"},
    {"common_count", 30, 10, 10000, "Times that each of them appears", ", five times other_count"},
    {"other_count", 3, 2, 1000, "Times that every other word appears",
     ", fewer or more as the length asks for"},
    {"vocabulary", 12000, 600, std::size(kWords), "Words to choose from: the first so many of the list"}};

bool gold_has(const nlohmann::json& gold, const std::string& word) {
  return std::ranges::find(gold, nlohmann::json(word)) != gold.end();
}

class RulerCwe final : public Task {
 public:
  explicit RulerCwe(const Params& params)
      : mini_(is_mini(params)),
        common_words_(static_cast<std::size_t>(count_of(params, kCounts, "common_words"))),
        common_count_(count_of(params, kCounts, "common_count", &common_given_)),
        other_count_(count_of(params, kCounts, "other_count", &other_given_)),
        vocabulary_(static_cast<std::size_t>(count_of(params, kCounts, "vocabulary"))),
        numbered_(params.get_string("layout") == "auto" ? !mini_ : params.get_string("layout") == "numbered"),
        frame_(frame_wording(style_of(params), numbered_)) {
    LACUNA_REQUIRE(common_words_ < vocabulary_,
                   "ruler_cwe: common_words ({}) must be less than vocabulary ({})", common_words_,
                   vocabulary_);
    // Where neither was set by hand, the mini preset finds both.
    LACUNA_REQUIRE((mini_ && !common_given_ && !other_given_) || common_count_ > other_count_,
                   "ruler_cwe: common_count ({}) must be more than other_count ({})", common_count_,
                   other_count_);
  }

  Sample generate(const SampleRequest& request) const override {
    return fit_sample("ruler_cwe", request, [&](Draft& draft) {
      std::int64_t other = other_count_, common = common_count_;
      Fit fit = compose(draft, request, common, other);
      if (mini_ && !common_given_ && !other_given_) {
        // Repetitions follow the length: one fewer where the common words do not fit, more where the words
        // run out.
        if (fit == Fit::kTooLong) fit = compose(draft, request, common = 5, other = 1);
        while (fit == Fit::kTooShort) {
          ++other;
          fit = compose(draft, request, common = 5 * other, other);
        }
      }
      LACUNA_REQUIRE(fit != Fit::kTooLong,
                     "ruler_cwe: {} tokens are too few for {} words that appear {} times and as many others; "
                     "ask for a longer "
                     "prompt or set common_words and common_count",
                     request.target_tokens, common_words_, common);
      LACUNA_REQUIRE(fit != Fit::kTooShort,
                     "ruler_cwe: the vocabulary of {} words is too small for {} tokens; raise vocabulary, "
                     "common_count or "
                     "other_count",
                     vocabulary_, request.target_tokens);
    });
  }

  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_ruler_cwe(gold, output);
  }

 private:
  static Wording frame_wording(Style style, bool numbered) {
    Wording wording = choose(style, wording::kCweExplain, wording::kCweDirect);
    if (!numbered) wording.open = wording::kCweOpenPlain;
    return wording;
  }

  enum class Fit { kGood, kTooLong, kTooShort };

  /// kTooLong: there is no room for as many other words as common ones. kTooShort: the vocabulary runs out
  /// before the context is full.
  Fit compose(Draft& draft, const SampleRequest& request, std::int64_t common_count,
              std::int64_t other_count) const {
    Rng rng(request.seed, stream_id("ruler_cwe", request.index));
    std::vector<std::uint32_t> words(vocabulary_);
    for (std::uint32_t i = 0; i < words.size(); ++i) words[i] = i;
    rng.shuffle(words);
    const auto frame =
        frame_.write(draft, [&](const std::string&) { draft.add(fmt::format(" {}", common_words_)); });

    // Every word as a block of its own; the numbers in front of them are counted as they come.
    std::vector<Block> blocks;
    const auto block_of = [&](std::size_t i) {
      draft.add(spaced(words[i])).add(numbered_ ? "\n" : ",");
      return draft.take();
    };
    std::int64_t room = draft.budget() - frame.tokens() - kEndTokens;
    std::uint64_t entries = 0;
    Draft numbers = draft.sibling();
    const auto cost = [&](const Block& word, std::int64_t times) {
      std::int64_t tokens = word.tokens() * times;
      for (std::int64_t i = 0; numbered_ && i < times; ++i) {
        tokens += numbers.add_number(entries + 1 + static_cast<std::uint64_t>(i)).add(".").take().tokens();
      }
      return tokens;
    };
    std::size_t used = 0;
    while (used < words.size()) {
      const Block word = block_of(used);
      const std::int64_t times = used < common_words_ ? common_count : other_count;
      const std::int64_t tokens = cost(word, times);
      if (tokens > room) break;
      room -= tokens;
      entries += static_cast<std::uint64_t>(times);
      blocks.push_back(word);
      ++used;
    }
    if (used < 2 * common_words_) return Fit::kTooLong;
    if (used == words.size() && room * 20 > draft.budget()) return Fit::kTooShort;

    std::vector<std::uint32_t> list;
    for (std::uint32_t i = 0; i < used; ++i) {
      list.insert(list.end(), static_cast<std::size_t>(i < common_words_ ? common_count : other_count), i);
    }
    rng.shuffle(list);
    std::vector<Block> context;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (numbered_) {
        draft.add_number(i + 1).add(".");
        context.push_back(draft.take());
      }
      const bool last = i + 1 == list.size();
      if (last && !numbered_) {
        draft.add(spaced(words[list[i]])).add("\n");
        context.push_back(draft.take());
      } else {
        context.push_back(blocks[list[i]]);
      }
    }
    PromptFrame::place(draft, frame, context);

    std::vector<std::string> gold;
    for (std::size_t i = 0; i < common_words_; ++i) gold.emplace_back(kWords[words[i]]);
    std::ranges::sort(gold);
    draft.gold = gold;
    draft.answer_text = fmt::format("<answer> {} </answer>", fmt::join(gold, ", "));
    draft.description = {{"entries", list.size()},
                         {"distinct_words", used},
                         {"common_count", common_count},
                         {"other_count", other_count},
                         {"layout", numbered_ ? "numbered" : "plain"}};
    return Fit::kGood;
  }

  static std::string spaced(std::uint32_t word) { return " " + std::string(kWords[word]); }

  static constexpr std::int64_t kEndTokens =
      2;  ///< The last word's newline instead of a comma may cost another token.

  bool mini_, common_given_ = false, other_given_ = false;
  std::size_t common_words_;
  std::int64_t common_count_, other_count_;
  std::size_t vocabulary_;
  bool numbered_;
  PromptFrame frame_;
};

}  // namespace

TaskInfo ruler_cwe_info() {
  auto params = generator_params(kCounts);
  params.push_back({.name = "layout",
                    .default_value = std::string("auto"),
                    .help = "A numbered list, or words with commas between; auto takes the preset's: paper "
                            "numbered, mini plain",
                    .choices = {"auto", "numbered", "plain"}});
  return {.name = "ruler_cwe",
          .summary = "Find the few words that appear most often in a long list",
          .metric = "iou",
          .group = TaskGroup::kHighScope,
          .params = std::move(params)};
}

std::unique_ptr<const Task> make_ruler_cwe(const Params& params) {
  return std::make_unique<RulerCwe>(params);
}

Score score_ruler_cwe(const nlohmann::json& gold, std::string_view output) {
  return score_answer(output, [&](const std::string& answer) {
    std::set<std::string> found;
    for (const auto& word : words_of(normalize_exact(answer))) {
      const bool number = std::ranges::all_of(word, [](char c) { return c >= '0' && c <= '9'; });
      if (!number && (word != "and" || gold_has(gold, word))) found.insert(word);
    }
    return iou(found, gold.get<std::set<std::string>>());
  });
}

}  // namespace lacuna
