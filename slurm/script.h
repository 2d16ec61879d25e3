// The batch scripts that `lacuna sbatch` writes: directives and settings at the top, then the body in
// slurm/templates.
#pragma once

#include <string>
#include <vector>

#include "slurm/options.h"

namespace lacuna::slurm {

/// What is run and where it lies. All paths absolute.
struct Study {
  std::string program;  ///< lacuna, as the compute nodes see it.
  std::string sweep;
  std::string out;
  std::vector<std::string> overrides;  ///< key=value, as given on the command line.
  std::string working_folder;          ///< Relative paths in the sweep start here.

  std::string folder() const { return out + "/slurm"; }
  std::string run_script() const { return folder() + "/run.sbatch"; }
  std::string merge_script() const { return folder() + "/merge.sbatch"; }
  std::string rank_script() const { return folder() + "/rank.sh"; }
  /// "lacuna-study", from the last part of `out`; letters that Slurm's tools could misread become '-'.
  std::string job_name() const;
  /// "lacuna:0123456789abcdef", from the whole path: tells this folder's jobs from all others.
  std::string comment() const;
};

/// Throws kUsage for paths that no batch script can hold (line breaks, backslashes).
std::string run_script_text(const Study& study, const SlurmOptions& options);
/// The job after an array: merges and analyses on one core, without GPUs.
std::string merge_script_text(const Study& study, const SlurmOptions& options);
std::string rank_script_text();

/// One word of bash, whatever is in it.
std::string shell_quote(const std::string& text);

}  // namespace lacuna::slurm
