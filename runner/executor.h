// What one team does with a job: prompt, prefill, all decode variants, scores, records.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runner/launch.h"
#include "runner/sample_record.h"
#include "runner/services.h"
#include "sweeps/cells.h"
#include "tasks/task.h"

namespace lacuna {

/// One job as the coordinator hands it out.
struct JobOrder {
  int load = 0;  ///< Into Grid::loads.
  std::int32_t sample = 0;
  std::vector<std::int32_t> cells;  ///< Of one group; all that are still to be done for this sample.
};

/// Runs jobs on one rank of a team. Every rank of the team makes the same calls; records come out on rank 0
/// only.
class Executor {
 public:
  Executor(const Sweep& sweep, const Grid& grid, const ModelServices& services, const RankFacts& rank,
           ThreadPool& threads)
      : sweep_(sweep),
        grid_(grid),
        services_(services),
        rank_(rank),
        device_(rank.device),
        threads_(threads) {}

  /// Loads a model unless it is loaded on this communicator already. Collective. Throws on every rank alike.
  void load(int load, Communicator& communicator);
  /// Forgets the loaded model: before its communicator goes away.
  void unload();
  /// False too after a job ran out of device memory: what it held goes back before the next one.
  bool loaded() const { return engine_ != nullptr; }
  /// Facts of what is loaded, for provenance: rank 0's.
  nlohmann::json facts() const;

  /// One record per cell of the order. A sample that fails (no prompt, out of memory, NaN) gives failed
  /// records; only a broken library or invariant throws. `cancelled` is polled on every rank; true ends the
  /// job with no records.
  std::vector<SampleRecord> run(const JobOrder& order, int attempt, int team,
                                const std::function<bool()>& cancelled);

 private:
  std::unique_ptr<Engine> load_engine(const ModelLoad& wanted, const SweepModel& model,
                                      Communicator& communicator) const;
  struct Prompt {
    std::vector<TokenId> ids;
    nlohmann::json gold;
    std::string error;
  };
  Prompt make_prompt(const Cell& cell, std::int32_t sample);
  void share_prompt(Prompt& prompt) const;
  const Task& task_of(int task);
  SampleRecord blank(const JobOrder& order, std::size_t i, int attempt, int team, const Prompt& prompt) const;
  void fill(SampleRecord& record, const Cell& cell, const JobResult& job, const VariantResult& variant,
            const Prompt& prompt);

  const Sweep& sweep_;
  const Grid& grid_;
  const ModelServices& services_;
  const RankFacts rank_;
  Device device_;
  ThreadPool& threads_;
  int loaded_ = -1;
  Communicator* communicator_ = nullptr;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ChatFormat chat_ = ChatFormat::kNone;
  std::map<int, std::unique_ptr<const Task>> tasks_;
};

}  // namespace lacuna
