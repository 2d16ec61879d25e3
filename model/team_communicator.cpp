#include "model/team_communicator.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "model/mpi.h"
#if LACUNA_HAS_CUDA
#include <cuda_runtime_api.h>
#endif
#if LACUNA_HAS_NCCL
#include "model/nccl_communicator.h"
#endif

namespace lacuna {

namespace {

#if LACUNA_HAS_CUDA
/// "host bus": what two ranks have in common when they share a GPU. Parts of one GPU (MIG) count as shared:
/// NCCL cannot join them either.
std::array<char, MPI_MAX_PROCESSOR_NAME + 32> own_gpu() {
  char host[MPI_MAX_PROCESSOR_NAME] = {};
  int length = 0, device = 0;
  LACUNA_MPI(MPI_Get_processor_name(host, &length));
  LACUNA_CUDA(cudaGetDevice(&device));
  char bus[31] = {};
  LACUNA_CUDA(cudaDeviceGetPCIBusId(bus, sizeof(bus), device));
  std::array<char, MPI_MAX_PROCESSOR_NAME + 32> text = {};
  fmt::format("{} {}", host, bus).copy(text.data(), text.size() - 1);
  return text;
}

bool ranks_share_gpus(Communicator& team) {
  const auto mine = own_gpu();
  std::vector<char> all(mine.size() * static_cast<std::size_t>(team.size()));
  team.all_gather(mine.data(), all.data(), mine.size());
  std::set<std::string> gpus;
  for (std::size_t r = 0; r < static_cast<std::size_t>(team.size()); ++r)
    gpus.insert(all.data() + r * mine.size());
  return static_cast<int>(gpus.size()) < team.size();
}
#endif

#if LACUNA_HAS_NCCL
/// Of each rank that shares a GPU. NCCL's manual: two ranks per GPU fit as they are; to have more, limit
/// them.
constexpr int kSharedGpuBlocks = 4;

NcclOptions nccl_options() {
  NcclOptions options;
  if (const char* text = std::getenv("LACUNA_NCCL_TIMEOUT")) {
    const std::string_view given = text;
    const auto [end, status] =
        std::from_chars(given.data(), given.data() + given.size(), options.timeout_seconds);
    LACUNA_REQUIRE(status == std::errc() && end == given.data() + given.size() &&
                       options.timeout_seconds > 0 && options.timeout_seconds < 1e6,
                   "LACUNA_NCCL_TIMEOUT='{}': expected seconds, for instance 120", given);
    options.meeting_seconds = options.timeout_seconds;
  }
  return options;
}
#endif

}  // namespace

std::unique_ptr<Communicator> make_team_communicator(MPI_Comm comm, Device device) {
  int ranks = 1;
  LACUNA_MPI(MPI_Comm_size(comm, &ranks));
  if (ranks == 1) return std::make_unique<SelfCommunicator>();
  auto host = std::make_unique<MpiCommunicator>(comm);
#if LACUNA_HAS_CUDA
  if (device == Device::kCuda) {
    const bool shared = ranks_share_gpus(*host);
#if LACUNA_HAS_NCCL
    if (!shared || nccl_joins_ranks_on_one_gpu()) {
      NcclOptions options = nccl_options();
      if (shared) options.max_blocks = kSharedGpuBlocks;
      return std::make_unique<NcclCommunicator>(comm, options);
    }
#endif
    if (host->rank() == 0)
      log::info("{}: the sums of this team of {} go through host memory",
                shared ? "ranks share a GPU" : "this build has no NCCL", ranks);
  }
#else
  (void)device;
#endif
  return host;
}

}  // namespace lacuna
