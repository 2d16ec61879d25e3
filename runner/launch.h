// One launch of the program into a run folder: its name, its lock, and the file that says what it ran on.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "model/engine.h"
#include "runner/run_folder.h"

namespace lacuna {

/// "20261123T220500-host-1234-9f3a": new for every launch on every machine.
std::string new_launch_name();
std::string host_name();

/// What one rank sees before it chooses: its host, and the GPUs it may use, each by its universal id.
struct RankSight {
  std::string host;
  std::vector<std::string> gpus;
};
/// Sees no GPU when `wanted` ("auto", "cpu" or "cuda") is cpu, or when this build cannot use one.
RankSight look_around(const std::string& wanted);
nlohmann::json to_json(const RankSight& sight);
RankSight rank_sight_from(const nlohmann::json& json);

/// Where one rank stands among those of its host.
struct DeviceChoice {
  int local_rank = 0, local_ranks = 1;
  int gpu = -1;     ///< Number by which this rank's CUDA knows it; -1: there is none.
  int gpus = 0;     ///< Different GPUs that the host's ranks see.
  int sharing = 1;  ///< Ranks of the host on the same GPU, this one included.
};
/// The same on every rank: in rank order, each takes the GPU it sees that the fewest ranks took before, the
/// lowest number first. So rank r takes GPU r where all see all, and its own where each sees one.
DeviceChoice choose_device(std::span<const RankSight> ranks, int rank);

/// What one rank runs on.
struct RankFacts {
  std::string host, device_name;
  Device device = Device::kCpu;
  std::int64_t memory = 0;  ///< Bytes that this rank's jobs may use.
  int threads = 1;
  int sharing = 1;     ///< Ranks on this GPU.
  std::string gpu;     ///< "0000:18:00.0, compute capability 9.0"; empty on the CPU.
  std::string driver;  ///< Of the GPU, "580.159.04"; empty where the system does not say.
};
/// Makes the rank's GPU current, before anything else uses CUDA. Throws kUsage when `wanted` cannot be had,
/// or when ranks would share a GPU without `share_gpu`.
RankFacts claim_device(const std::string& wanted, const DeviceChoice& choice, bool share_gpu);
/// For a process alone that plans for `local_ranks` ranks of its host: what rank `local_rank` would get.
RankFacts claim_device(const std::string& wanted, int local_rank, int local_ranks);
/// Most bytes of KV cache for a rank that shares its GPU (0, no limit of its own, for one that does not), so
/// that the ranks leave each other room. `weights`: bytes of this rank's shard. Throws kResource when not
/// even they fit into its share.
std::int64_t kv_share(const RankFacts& facts, std::int64_t weights);
nlohmann::json to_json(const RankFacts& facts);
RankFacts rank_facts_from(const nlohmann::json& json);

/// Keeps a second launch of the same shard out of a folder, until it ends in whatever way. A file system
/// without locks gives a warning.
class FolderLock {
 public:
  /// Throws kUsage naming who holds it.
  FolderLock(const RunPaths& paths, const std::string& shard, const std::string& launch);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

/// OUT/launches/<launch>.json, written anew whenever something is learnt.
class LaunchFile {
 public:
  LaunchFile(std::string path, nlohmann::json start) : path_(std::move(path)), content_(std::move(start)) {}
  void set(const std::string& key, nlohmann::json value);
  /// A model as it was loaded.
  void add_model(const nlohmann::json& facts);
  void write() const;

 private:
  std::string path_;
  nlohmann::json content_;
};

}  // namespace lacuna
