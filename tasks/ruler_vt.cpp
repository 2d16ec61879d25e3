// ruler_vt: variable tracking (Hsieh et al. 2024, "RULER"): chains of assignments, shuffled among noise.
#include <set>

#include "core/error.h"
#include "core/rng.h"
#include "tasks/answer.h"
#include "tasks/prompt.h"
#include "tasks/registry.h"

namespace lacuna {

namespace {

constexpr PresetCount kCounts[] = {
    {"num_chains", 8, 4, 4096, "Chains of variables, one of which is asked for",
     ", fewer where they do not fit"},
    {"num_hops", 4, 3, 64, "Assignments after the first of a chain"},
    {"name_length", 5, 3, 16, "Upper-case letters of a name"},
    {"value_digits", 5, 4, 9, "Digits of a value"}};

class RulerVt final : public Task {
 public:
  explicit RulerVt(const Params& params)
      : scale_chains_(is_mini(params)),
        num_chains_(count_of(params, kCounts, "num_chains")),
        num_hops_(count_of(params, kCounts, "num_hops")),
        name_length_(count_of(params, kCounts, "name_length")),
        value_digits_(count_of(params, kCounts, "value_digits")),
        frame_(choose(style_of(params), wording::kVtExplain, wording::kVtDirect)),
        root_(style_of(params) == Style::kDirect ? wording::kVtRootDirect : wording::kVtRoot),
        hop_(style_of(params) == Style::kDirect ? wording::kVtHopDirect : wording::kVtHop) {}

  Sample generate(const SampleRequest& request) const override {
    return fit_sample("ruler_vt", request, [&](Draft& draft) {
      for (std::int64_t chains = num_chains_; !compose(draft, request, chains); --chains) {
        LACUNA_REQUIRE(scale_chains_ && chains > 1,
                       "ruler_vt: {} tokens do not hold {} chains of {} variables; ask for a longer prompt, "
                       "fewer chains "
                       "(num_chains) or fewer hops (num_hops)",
                       request.target_tokens, chains, num_hops_ + 1);
      }
    });
  }

  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_ruler_vt(gold, output);
  }

 private:
  std::string make_name(Rng& rng, std::set<std::string>& seen) const {
    std::string name;
    for (int attempt = 0; attempt < 1000; ++attempt) {
      name = " ";
      for (std::int64_t i = 0; i < name_length_; ++i) name += static_cast<char>('A' + rng.below(26));
      if (name != " VAR" && name != " NAME" && seen.insert(name).second) return name;
    }
    throw_usage("ruler_vt: there are not enough different names of {} letters", name_length_);
  }

  std::string make_value(Rng& rng, std::set<std::string>& seen) const {
    std::uint64_t low = 1;
    for (std::int64_t i = 1; i < value_digits_; ++i) low *= 10;
    std::string value;
    for (int attempt = 0; attempt < 1000; ++attempt) {
      value = fmt::format(" {}", low + rng.below(9 * low));
      if (seen.insert(value).second) return value;
    }
    throw_usage("ruler_vt: there are not enough different values of {} digits", value_digits_);
  }

  /// False when the chains do not fit.
  bool compose(Draft& draft, const SampleRequest& request, std::int64_t chains) const {
    Rng rng(request.seed, stream_id("ruler_vt", request.index));
    std::set<std::string> seen;
    std::vector<Block> lines;
    std::vector<std::string> asked;  // names of the first chain, in the order of definition
    std::string asked_value;
    std::int64_t used = 0;
    for (std::int64_t chain = 0; chain < chains; ++chain) {
      const std::string value = make_value(rng, seen);
      if (chain == 0) asked_value = value;
      std::string from;
      for (std::int64_t hop = 0; hop <= num_hops_; ++hop) {
        const std::string name = make_name(rng, seen);
        (hop == 0 ? root_ : hop_).add_to(draft, [&](const std::string& slot) {
          draft.add_fresh(slot == "name" ? name : slot == "value" ? value : from);
        });
        lines.push_back(draft.take());
        used += lines.back().tokens();
        if (chain == 0) asked.push_back(name.substr(1));
        from = name;
      }
    }
    const auto frame = frame_.write(draft, [&](const std::string&) { draft.add_fresh(asked_value); });
    std::int64_t room = draft.budget() - frame.tokens() - used;
    if (room < 0) return false;
    const std::size_t assignments = lines.size();
    while (true) {
      draft.add(wording::kNoise[rng.below(std::size(wording::kNoise))]);
      const Block noise = draft.take();
      if (noise.tokens() > room) break;
      room -= noise.tokens();
      lines.push_back(noise);
    }
    std::vector<std::size_t> order(lines.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    rng.shuffle(order);
    std::vector<Block> context;
    std::vector<std::size_t> positions(asked.size());
    for (std::size_t at = 0; at < order.size(); ++at) {
      context.push_back(lines[order[at]]);
      if (order[at] < asked.size()) positions[order[at]] = at;
    }
    const std::size_t more = top_up(draft, context, room, rng);
    PromptFrame::place(draft, frame, context);

    draft.gold = asked;
    draft.answer_text = fmt::format("<answer> {} </answer>", fmt::join(asked, ", "));
    draft.description = {{"value", asked_value.substr(1)},
                         {"chains", chains},
                         {"hops", num_hops_},
                         {"assignments", assignments},
                         {"chain_lines", positions},
                         {"noise_lines", lines.size() - assignments + more}};
    return true;
  }

  bool scale_chains_;
  std::int64_t num_chains_, num_hops_, name_length_, value_digits_;
  PromptFrame frame_;
  Template root_, hop_;
};

}  // namespace

TaskInfo ruler_vt_info() {
  return {.name = "ruler_vt",
          .summary = "Name all variables that get one value through a chain of assignments",
          .metric = "iou",
          .group = TaskGroup::kHighDispersion,
          .params = generator_params(kCounts)};
}

std::unique_ptr<const Task> make_ruler_vt(const Params& params) { return std::make_unique<RulerVt>(params); }

Score score_ruler_vt(const nlohmann::json& gold, std::string_view output) {
  return score_answer(output, [&](const std::string& answer) {
    std::set<std::string> found;
    for (const auto& word : words_of(answer)) {
      if (word != "VAR" && word != "and") found.insert(word);
    }
    return iou(found, gold.get<std::set<std::string>>());
  });
}

}  // namespace lacuna
