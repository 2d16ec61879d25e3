// Which program this is and what it was built with: for provenance and `lacuna doctor`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace lacuna {

/// The commit that was configured ("-dirty" when files had changed); "unknown" outside git.
std::string git_commit();
/// {"hdf5": "1.10.8", "mpi": "Open MPI v4.1.4, ...", "compiler": "GNU 12.2.0", ...}: libraries as loaded now.
nlohmann::json library_versions();

}  // namespace lacuna
