// qa_squad: questions about a paragraph with free answers (Rajpurkar et al. 2016, 2018).
#include <algorithm>

#include "core/file.h"
#include "tasks/answer.h"
#include "tasks/qa_task.h"
#include "tasks/registry.h"

namespace lacuna {

TaskInfo qa_squad_info() {
  return {.name = "qa_squad",
          .summary = "Answer a question about one of many paragraphs in a few words",
          .metric = "token_f1",
          .group = TaskGroup::kSingleQa,
          .needs_data = true,
          .params = qa_params("File in SQuAD format (v1.1 or v2, JSON)")};
}

std::unique_ptr<const Task> make_qa_squad(const Params& params) {
  const std::string& path = params.get_string("data");
  return std::make_unique<QaTask>("qa_squad", params, read_squad(read_file(path), path),
                                  wording::kSquadExplain, wording::kSquadDirect, score_qa_squad);
}

Score score_qa_squad(const nlohmann::json& gold, std::string_view output) {
  const auto references = gold.get<std::vector<std::string>>();
  return score_answer(output, [&](const std::string& answer) {
    double best = 0;
    for (const auto& reference : references) best = std::max(best, squad_f1(answer, reference));
    return best;
  });
}

}  // namespace lacuna
