// One launch of the program into a run folder: its name, its lock, and the file that says what it ran on.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "model/engine.h"
#include "runner/run_folder.h"

namespace lacuna {

/// "20261123T220500-host-1234-9f3a": new for every launch on every machine.
std::string new_launch_name();
std::string host_name();

/// What one rank runs on; also chooses its device (rank r of a host takes GPU r modulo the number there).
struct RankFacts {
  std::string host, device_name;
  Device device = Device::kCpu;
  std::int64_t memory = 0;  ///< Bytes that this rank's jobs may use.
  int threads = 1;
};
/// `local_rank` of `local_ranks` on this host. `wanted`: "auto", "cpu" or "cuda"; throws kUsage when there is
/// no such device.
RankFacts claim_device(const std::string& wanted, int local_rank, int local_ranks);
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
