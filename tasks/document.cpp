#include "tasks/document.h"

#include <algorithm>

#include "core/error.h"
#include "tasks/document_text.h"

namespace lacuna {

namespace {

constexpr std::string_view kLicence =
#include "tasks/words/licence.inc"
    ;

struct Spread {
  std::int64_t least = INT64_MAX, most = 0, sum = 0, n = 0;
  void add(std::int64_t value) {
    least = std::min(least, value);
    most = std::max(most, value);
    sum += value;
    ++n;
  }
  std::string text() const {
    return fmt::format("{} / {:.0f} / {}", least, static_cast<double>(sum) / static_cast<double>(n), most);
  }
};

/// Tokens from the question's second statement on.
std::int64_t tokens_after_context(const Sample& sample) {
  std::int64_t tokens = 0;
  for (const auto& [section, n] : sample.sections) {
    if (section == "question again" || section == "answer format" || section == "frame") tokens += n;
  }
  return tokens;
}

std::string spread_of(const TaskInfo& info, const nlohmann::json& params, std::int64_t length,
                      const Tokenizer& tokenizer, ChatFormat chat, PieceCache& cache) {
  const auto task = make_task(info.name, Params::parse(info.params, params, info.name));
  Spread spread;
  for (std::uint64_t i = 0; i < 20; ++i) {
    spread.add(tokens_after_context(task->generate({.tokenizer = &tokenizer,
                                                    .chat = chat,
                                                    .target_tokens = length,
                                                    .seed = 42,
                                                    .index = i,
                                                    .cache = &cache})));
  }
  return spread.text();
}

/// What a group means for the two axes of the paper.
std::pair<const char*, const char*> axes(TaskGroup group) {
  switch (group) {
    case TaskGroup::kSingleQa:
      return {"low: one passage", "low"};
    case TaskGroup::kMultipleQa:
      return {"low: a few places", "low"};
    case TaskGroup::kHighScope:
      return {"high: all of it", "low"};
    case TaskGroup::kHighDispersion:
      return {"low: a few places", "high: one leads to the next"};
  }
  return {"", ""};
}

}  // namespace

std::string tasks_markdown(const Tokenizer& tokenizer, ChatFormat chat, const std::string& tokenizer_name) {
  std::string page(document_text::kIntro);
  page += "| task | what it asks | metric | group | scope | dispersion |\n|---|---|---|---|---|---|\n";
  for (const auto& info : tasks()) {
    const auto [scope, dispersion] = axes(info.group);
    page += fmt::format("| {} | {} | {} | {} | {} | {} |\n", info.name, info.summary, info.metric,
                        name_of(info.group), scope, dispersion);
  }
  page += document_text::kPrompt;
  page += fmt::format(
      "Tokenizer: {} ({} tokens). Least / mean / most.\n\n"
      "| task | paper, explain, 16384 tokens | mini, direct, 2048 tokens |\n|---|---|---|\n",
      tokenizer_name, tokenizer.vocab_size());
  PieceCache cache(tokenizer);
  for (const auto& info : tasks()) {
    if (info.needs_data) {
      page += fmt::format("| {} | by the data file | - |\n", info.name);
      continue;
    }
    page +=
        fmt::format("| {} | {} | {} |\n", info.name,
                    spread_of(info, nlohmann::json::object(), 16384, tokenizer, chat, cache),
                    spread_of(info, {{"preset", "mini"}, {"style", "direct"}}, 2048, tokenizer, chat, cache));
  }
  page += "\n## Parameters\n\nAs `-p name=value` here, and as `name: value` in a sweep.\n";
  for (const auto& info : tasks())
    page += fmt::format("\n### {}\n\n{}", info.name, markdown_table(info.params));
  page += document_text::kScoring;
  page += kLicence;
  page += document_text::kWords;
  return page;
}

}  // namespace lacuna
