// qa_toefl: multiple choice about a lecture or conversation, sometimes with several right options (Tseng et
// al. 2016).
#include "core/file.h"
#include "tasks/answer.h"
#include "tasks/qa_task.h"
#include "tasks/registry.h"

namespace lacuna {

TaskInfo qa_toefl_info() {
  return {.name = "qa_toefl",
          .summary = "Choose the right option or options for a question about one of many lectures",
          .metric = "exact_match",
          .group = TaskGroup::kSingleQa,
          .needs_data = true,
          .params = qa_params("File of JSON lines: context, questions, answer")};
}

std::unique_ptr<const Task> make_qa_toefl(const Params& params) {
  const std::string& path = params.get_string("data");
  return std::make_unique<QaTask>("qa_toefl", params, read_choices(read_file(path), path),
                                  wording::kChoiceExplain, wording::kChoiceDirect, score_qa_toefl);
}

Score score_qa_toefl(const nlohmann::json& gold, std::string_view output) {
  const auto& letters = gold.get_ref<const std::string&>();
  return score_answer(
      output, [&](const std::string& answer) { return chosen_letters(answer) == letters ? 1.0 : 0.0; });
}

}  // namespace lacuna
