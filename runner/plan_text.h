// What `lacuna plan` says of a sweep before anything runs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runner/preflight.h"
#include "runner/simulate.h"

namespace lacuna {

/// Counts and estimates of some of a sweep's jobs.
struct PlanPart {
  std::string name;
  std::int64_t cells = 0, samples = 0, jobs = 0;
  double rank_seconds = 0, flops = 0, bytes = 0;
};

struct MemoryLine {
  std::string model;
  std::int64_t length = 0;
  int tp = 1, cells = 0;  ///< Cells of the largest job.
  MemoryPlan plan;        ///< Per rank, of that job.
  bool fits = true;
};

struct PlanReport {
  Sweep sweep;
  Hardware hardware;
  PlanPart total;
  std::vector<PlanPart> models, lengths;
  std::int64_t prefills_alone = 0;  ///< One per sample: what running every cell by itself needs.
  std::int64_t most_shared = 0;     ///< Cells of the job that shares most.
  std::string most_shared_by;       ///< Its prefill method.
  std::vector<MemoryLine> memory;
  std::vector<std::pair<std::string, int>> problems;  ///< Reason and cells.
  std::vector<std::string> notes;
  std::optional<Simulation> simulation;
  double plan_seconds = 0;
  double answer_tokens = 0;  ///< As in PlanOptions.
};

struct PlanOptions {
  bool simulate = false;
  int gpus_per_node = 8;
  bool share_prefills = true;
  double answer_tokens = 0;  ///< Length of an answer in estimates of time; 0: max_new_tokens.
};

PlanReport make_plan(const Sweep& sweep, const Hardware& hardware, const ModelServices& services,
                     const PlanOptions& options);
std::string to_text(const PlanReport& report);
nlohmann::json to_json(const PlanReport& report);

}  // namespace lacuna
