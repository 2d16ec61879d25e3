#include "tasks/registry.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/text.h"

namespace lacuna {

namespace {

using MakeTask = std::unique_ptr<const Task> (*)(const Params&);

/// In the order of the paper. The two arrays below grow by one line per task.
constexpr std::array kMakers = {make_ruler_niah,      make_ruler_vt,        make_ruler_cwe,
                                make_story_retrieval, make_story_filtering, make_story_multihop};

const std::vector<TaskInfo>& infos() {
  static const std::vector<TaskInfo> list = {ruler_niah_info(),      ruler_vt_info(),
                                             ruler_cwe_info(),       story_retrieval_info(),
                                             story_filtering_info(), story_multihop_info()};
  return list;
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
  const auto at = &find_task(name, "make_task") - infos().data();
  return kMakers[static_cast<std::size_t>(at)](params);
}

}  // namespace lacuna
