// docs/tasks.md, written from the tasks' own declarations.
#pragma once

#include <string>

#include "tasks/task.h"

namespace lacuna {

/// The whole page. `tokenizer` counts the tokens of questions; `tokenizer_name` says which it is.
std::string tasks_markdown(const Tokenizer& tokenizer, ChatFormat chat, const std::string& tokenizer_name);

}  // namespace lacuna
