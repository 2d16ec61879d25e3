#include "attention/catalogue.h"

#include <array>

#include "attention/strategy.h"
#include "core/error.h"
#include "core/text.h"

namespace lacuna {

namespace {

struct SlotText {
  Slot slot;
  const char* name;
  const char* meaning;
};
constexpr std::array<SlotText, 3> kSlots = {
    {{Slot::kPrefill, "prefill", "chooses the tiles that the attention over the prompt computes"},
     {Slot::kEvict, "evict", "chooses, after the prompt, the tokens that stay in the cache"},
     {Slot::kDecode, "decode", "chooses, at each step, the pages of the cache that are read"}}};

}  // namespace

std::string strategies_markdown() {
  std::string text =
      "# Strategies: every method and its parameters\n\n"
      "Written by `lacuna strategies --markdown` from the methods' declarations; do not edit by hand. What "
      "exactly each "
      "rule means is in [attention.md](attention.md).\n\n"
      "A strategy fills three slots, each with one method; an absent slot takes `dense`, `none` and "
      "`dense`:\n\n"
      "```yaml\n"
      "strategy: {prefill: {vertical_slash: {verticals: 1024, slashes: 1024}}, evict: {snapkv: {capacity: "
      "4096}}, decode: quest}\n"
      "```\n\n"
      "The *budget* is the parameter that a `sparsity` or a `tokens` level of a sweep sets.\n";
  for (const SlotText& slot : kSlots) {
    text += fmt::format("\n## `{}`: {}\n", slot.name, slot.meaning);
    for (const MethodInfo& info : methods()) {
      if (info.slot != slot.slot) continue;
      text += fmt::format("\n### `{}`\n\n{} Reference: {}.", info.name, info.summary, info.reference);
      if (!info.budget_param.empty()) text += fmt::format(" Budget: `{}`.", info.budget_param);
      text += "\n";
      if (!info.params.empty()) text += "\n" + markdown_table(info.params);
    }
  }
  return text;
}

std::string strategies_text(const std::string& method) {
  std::string text;
  std::vector<std::string> names;
  for (const SlotText& slot : kSlots) {
    std::string section;
    for (const MethodInfo& info : methods()) {
      if (info.slot != slot.slot) continue;
      names.push_back(info.name);
      if (!method.empty() && info.name != method) continue;
      section += fmt::format("  {:<20}{} ({})\n", info.name, info.summary, info.reference);
      for (const ParamSpec& param : info.params) {
        section += fmt::format("      {:<16}{} [{}]\n", param.name, param.help, describe(param));
      }
    }
    if (!section.empty()) text += fmt::format("{}: {}\n{}", slot.name, slot.meaning, section);
  }
  LACUNA_REQUIRE(!text.empty(), "{}", unknown_name_message("method", method, names));
  return text;
}

}  // namespace lacuna
