// One rank at work: waits for the coordinator, joins teams, runs jobs, keeps the journal.
#pragma once

#include <string>

#include "runner/executor.h"
#include "runner/journal.h"
#include "runner/transport.h"

namespace lacuna {

struct WorkerContext {
  Transport* transport = nullptr;
  const Sweep* sweep = nullptr;
  const Grid* grid = nullptr;
  const ModelServices* services = nullptr;
  FileSystem* files = nullptr;
  ThreadPool* threads = nullptr;
  RankFacts rank;       ///< What this rank runs on.
  std::string journal;  ///< Folder.
  std::string launch;   ///< Name of this launch: part of the journal's file names.
  int attempt = 0;
  nlohmann::json known_models;  ///< Facts of earlier launches by model name: what must not have changed.
};

/// Serves until the coordinator says stop. Throws what must end the run: a journal that cannot be written, a
/// broken library, a model that is not the one of earlier launches (kUsage).
void serve(const WorkerContext& context);

}  // namespace lacuna
