// The fuzz target on mutated fixtures: a few thousand inputs in every test run, without a fuzzer.
#include <gtest/gtest.h>

#include "core/file.h"
#include "core/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace lacuna {
namespace {

std::string mutate(std::string text, Rng& rng) {
  static constexpr std::string_view kPieces[] = {"{",
                                                 "}",
                                                 "[",
                                                 "]",
                                                 "\"",
                                                 ":",
                                                 ",",
                                                 "\n",
                                                 "A.",
                                                 "B.",
                                                 "null",
                                                 "1e999",
                                                 "</answer>",
                                                 "-1",
                                                 "<answer>",
                                                 "\\u0000",
                                                 "\xff",
                                                 "é",
                                                 "answer:",
                                                 "\"gold_label\"",
                                                 "18446744073709551616",
                                                 "true",
                                                 "\\ud800",
                                                 ""};
  const std::uint64_t changes = 1 + rng.below(6);
  for (std::uint64_t i = 0; i < changes && !text.empty(); ++i) {
    const auto at = rng.below(text.size());
    switch (rng.below(4)) {
      case 0:
        text[at] = static_cast<char>(rng.below(256));
        break;
      case 1:
        text.erase(at, rng.below(40));
        break;
      case 2:
        text.insert(at, kPieces[rng.below(std::size(kPieces))]);
        break;
      case 3:
        text.insert(at, text.substr(rng.below(text.size()), rng.below(60)));
        break;
    }
  }
  return text;
}

TEST(Fuzz, MutatedFixtures) {
  const std::pair<char, std::string> seeds[] = {
      {0, read_file("tests/tasks/data/squad_v1.json")},
      {1, read_file("tests/tasks/data/choices.jsonl").substr(0, 2000)},
      {1, read_file("tests/tasks/data/quality_release.jsonl").substr(0, 2000)},
      {2, R"([{"task": "ruler_vt", "length": 512, "params": {"num_hops": 1}, "weight": 2}])"},
      {3, "Question 1.Why? A. They \n B. Their U.S. \n C. x\n D. y \n"},
      {4, "First.\n<answer>\n1. aa-bb is cc-dd\n2. ABCDE, FGHIJ\n3. small copper lamp, 3, 12, B</answer>"},
      {5, R"([{"key": "aa-bb", "value": "cc-dd"}, "x", 3])"}};
  Rng rng(11);
  for (const auto& [target, seed] : seeds) {
    for (int i = 0; i < 1500; ++i) {
      const std::string input = std::string(1, target) + mutate(seed, rng);
      ASSERT_NO_THROW(
          LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size()))
          << "target " << static_cast<int>(target) << ": " << input;
    }
  }
}

}  // namespace
}  // namespace lacuna
