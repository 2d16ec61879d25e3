#include "runner/launch.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <fstream>
#include <random>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/thread_pool.h"
#if LACUNA_HAS_CUDA
#include <cuda_runtime_api.h>
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

#if LACUNA_HAS_CUDA
int cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
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

RankFacts claim_device(const std::string& wanted, int local_rank, int local_ranks) {
  RankFacts facts;
  facts.host = host_name();
  facts.threads = std::max(1, default_threads() / local_ranks);
#if LACUNA_HAS_CUDA
  const int devices = wanted == "cpu" ? 0 : cuda_devices();
  LACUNA_REQUIRE(wanted != "cuda" || devices > 0, "device cuda is wanted, but {} has no usable GPU",
                 facts.host);
  if (devices > 0) {
    const int index = local_rank % devices;
    LACUNA_CUDA(cudaSetDevice(index));
    cudaDeviceProp properties{};
    LACUNA_CUDA(cudaGetDeviceProperties(&properties, index));
    std::size_t free = 0, total = 0;
    LACUNA_CUDA(cudaMemGetInfo(&free, &total));
    const int sharing = (local_ranks + devices - 1 - index % devices) / devices;
    facts.device = Device::kCuda;
    facts.device_name = properties.name;
    // A twentieth stays free for the libraries' own needs.
    facts.memory = static_cast<std::int64_t>(0.95 * static_cast<double>(free)) / std::max(1, sharing);
    return facts;
  }
#else
  LACUNA_REQUIRE(wanted != "cuda", "device cuda is wanted, but this program was built without CUDA");
  (void)local_rank;
#endif
  facts.device_name = fmt::format("{} threads", facts.threads);
  facts.memory = static_cast<std::int64_t>(0.9 * static_cast<double>(available_host_memory())) / local_ranks;
  return facts;
}

Json to_json(const RankFacts& f) {
  return {{"host", f.host},
          {"device", name_of(f.device)},
          {"device_name", f.device_name},
          {"memory", f.memory},
          {"threads", f.threads}};
}

RankFacts rank_facts_from(const Json& json) {
  RankFacts f;
  f.host = json_get<std::string>(json, "host", "rank");
  f.device_name = json_get<std::string>(json, "device_name", "rank");
  f.device = json_get<std::string>(json, "device", "rank") == "cuda" ? Device::kCuda : Device::kCpu;
  f.memory = json_get<std::int64_t>(json, "memory", "rank");
  f.threads = json_get<int>(json, "threads", "rank");
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
