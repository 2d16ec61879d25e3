// What each task file gives to the registry.
#pragma once

#include "tasks/task.h"

namespace lacuna {

TaskInfo qa_squad_info();
TaskInfo qa_quality_info();
TaskInfo qa_toefl_info();
TaskInfo ruler_niah_info();
TaskInfo ruler_vt_info();
TaskInfo ruler_cwe_info();
TaskInfo story_retrieval_info();
TaskInfo story_filtering_info();
TaskInfo story_multihop_info();

std::unique_ptr<const Task> make_qa_squad(const Params& params);
std::unique_ptr<const Task> make_qa_quality(const Params& params);
std::unique_ptr<const Task> make_qa_toefl(const Params& params);
std::unique_ptr<const Task> make_ruler_niah(const Params& params);
std::unique_ptr<const Task> make_ruler_vt(const Params& params);
std::unique_ptr<const Task> make_ruler_cwe(const Params& params);
std::unique_ptr<const Task> make_story_retrieval(const Params& params);
std::unique_ptr<const Task> make_story_filtering(const Params& params);
std::unique_ptr<const Task> make_story_multihop(const Params& params);

Score score_qa_squad(const nlohmann::json& gold, std::string_view output);
Score score_qa_quality(const nlohmann::json& gold, std::string_view output);
Score score_qa_toefl(const nlohmann::json& gold, std::string_view output);
Score score_ruler_niah(const nlohmann::json& gold, std::string_view output);
Score score_ruler_vt(const nlohmann::json& gold, std::string_view output);
Score score_ruler_cwe(const nlohmann::json& gold, std::string_view output);
Score score_story_retrieval(const nlohmann::json& gold, std::string_view output);
Score score_story_filtering(const nlohmann::json& gold, std::string_view output);
Score score_story_multihop(const nlohmann::json& gold, std::string_view output);

}  // namespace lacuna
