// Solvers that know a task's rules but nothing of its generator: they read the text of a prompt and answer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lacuna::testing {

/// What a reader finds in a chapter.
struct ReadChapter {
  int number = 0;
  std::string place, person, bought, sold;  ///< "" where there is none
};
std::vector<ReadChapter> read_story(std::string_view prompt);

/// The model output a perfect reader of `prompt` would give for `task`. A part of a prompt is read as far as
/// it goes.
std::string solve(const std::string& task, std::string_view prompt);

/// The last `fraction` of the prompt, from the next line on.
std::string_view tail_of(std::string_view prompt, double fraction);

}  // namespace lacuna::testing
