// ruler_niah: several needles among distractors of the same form (Hsieh et al. 2024, "RULER", multi-query
// NIAH).
#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/rng.h"
#include "tasks/answer.h"
#include "tasks/prompt.h"
#include "tasks/registry.h"

namespace lacuna {

namespace {

constexpr PresetCount kCounts[] = {
    {"num_queries", 4, 4, 64, "Keys asked for", ", halved until as many other records fit"},
    {"key_groups", 4, 2, 16, "Groups of a key, joined by hyphens"},
    {"value_groups", 4, 2, 16, "Groups of a value, joined by hyphens"},
    {"group_length", 8, 4, 32, "Characters of a group, out of a-z and 0-9"}};

/// Runs of letters, digits and hyphens, lower case.
std::vector<std::string> runs_of(std::string_view text) {
  std::vector<std::string> runs(1);
  for (const char c : normalize_exact(text)) {
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-') {
      runs.back() += c;
    } else if (!runs.back().empty()) {
      runs.emplace_back();
    }
  }
  if (runs.back().empty()) runs.pop_back();
  return runs;
}

/// Fraction of the asked keys with the exact value. An entry that names an asked key answers for that key,
/// whatever its place; when no entry names any, they answer in the order asked. In an entry the first run
/// of the value's length counts.
double fraction(const nlohmann::json& gold, const std::string& answer) {
  const auto entries = list_entries(answer);
  const auto entry_of = [&](const std::string& key) {
    return std::ranges::find_if(entries,
                                [&](const std::string& e) { return e.find(key) != std::string::npos; });
  };
  bool named = false;
  for (const auto& needle : gold) named = named || entry_of(needle.at("key")) != entries.end();
  std::size_t right = 0;
  for (std::size_t i = 0; i < gold.size(); ++i) {
    const auto& key = gold[i].at("key").get_ref<const std::string&>();
    const auto& value = gold[i].at("value").get_ref<const std::string&>();
    std::string candidate;
    if (const auto entry = entry_of(key); entry != entries.end()) {
      candidate = entry->substr(entry->find(key) + key.size());
    } else if (!named && i < entries.size()) {
      candidate = entries[i];
    }
    const auto runs = runs_of(candidate);
    const auto run =
        std::ranges::find_if(runs, [&](const std::string& r) { return r.size() == value.size(); });
    if (run != runs.end() && *run == value) ++right;
  }
  return gold.empty() ? 0.0 : static_cast<double>(right) / static_cast<double>(gold.size());
}

class RulerNiah final : public Task {
 public:
  explicit RulerNiah(const Params& params)
      : style_(style_of(params)),
        scale_queries_(is_mini(params)),
        num_queries_(count_of(params, kCounts, "num_queries")),
        key_groups_(count_of(params, kCounts, "key_groups")),
        value_groups_(count_of(params, kCounts, "value_groups")),
        group_length_(count_of(params, kCounts, "group_length")),
        frame_(choose(style_, wording::kNiahExplain, wording::kNiahDirect)),
        record_(style_ == Style::kDirect ? wording::kNiahRecordDirect : wording::kNiahRecord) {}

  Sample generate(const SampleRequest& request) const override {
    return fit_sample("ruler_niah", request, [&](Draft& draft) {
      std::int64_t queries = num_queries_;
      while (!compose(draft, request, queries)) {
        LACUNA_REQUIRE(scale_queries_ && queries > 1,
                       "ruler_niah: {} tokens are too few for {} keys and as many other records; ask for a "
                       "longer prompt "
                       "or fewer keys (num_queries)",
                       request.target_tokens, queries);
        queries /= 2;
      }
    });
  }

  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_ruler_niah(gold, output);
  }

 private:
  struct Record {
    std::string key, value;
    Block block;
  };

  std::string random_text(Rng& rng, std::int64_t groups) const {
    static constexpr std::string_view kAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789";
    std::string text = " ";
    for (std::int64_t g = 0; g < groups; ++g) {
      if (g > 0) text += '-';
      for (std::int64_t i = 0; i < group_length_; ++i) text += kAlphabet[rng.below(kAlphabet.size())];
    }
    return text;
  }

