#include "runner/launch.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <map>
#include <random>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/text.h"
#include "core/thread_pool.h"
#if LACUNA_HAS_CUDA_ENGINE
#include <cuda_runtime_api.h>

#include "core/cuda.h"
#endif

namespace lacuna {

namespace {

/// Memory that this host can still give: MemAvailable, or what the cgroup leaves.
std::int64_t available_host_memory() {
  std::int64_t bytes = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    if (line.starts_with("MemAvailable:")) bytes = std::strtoll(line.c_str() + 13, nullptr, 10) * 1024;
  }
  const auto read_number = [](const char* path) {
    std::ifstream file(path);
    std::int64_t value = -1;
    return file >> value ? value : std::int64_t{-1};
  };
  const std::int64_t limit = read_number("/sys/fs/cgroup/memory.max"),
                     used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) bytes = bytes > 0 ? std::min(bytes, limit - used) : limit - used;
  return bytes;
}

#if LACUNA_HAS_CUDA_ENGINE
/// The kernel module's version, as the driver tells it.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  if (!std::getline(file, line)) return {};
  // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  ..."
  for (const std::string& word : split(line, ' ')) {
    if (!word.empty() && std::isdigit(static_cast<unsigned char>(word[0])) != 0 &&
        word.find('.') != std::string::npos)
      return word;
  }
  return {};
}

RankFacts claim_gpu(const DeviceChoice& choice, RankFacts facts) {
  LACUNA_CUDA(cudaSetDevice(choice.gpu));
  cudaDeviceProp properties{};
  LACUNA_CUDA(cudaGetDeviceProperties(&properties, choice.gpu));
  char bus[32] = {};
  LACUNA_CUDA(cudaDeviceGetPCIBusId(bus, sizeof(bus), choice.gpu));
  std::size_t free = 0, total = 0;
  LACUNA_CUDA(cudaMemGetInfo(&free, &total));
  facts.device = Device::kCuda;
  facts.device_name = properties.name;
  facts.gpu = fmt::format("{}, compute capability {}.{}", bus, properties.major, properties.minor);
  facts.driver = driver_version();
  facts.sharing = choice.sharing;
  // A twentieth stays free for the libraries' own needs.
  facts.memory = static_cast<std::int64_t>(0.95 * static_cast<double>(free)) / choice.sharing;
  return facts;
}
#endif

}  // namespace

std::string host_name() {
  char host[256] = "unknown";
  (void)gethostname(host, sizeof(host) - 1);
  return host;
}

std::string new_launch_name() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  gmtime_r(&now, &utc);
  char stamp[32];
  const std::size_t length = std::strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%S", &utc);
  std::string host = host_name().substr(0, 24);
  for (char& c : host) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  std::random_device random;  // names only; nothing measured depends on it
  return fmt::format("{}-{}-{}-{:04x}", std::string(stamp, length), host, ::getpid(), random() & 0xffffU);
}

RankSight look_around(const std::string& wanted) {
  RankSight sight{.host = host_name(), .gpus = {}};
#if LACUNA_HAS_CUDA_ENGINE
  if (wanted == "cpu" || !cuda_engine_usable()) return sight;
  for (int i = 0; i < cuda_device_count(); ++i) {
    // Never throws: other ranks wait to hear what this one sees.
    cudaDeviceProp properties{};
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, i); status != cudaSuccess) {
      (void)cudaGetLastError();
      log::warning("GPU {} cannot be used: {}", i, cudaGetErrorString(status));
      sight.gpus.clear();
      break;
    }
    std::string id;
    for (const char byte : properties.uuid.bytes)
      id += fmt::format("{:02x}", static_cast<unsigned char>(byte));
    sight.gpus.push_back(std::move(id));
  }
#else
  (void)wanted;
#endif
  return sight;
}

Json to_json(const RankSight& sight) { return {{"host", sight.host}, {"gpus", sight.gpus}}; }

RankSight rank_sight_from(const Json& json) {
  return {.host = json_get<std::string>(json, "host", "rank"),
          .gpus = json_get<std::vector<std::string>>(json, "gpus", "rank")};
}

DeviceChoice choose_device(std::span<const RankSight> ranks, int rank) {
  const RankSight& own = ranks[static_cast<std::size_t>(rank)];
  std::map<std::string, int> taken;
  std::string mine;
  DeviceChoice choice;
  choice.local_ranks = 0;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (ranks[r].host != own.host) continue;
    const bool is_own = static_cast<int>(r) == rank;
    if (is_own) choice.local_rank = choice.local_ranks;
    ++choice.local_ranks;
    int best = -1;
    for (std::size_t g = 0; g < ranks[r].gpus.size(); ++g) {
      const int users = taken.try_emplace(ranks[r].gpus[g], 0).first->second;
      if (best < 0 || users < taken[ranks[r].gpus[static_cast<std::size_t>(best)]])
        best = static_cast<int>(g);
    }
    if (best < 0) continue;
    const std::string& gpu = ranks[r].gpus[static_cast<std::size_t>(best)];
    ++taken[gpu];
    if (is_own) {
      choice.gpu = best;
      mine = gpu;
    }
  }
  choice.gpus = static_cast<int>(taken.size());
  if (choice.gpu >= 0) choice.sharing = taken[mine];
  return choice;
}

