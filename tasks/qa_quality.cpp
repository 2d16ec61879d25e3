// qa_quality: multiple choice about a long story or article (Pang et al. 2022).
#include "core/file.h"
#include "tasks/answer.h"
#include "tasks/qa_task.h"
#include "tasks/registry.h"

namespace lacuna {

TaskInfo qa_quality_info() {
  return {.name = "qa_quality",
          .summary = "Choose the right option for a question about one of many long texts",
          .metric = "exact_match",
          .group = TaskGroup::kSingleQa,
          .needs_data = true,
          .params = qa_params("File of JSON lines: context, questions, answer; or the QuALITY release")};
}

std::unique_ptr<const Task> make_qa_quality(const Params& params) {
  const std::string& path = params.get_string("data");
  return std::make_unique<QaTask>("qa_quality", params, read_choices(read_file(path), path),
                                  wording::kChoiceExplain, wording::kChoiceDirect, score_qa_quality);
}

Score score_qa_quality(const nlohmann::json& gold, std::string_view output) {
  const auto& letters = gold.get_ref<const std::string&>();
  return score_answer(
      output, [&](const std::string& answer) { return chosen_letters(answer) == letters ? 1.0 : 0.0; });
}

}  // namespace lacuna