  Record make_record(Draft& draft, Rng& rng, std::set<std::string>& seen) const {
    Record record;
    for (int attempt = 0; attempt < 1000; ++attempt) {
      record.key = random_text(rng, key_groups_);
      if (seen.insert(record.key).second) break;
      LACUNA_REQUIRE(attempt < 999, "ruler_niah: there are not enough different keys of {} x {} characters",
                     key_groups_, group_length_);
    }
    do record.value = random_text(rng, value_groups_);
    while (!seen.insert(record.value).second);
    record_.add_to(
        draft, [&](const std::string& slot) { draft.add_fresh(slot == "key" ? record.key : record.value); });
    record.block = draft.take();
    return record;
  }

  /// False when fewer than twice `queries` records fit.
  bool compose(Draft& draft, const SampleRequest& request, std::int64_t queries) const {
    Rng rng(request.seed, stream_id("ruler_niah", request.index));
    std::set<std::string> seen;
    std::vector<Record> records;
    for (std::int64_t i = 0; i < queries; ++i) records.push_back(make_record(draft, rng, seen));
    const auto frame = frame_.write(draft, [&](const std::string& slot) {
      for (std::int64_t i = 0; i < queries; ++i) {
        const bool numbered = slot == "numbered_keys";
        if (i > 0) draft.add(numbered ? "\n" : ",");
        if (numbered) draft.add_number(static_cast<std::uint64_t>(i) + 1).add(".");
        draft.add_fresh(records[static_cast<std::size_t>(i)].key);
      }
    });
    std::int64_t room = draft.budget() - frame.tokens();
    for (const auto& record : records) room -= record.block.tokens();
    if (room < 0) return false;
    while (true) {
      Record record = make_record(draft, rng, seen);
      if (record.block.tokens() > room) break;
      room -= record.block.tokens();
      records.push_back(std::move(record));
    }
    if (std::ssize(records) < 2 * queries) return false;

    std::vector<std::size_t> order(records.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    rng.shuffle(order);
    std::vector<Block> context;
    nlohmann::json positions = nlohmann::json::array();
    for (std::int64_t i = 0; i < queries; ++i) positions.push_back(0);
    for (std::size_t at = 0; at < order.size(); ++at) {
      if (std::cmp_less(order[at], queries)) positions[order[at]] = at;
      context.push_back(records[order[at]].block);
    }
    const std::size_t noise = top_up(draft, context, room, rng);
    PromptFrame::place(draft, frame, context);

    draft.gold = nlohmann::json::array();
    draft.answer_text = "<answer>\n";
    for (std::int64_t i = 0; i < queries; ++i) {
      const auto& record = records[static_cast<std::size_t>(i)];
      draft.gold.push_back({{"key", record.key.substr(1)}, {"value", record.value.substr(1)}});
      draft.answer_text += fmt::format("{}.{} is{}\n", i + 1, record.key, record.value);
    }
    draft.answer_text += "</answer>";
    draft.description = {{"queries", queries},
                         {"records", records.size()},
                         {"noise_lines", noise},
                         {"needle_positions", positions}};
    return true;
  }

  Style style_;
  bool scale_queries_;
  std::int64_t num_queries_, key_groups_, value_groups_, group_length_;
  PromptFrame frame_;
  Template record_;
};

}  // namespace

TaskInfo ruler_niah_info() {
  return {.name = "ruler_niah",
          .summary = "Copy the values of a few keys out of a haystack of key-value records",
          .metric = "exact_match",
          .group = TaskGroup::kMultipleQa,
          .params = generator_params(kCounts)};
}

std::unique_ptr<const Task> make_ruler_niah(const Params& params) {
  return std::make_unique<RulerNiah>(params);
}

Score score_ruler_niah(const nlohmann::json& gold, std::string_view output) {
  return score_answer(output, [&](const std::string& answer) { return fraction(gold, answer); });
}

}  // namespace lacuna
