// What the tests of tasks share.
#pragma once

#include "tasks/task.h"

namespace lacuna::testing {

inline constexpr const char* kGenerated[] = {"ruler_niah",      "ruler_vt",        "ruler_cwe",
                                             "story_retrieval", "story_filtering", "story_multihop"};

/// The small tokenizer of tests/tasks/golden, loaded once.
inline const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load("tests/tasks/golden");
  return loaded;
}

inline std::unique_ptr<const Task> make(const std::string& name, const nlohmann::json& params) {
  return make_task(name, Params::parse(find_task(name, "test").params, params, name));
}

}  // namespace lacuna::testing
