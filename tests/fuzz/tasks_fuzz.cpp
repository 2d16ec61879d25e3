// Fuzz target: the readers of question-answering files, export specifications, and every scorer on any
// output. Built with libFuzzer by -DLACUNA_FUZZ=ON (clang); tests/tasks/fuzz_test.cpp runs it on mutated
// fixtures everywhere.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "core/json.h"
#include "tasks/answer.h"
#include "tasks/export.h"
#include "tasks/qa_data.h"
#include "tasks/task.h"

namespace {

using lacuna::Error;
using lacuna::ErrorKind;
using lacuna::Json;

/// Errors of the user's input are the only ones allowed out.
template <class Action>
void only_usage_errors(Action&& action) {
  try {
    action();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kUsage) throw;
  }
}

void score_everything(std::string_view output) {
  static const Json golds[] = {
      Json{"Rollo", "the duke"},
      Json("B"),
      Json("AD"),
      Json{{{"key", "aa-bb"}, {"value", "cc-dd"}}, {{"key", "ee-ff"}, {"value", "gg-hh"}}},
      Json{"ABCDE", "FGHIJ"},
      Json{"tree", "and"},
      Json{"Bramwick", "small copper lamp"},
      Json{3, 12, 40},
      Json("small copper lamp")};
  std::size_t at = 0;
  for (const auto& info : lacuna::tasks()) {
    const auto score = lacuna::score_output(info.name, golds[at++], output, "fuzz");
    if (!(score.value >= 0 && score.value <= 1)) __builtin_trap();
    if (score.no_answer && score.value != 0) __builtin_trap();
    if (score.no_answer != score.answer.empty()) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      only_usage_errors([&] { (void)lacuna::read_squad(text, "fuzz"); });
      break;
    case 1:
      only_usage_errors([&] { (void)lacuna::read_choices(text, "fuzz"); });
      break;
    case 2:
      only_usage_errors([&] { (void)lacuna::parse_export_spec(lacuna::parse_json(text, "fuzz"), "fuzz"); });
      break;
    case 3: {
      std::string question;
      std::vector<std::string> options;
      if (lacuna::parse_options(text, &question, &options) && options.size() < 2) __builtin_trap();
      (void)lacuna::parse_letters(text, 4);
      break;
    }
    case 4:
      score_everything(text);
      break;
    case 5:
      only_usage_errors([&] {
        const Json gold = lacuna::parse_json(text, "fuzz");
        for (const auto& info : lacuna::tasks()) {
          only_usage_errors(
              [&] { (void)lacuna::score_output(info.name, gold, "<answer>1. ABCDE</answer>", "fuzz"); });
        }
      });
      break;
  }
  return 0;
}
