// `lacuna run`: everything from the sweep file to results.h5.
#pragma once

#include <string>
#include <vector>

#include "runner/services.h"
#include "runner/transport.h"

namespace lacuna {

struct RunOptions {
  std::string sweep;                   ///< File; empty: the one that OUT was run with.
  std::vector<std::string> overrides;  ///< "key=value"
  std::string out;
  std::string device = "auto";       ///< auto (what the sweep's models ask for, else a GPU), cpu or cuda
  bool share_gpu = false;            ///< Several ranks may use one GPU.
  int shard = 0, shards = 1;         ///< Do the jobs of one shard of `shards`.
  std::string profile = {};          ///< Hardware profile: its file or name; empty: a guess.
  bool retry = false;                ///< Run again what failed.
  bool share_prefills = true;        ///< false: one cell per job, to measure what sharing saves.
  double results_seconds = 60;       ///< results.h5 is rebuilt this often (less often when that takes long).
  bool verbose = false;              ///< Progress tells what each team is at.
  double progress_seconds = 60;      ///< Between progress lines where there is no terminal.
  std::vector<std::string> command;  ///< As typed, for provenance.
};

inline constexpr int kExitDone = 0, kExitSomeFailed = 3, kExitInterrupted = 75;

/// Collective over the transport's ranks; the exit code is the same on all. Throws what ends a run.
int run_sweep(const RunOptions& options, const ModelServices& services, Transport& transport);

/// Runs with MPI when started by mpirun or srun, alone otherwise.
int run_sweep(const RunOptions& options, const ModelServices& services);

}  // namespace lacuna