RankFacts claim_device(const std::string& wanted, const DeviceChoice& choice, bool share_gpu) {
  RankFacts facts;
  facts.host = host_name();
  facts.threads = std::max(1, default_threads() / choice.local_ranks);
#if LACUNA_HAS_CUDA_ENGINE
  LACUNA_REQUIRE(wanted != "cuda" || choice.gpu >= 0, "device cuda is wanted, but {} has no usable GPU",
                 facts.host);
  if (wanted != "cpu" && choice.gpu >= 0) {
    LACUNA_REQUIRE(choice.sharing == 1 || share_gpu,
                   "{} ranks on {}, but {} GPU{} for them: start one rank per GPU (there at most {}), or let "
                   "ranks share a GPU with --share-gpu; --device cpu runs without GPUs",
                   choice.local_ranks, facts.host, choice.gpus, choice.gpus == 1 ? "" : "s", choice.gpus);
    return claim_gpu(choice, std::move(facts));
  }
#else
  LACUNA_REQUIRE(wanted != "cuda",
                 "device cuda is wanted, but this program was built without the CUDA engine");
  (void)share_gpu;
#endif
  facts.device_name = fmt::format("{} threads", facts.threads);
  facts.memory =
      static_cast<std::int64_t>(0.9 * static_cast<double>(available_host_memory())) / choice.local_ranks;
  return facts;
}

RankFacts claim_device(const std::string& wanted, int local_rank, int local_ranks) {
  const std::vector<RankSight> ranks(static_cast<std::size_t>(local_ranks), look_around(wanted));
  return claim_device(wanted, choose_device(ranks, local_rank), true);
}

std::int64_t kv_share(const RankFacts& facts, std::int64_t weights) {
  if (facts.device == Device::kCpu || facts.sharing == 1) return 0;
  const std::int64_t left = facts.memory - weights;
  if (left <= 0)
    throw_resource("the weights of a rank are {}, but its share of a GPU used by {} ranks is {}",
                   format_bytes(static_cast<double>(weights)), facts.sharing,
                   format_bytes(static_cast<double>(facts.memory)));
  // The rest is for activations and workspace.
  return std::max<std::int64_t>(1, left / 10 * 7);
}

Json to_json(const RankFacts& f) {
  Json json = {{"host", f.host},     {"device", name_of(f.device)}, {"device_name", f.device_name},
               {"memory", f.memory}, {"threads", f.threads},        {"sharing", f.sharing}};
  if (!f.gpu.empty()) json["gpu"] = f.gpu;
  if (!f.driver.empty()) json["driver"] = f.driver;
  return json;
}

RankFacts rank_facts_from(const Json& json) {
  RankFacts f;
  f.host = json_get<std::string>(json, "host", "rank");
  f.device_name = json_get<std::string>(json, "device_name", "rank");
  f.device = json_get<std::string>(json, "device", "rank") == "cuda" ? Device::kCuda : Device::kCpu;
  f.memory = json_get<std::int64_t>(json, "memory", "rank");
  f.threads = json_get<int>(json, "threads", "rank");
  f.sharing = json_get_or<int>(json, "sharing", 1, "rank");
  f.gpu = json_get_or<std::string>(json, "gpu", "", "rank");
  f.driver = json_get_or<std::string>(json, "driver", "", "rank");
  return f;
}

FolderLock::FolderLock(const RunPaths& paths, const std::string& shard, const std::string& launch) {
  const std::string path = paths.out + "/lock" + (shard.empty() ? "" : "-" + shard);
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd_ < 0) throw_library("{}: cannot create: {}", path, std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int why = errno;
    if (why == EWOULDBLOCK) {
      char holder[256] = {};
      const auto got = ::read(fd_, holder, sizeof(holder) - 1);
      ::close(fd_);
      fd_ = -1;
      throw_usage(
          "{}: another run is writing into this folder ({}); wait for it, or use another --out or --shard",
          paths.out, got > 0 ? holder : "unknown");
    }
    log::warning(
        "{}: this file system has no locks ({}); make sure that no other run writes into this folder", path,
        std::strerror(why));
    return;
  }
  if (::ftruncate(fd_, 0) != 0 || ::write(fd_, launch.data(), launch.size()) < 0) {
    log::debug("{}: the lock is held but cannot be signed", path);
  }
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

void LaunchFile::set(const std::string& key, Json value) { content_[key] = std::move(value); }

void LaunchFile::add_model(const Json& facts) {
  const std::string name = facts.at("name").get<std::string>();
  content_["models"][name] = facts;
  // The same model under several RoPE settings: each is kept.
  content_["loads"].push_back(
      {{"model", name}, {"rope", facts.value("rope", "")}, {"tp", facts.value("tp", 1)}});
}

void LaunchFile::write() const { write_file_atomically(path_, content_.dump(1)); }

}  // namespace lacuna
