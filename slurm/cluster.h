// What the cluster has and says: partitions and nodes (sinfo), jobs (scontrol, sacct), submission,
// cancelling.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "slurm/commands.h"

namespace lacuna::slurm {

/// Nodes of one partition that are alike.
struct NodeGroup {
  std::string partition;
  bool is_default = false, up = true;
  std::optional<long long> time_limit;  ///< Seconds; nothing: unlimited.
  int nodes = 0;
  int cpus = 0;                     ///< Per node.
  long long memory_mib = 0;         ///< Per node.
  std::map<std::string, int> gpus;  ///< Per node, by type; "" where the site gives no type.

  /// GPUs of `type` per node; of any type when empty.
  int gpu_count(const std::string& type) const;
};

/// `sinfo -h -o kSinfoFormat`, one line per group.
inline constexpr const char* kSinfoFormat = "%P|%a|%l|%D|%c|%m|%G";
std::vector<NodeGroup> parse_sinfo(const std::string& text);
/// "gpu:a100:4(S:0-1),gpu:2,nvme:1" -> {"a100": 4, "": 2}
std::map<std::string, int> parse_gres_gpus(const std::string& gres);

/// One job or array task as `scontrol -o show job` prints it: the fields of its line by name.
struct JobRecord {
  std::string id;  ///< "12", or "12_3" for an array task ("12_[2-7]" for tasks that still wait together).
  std::map<std::string, std::string> fields;
  const std::string& get(const std::string& name) const;
};
/// Values may hold blanks; a field is the first of its name, so that a path cannot pretend to be one.
std::vector<JobRecord> parse_scontrol_jobs(const std::string& text);

/// Slurm's own programs. Errors are kUsage (what the user asked is refused) or kLibrary (Slurm does not
/// answer), with Slurm's own words.
class Cluster {
 public:
  explicit Cluster(Commands& commands) : commands_(commands) {}

  /// False where there are no Slurm commands on this machine.
  bool available();
  std::vector<NodeGroup> nodes();
  /// `sbatch --test-only`: returns Slurm's estimate ("Job 12 to start at ..."); throws when Slurm would
  /// refuse it.
  std::string test(const std::string& script);
  /// Submits and returns the job id. `dependency`: "" or "afterany:12".
  std::string submit(const std::string& script, const std::string& dependency = "");
  /// Nothing when Slurm does not know the job (any more).
  std::vector<JobRecord> jobs(const std::string& id);
  /// From the accounting database, where there is one, for jobs that scontrol has forgotten.
  std::vector<JobRecord> finished_jobs(const std::string& id);
  /// Jobs of this user that wait or run and carry this name and comment: their ids, arrays as one.
  std::vector<std::string> find_jobs(const std::string& name, const std::string& comment);
  void cancel(const std::vector<std::string>& ids);

 private:
  Commands& commands_;
};

}  // namespace lacuna::slurm
