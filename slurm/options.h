// What a user can ask of the cluster: one table of settings, read from the command line and from the site
// file alike.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lacuna::slurm {

struct SlurmOptions {
  int nodes = 1;
  int gpus_per_node = 1;          ///< Ranks per node: one rank per GPU.
  int array = 1;                  ///< Independent jobs that share the sweep.
  std::string time = "24:00:00";  ///< As Slurm writes it.
  std::string partition, account, qos, constraint;
  std::string gpu_type;                  ///< Slurm's name ("a100"): --gres=gpu:TYPE:N. Empty: any.
  std::optional<double> gpu_memory_gib;  ///< Of one GPU; decides whether the study fits.
  int cpus_per_gpu = 0;                  ///< 0: the GPU's share of the node, at most 16.
  std::string memory;                    ///< Per node ("64G"); empty: the partition's default.
  std::string launcher = "mpirun";       ///< mpirun or srun
  std::string signal = "USR2";
  int signal_seconds = 120;  ///< Warning before the time limit.
  int max_stalls = 3;        ///< Starts in a row without a finished sample.
  std::vector<std::string> modules;
  std::vector<std::pair<std::string, std::string>> environment;
  std::string setup;                     ///< Shell file sourced before the run.
  std::string container;                 ///< Apptainer image that holds lacuna.
  std::vector<std::string> sbatch_args;  ///< Anything else, as "--name=value".

  int ranks() const { return nodes * gpus_per_node; }
};

/// One setting. On the command line `--name VALUE`, in the site file `name: VALUE`.
struct Setting {
  std::string name;
  std::string value;  ///< What the value is, for --help: "N", "TIME".
  std::string help;
  bool list =
      false;  ///< May be given several times; a list in the site file. The command line adds to the site's.
  /// Throws kUsage starting with `where`.
  void (*apply)(SlurmOptions& options, const std::string& value, const std::string& where);
};
std::span<const Setting> slurm_settings();

/// Applies a site file: a YAML map of settings. Unknown names and wrong values are errors with line and
/// column.
void apply_site_file(SlurmOptions& options, const std::string& path);
/// $LACUNA_SLURM_SITE, else $XDG_CONFIG_HOME/lacuna/slurm.yaml, else ~/.config/lacuna/slurm.yaml; need not
/// exist.
std::string default_site_file();

/// Seconds of a Slurm time: "30" (minutes), "1:30:00", "2-12", "2-12:30:00", "UNLIMITED" (nothing). Throws
/// kUsage.
std::optional<long long> parse_time(const std::string& text, const std::string& where);
/// 90061 -> "1-01:01:01"
std::string format_time(long long seconds);
/// GiB of one GPU by Slurm's type name (a100-40gb, a100, h100, h200, ...); the smaller where a name means
/// several.
std::optional<double> gpu_memory_by_type(const std::string& type);

}  // namespace lacuna::slurm
