// results.h5, built from the journals. Layout: sweeps/results_schema.h and docs/results-format.md.
#pragma once

#include <string>
#include <vector>

#include "runner/run_folder.h"

namespace lacuna {

/// What is in the file beside the samples.
struct StoreContext {
  const Sweep* sweep = nullptr;
  const Grid* grid = nullptr;
  const RunState* state = nullptr;
  nlohmann::json launches = nlohmann::json::array();  ///< Contents of launches/*.json, oldest first.
};

/// Reads the launch files of folders; one that cannot be read is left out with a warning.
nlohmann::json read_launches(const FileSystem& files, const std::vector<std::string>& folders);

/// Writes a new file beside `path`, syncs it and renames it: at any moment `path` is whole. Throws kLibrary
/// (and removes the new file) when that fails.
void write_results(const StoreContext& context, const std::string& path);

/// XXH3-128 over /samples and /text without what may differ between runs (times, teams, memory): equal for
/// equal results.
std::string results_digest(const std::string& path);

}  // namespace lacuna
