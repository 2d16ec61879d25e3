#include "tasks/registry.h"

#include <algorithm>

#include "core/error.h"
#include "core/text.h"

namespace lacuna {

namespace {

struct Entry {
  TaskInfo info;
  std::unique_ptr<const Task> (*make)(const Params&);
  Score (*score)(const nlohmann::json& gold, std::string_view output);
};

/// One line per task, in the order of the paper.
const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = {
      {qa_squad_info(), make_qa_squad, score_qa_squad},
      {qa_quality_info(), make_qa_quality, score_qa_quality},
      {qa_toefl_info(), make_qa_toefl, score_qa_toefl},
      {ruler_niah_info(), make_ruler_niah, score_ruler_niah},
      {ruler_vt_info(), make_ruler_vt, score_ruler_vt},
      {ruler_cwe_info(), make_ruler_cwe, score_ruler_cwe},
      {story_retrieval_info(), make_story_retrieval, score_story_retrieval},
      {story_filtering_info(), make_story_filtering, score_story_filtering},
      {story_multihop_info(), make_story_multihop, score_story_multihop},
  };
  return list;
}

const std::vector<TaskInfo>& infos() {
  static const std::vector<TaskInfo> list = [] {
    std::vector<TaskInfo> copies;
    for (const auto& entry : entries()) copies.push_back(entry.info);
    return copies;
  }();
  return list;
}

const Entry& find_entry(const std::string& name) {
  return entries()[static_cast<std::size_t>(&find_task(name, "tasks") - infos().data())];
}

}  // namespace

std::string_view name_of(TaskGroup group) {
  switch (group) {
    case TaskGroup::kSingleQa:
      return "single QA";
    case TaskGroup::kMultipleQa:
      return "multiple QA";
    case TaskGroup::kHighScope:
      return "high scope";
    case TaskGroup::kHighDispersion:
      return "high dispersion";
  }
  return "unknown";
}

std::span<const TaskInfo> tasks() { return infos(); }

const TaskInfo& find_task(const std::string& name, const std::string& where) {
  const auto it = std::ranges::find(infos(), name, &TaskInfo::name);
  if (it != infos().end()) return *it;
  std::vector<std::string> names;
  for (const auto& info : infos()) names.push_back(info.name);
  throw_usage("{}: {}", where, unknown_name_message("task", name, names));
}

std::unique_ptr<const Task> make_task(const std::string& name, const Params& params) {
  return find_entry(name).make(params);
}

Score score_output(const std::string& name, const nlohmann::json& gold, std::string_view output,
                   const std::string& where) {
  const Entry& entry = find_entry(name);
  try {
    return entry.score(gold, output);
  } catch (const nlohmann::json::exception&) {
    throw_usage("{}: field 'gold' is not of the form that {} writes", where, name);
  }
}

}  // namespace lacuna
