// Sums over GPUs by NCCL: exact, the same everywhere and every time, captured in graphs, and given up when a
// peer does not come. Run with one rank, two and four, with a GPU each; ranks on one GPU are an error that
// helps, or, with NCCL 2.30 or later and NCCL_MULTI_RANK_GPU_ENABLE=1, a team like any other.
#include "model/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"
#include "core/tensor.h"
#include "model/team_communicator.h"
#include "tests/model/gpu_team_main.h"

namespace lacuna {
namespace {

int world_size() {
  int size = 1;
  LACUNA_MPI(MPI_Comm_size(MPI_COMM_WORLD, &size));
  return size;
}
bool a_gpu_each() { return cuda_device_count() >= world_size(); }
bool can_join() { return a_gpu_each() || nccl_joins_ranks_on_one_gpu(); }
void barrier() { LACUNA_MPI(MPI_Barrier(MPI_COMM_WORLD)); }
double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

#define SKIP_UNLESS_RANKS_CAN_JOIN() \
  if (!can_join()) GTEST_SKIP() << world_size() << " ranks, " << cuda_device_count() << " GPUs"

/// bfloat16 values on the device.
struct Values {
  explicit Values(const std::vector<float>& from)
      : count(from.size()), device(2 * count, Buffer::Kind::kDevice) {
    set(from);
  }
  void set(const std::vector<float>& from) {
    std::vector<std::uint16_t> host(count);
    convert_from_float(from.data(), host.data(), DType::kBF16, count);
    LACUNA_CUDA(cudaMemcpy(device.data(), host.data(), 2 * count, cudaMemcpyHostToDevice));
  }
  std::vector<std::uint16_t> bits() const {
    std::vector<std::uint16_t> host(count);
    LACUNA_CUDA(cudaMemcpy(host.data(), device.data(), 2 * count, cudaMemcpyDeviceToHost));
    return host;
  }
  std::vector<float> floats() const {
    std::vector<float> out(count);
    convert_to_float(bits().data(), DType::kBF16, out.data(), count);
    return out;
  }
  std::size_t count;
  Buffer device;
};

/// What `body` puts into the stream, to be launched again and again.
struct Graph {
  Graph(cudaStream_t stream, const std::function<void()>& body) {
    cudaGraph_t graph = nullptr;
    LACUNA_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body();
    LACUNA_CUDA(cudaStreamEndCapture(stream, &graph));
    LACUNA_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    LACUNA_CUDA(cudaGraphDestroy(graph));
  }
  ~Graph() { (void)cudaGraphExecDestroy(executable); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream, NcclCommunicator& team) const {
    LACUNA_CUDA(cudaGraphLaunch(executable, stream));
    team.graph_launched(stream);
  }
  cudaGraphExec_t executable = nullptr;
};

std::vector<float> small_integers(std::size_t count, int rank) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>(static_cast<int>((i * 7 + static_cast<std::size_t>(rank) * 3) % 17) - 8);
  return values;
}

TEST(NcclCommunicator, SumsExactlyInGraphsAndOut) {
  SKIP_UNLESS_RANKS_CAN_JOIN();
  NcclCommunicator team(MPI_COMM_WORLD);
  EXPECT_TRUE(team.kind().starts_with("nccl 2.")) << team.kind();
  const CudaStream stream;
  for (const std::size_t count :
       {std::size_t{1}, std::size_t{3584}, std::size_t{100003}, std::size_t{7} << 20}) {
    SCOPED_TRACE(count);
    const std::vector<float> mine = small_integers(count, team.rank());
    std::vector<float> expected(count, 0.0f);
    for (int r = 0; r < team.size(); ++r) {
      const std::vector<float> theirs = small_integers(count, r);
      for (std::size_t i = 0; i < count; ++i) expected[i] += theirs[i];
    }
    Values values(mine);
    team.all_reduce_bf16(values.device.data(), count, stream);
    stream.synchronize();
    EXPECT_EQ(values.floats(), expected);

    const Graph graph(stream, [&] { team.all_reduce_bf16(values.device.data(), count, stream); });
    for (int replay = 0; replay < 3; ++replay) {
      values.set(mine);
      graph.launch(stream, team);
      stream.synchronize();
      EXPECT_EQ(values.floats(), expected) << "replay " << replay;
    }
  }
}

/// Multiples of 1/256 between -8 and 8, as bfloat16 holds them.
std::vector<float> random_values(std::size_t count, int rank) {
  std::vector<float> values(count);
  std::uint32_t x = 12345u + static_cast<std::uint32_t>(rank) * 7919u;
  for (float& value : values) {
    x = x * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int>(x >> 20) - 2048) / 256;
  }
  std::vector<std::uint16_t> bits(count);
  convert_from_float(values.data(), bits.data(), DType::kBF16, count);
  convert_to_float(bits.data(), DType::kBF16, values.data(), count);
  return values;
}

/// Lengths on both sides of where NCCL changes its protocol, and of a row of a model.
constexpr std::size_t kLengths[] = {1, 7, 896, 3584, 32768, 262144, 1 << 20};

/// Through host memory the sum is rounded once, around the ring once per rank after the first.
TEST(NcclCommunicator, SumsAreThoseOfMpiAsNearAsRoundingAllows) {
  SKIP_UNLESS_RANKS_CAN_JOIN();
  NcclCommunicator team(MPI_COMM_WORLD);
  MpiCommunicator mpi(MPI_COMM_WORLD);
  const CudaStream stream;
  for (const std::size_t count : kLengths) {
    SCOPED_TRACE(count);
    const std::vector<float> mine = random_values(count, team.rank());
    std::vector<float> exact = mine, sizes(count);
    for (std::size_t i = 0; i < count; ++i) sizes[i] = std::abs(mine[i]);
    mpi.all_reduce_sum(exact.data(), count);
    mpi.all_reduce_sum(sizes.data(), count);
    Values values(mine);
    team.all_reduce_bf16(values.device.data(), count, stream);
    stream.synchronize();
    if (team.size() <= 2) {  // one rounding here as well
      EXPECT_EQ(values.bits(), Values(exact).bits());
      continue;
    }
    const std::vector<float> sums = values.floats();
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i)
      wrong += !(std::abs(sums[i] - exact[i]) <= static_cast<float>(team.size()) / 256 * sizes[i]);
    EXPECT_EQ(wrong, 0u);
  }
}

TEST(NcclCommunicator, TheSameSumGivesTheSameBitsOnEveryRankEveryTimeInGraphsAndOut) {
  SKIP_UNLESS_RANKS_CAN_JOIN();
  std::vector<std::vector<std::uint16_t>> first;
  for (int round = 0; round < 2; ++round) {
    NcclCommunicator team(MPI_COMM_WORLD);
    const CudaStream stream;
    std::size_t at = 0;
    for (const std::size_t count : kLengths) {
      SCOPED_TRACE(count);
      const std::vector<float> mine = random_values(count, team.rank());
      Values values(mine);
      team.all_reduce_bf16(values.device.data(), count, stream);
      stream.synchronize();
      const std::vector<std::uint16_t> bits = values.bits();
      std::vector<std::uint16_t> of_first_rank = bits;
      team.broadcast(of_first_rank.data(), 2 * count, 0);
      EXPECT_EQ(bits, of_first_rank);
      const Graph graph(stream, [&] { team.all_reduce_bf16(values.device.data(), count, stream); });
      values.set(mine);
      graph.launch(stream, team);
      stream.synchronize();
      EXPECT_EQ(values.bits(), bits) << "captured";
      if (round == 0) first.push_back(bits);
      EXPECT_EQ(bits, first[at++]);
    }
  }
}

TEST(NcclCommunicator, HostCollectivesWorkBeside) {
  SKIP_UNLESS_RANKS_CAN_JOIN();
  NcclCommunicator team(MPI_COMM_WORLD);
  float value = static_cast<float>(team.rank() + 1);
  team.all_reduce_sum(&value, 1);
  EXPECT_EQ(value, static_cast<float>(team.size() * (team.size() + 1) / 2));
  std::vector<int> all(static_cast<std::size_t>(team.size()));
  const int mine = team.rank();
  team.all_gather(&mine, all.data(), sizeof(mine));
  EXPECT_EQ(all.back(), team.size() - 1);
  team.barrier();
}

TEST(NcclCommunicator, TwoRanksOnOneGpuAreToldWhatToDo) {
  if (can_join()) GTEST_SKIP() << "every rank has a GPU of its own, or may share one";
  try {
    NcclCommunicator team(MPI_COMM_WORLD, {.timeout_seconds = 30});
    ADD_FAILURE() << "ranks joined on one GPU, though nobody asked NCCL for that";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kLibrary);
    EXPECT_NE(std::string(error.what()).find("--share-gpu"), std::string::npos) << error.what();
  }
}

TEST(TeamCommunicator, TakesNcclWhereItCan) {
  const auto team = make_team_communicator(MPI_COMM_WORLD, Device::kCuda);
  const std::string expected = world_size() == 1 ? "none" : can_join() ? "nccl" : "mpi";
  EXPECT_EQ(team->kind().substr(0, expected.size()), expected) << team->kind();
  EXPECT_EQ(dynamic_cast<DeviceCommunicator*>(team.get()) != nullptr, expected == "nccl");
}

/// The device is kept busy by a callback in the stream, as a sum keeps it busy whose peer never comes.
TEST(NcclCommunicator, AStreamThatHangsIsGivenUpAndSaysSo) {
  SKIP_UNLESS_RANKS_CAN_JOIN();
  std::atomic<bool> release = false;
  {
    NcclCommunicator team(MPI_COMM_WORLD, {.timeout_seconds = 1.0});
    const CudaStream stream;
    Values values(std::vector<float>(64, 1.0f));
    LACUNA_CUDA(cudaLaunchHostFunc(
        stream,
        [](void* flag) {
          while (!static_cast<std::atomic<bool>*>(flag)->load())
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        },
        &release));
    team.all_reduce_bf16(values.device.data(), 64, stream);
    std::this_thread::sleep_for(std::chrono::milliseconds(1800));
    try {
      team.barrier();
      ADD_FAILURE() << "the hang was not noticed";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kLibrary);
      EXPECT_NE(std::string(error.what()).find("has not ended within 1 s"), std::string::npos)
          << error.what();
      EXPECT_NE(std::string(error.what()).find("rank "), std::string::npos) << error.what();
    }
    EXPECT_THROW(team.all_reduce_bf16(values.device.data(), 64, stream), Error);
    release = true;
    (void)cudaStreamSynchronize(stream);
  }
  barrier();
}

/// What NCCL does not compare. The sum that rank 0 captures is never launched.
TEST(NcclCommunicator, ASumThatOneRankAloneAsksForIsNoticed) {
  if (world_size() == 1) GTEST_SKIP() << "needs two ranks";
  SKIP_UNLESS_RANKS_CAN_JOIN();
  NcclCommunicator team(MPI_COMM_WORLD);
  const CudaStream stream;
  Values values(std::vector<float>(64, 1.0f));
  team.all_reduce_bf16(values.device.data(), 64, stream);
  stream.synchronize();
  team.barrier();
  std::unique_ptr<Graph> graph;
  if (team.rank() == 0)
    graph = std::make_unique<Graph>(stream, [&] { team.all_reduce_bf16(values.device.data(), 64, stream); });
  try {
    team.barrier();
    ADD_FAILURE() << "it was not noticed";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kLibrary);
    EXPECT_NE(std::string(error.what()).find("rank 0 asked for 2 sums, rank 1 for 1"), std::string::npos)
        << error.what();
  }
}

/// Teams that break. Every rank keeps its part to the end, and leaves as one leaves on whom an error unwinds:
/// without the others.
class NcclCommunicatorBreaks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (world_size() == 1) GTEST_SKIP() << "needs two ranks";
    SKIP_UNLESS_RANKS_CAN_JOIN();
    team = std::make_unique<NcclCommunicator>(MPI_COMM_WORLD, NcclOptions{.timeout_seconds = kSeconds});
    team->barrier();
  }
  void TearDown() override {
    barrier();
    const auto begin = std::chrono::steady_clock::now();
    try {
      const auto leaves = std::move(team);
      throw 0;
    } catch (int) {
    }
    EXPECT_LT(seconds_since(begin), 10);
    barrier();
  }
  /// A call that needs no peer.
  bool broken(cudaStream_t stream) {
    try {
      team->all_reduce_bf16(nullptr, 0, stream);
      return false;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kLibrary);
      message = error.what();
      return true;
    }
  }
  /// The stream holds a sum that cannot end. It ends all the same, when the watch thread aborts it.
  void expect_given_up(cudaStream_t stream) {
    const auto begin = std::chrono::steady_clock::now();
    (void)cudaStreamSynchronize(stream);
    const double waited = seconds_since(begin);
    EXPECT_GT(waited, 0.7 * kSeconds);
    EXPECT_LT(waited, kSeconds + 8);
    EXPECT_TRUE(broken(stream));
    EXPECT_NE(message.find("has not ended within 2 s"), std::string::npos) << message;
    EXPECT_NE(message.find("died or is stuck"), std::string::npos) << message;
    EXPECT_THROW(team->barrier(), Error);  // at once, with no peer
  }
  static constexpr double kSeconds = 2;
  std::unique_ptr<NcclCommunicator> team;
  std::string message;
};

TEST_F(NcclCommunicatorBreaks, ASumWhosePeerNeverComesIsAborted) {
  if (team->rank() != 0) return;
  const CudaStream stream;
  Values values(std::vector<float>(4096, 1.0f));
  team->all_reduce_bf16(values.device.data(), 4096, stream);
  expect_given_up(stream);
}

TEST_F(NcclCommunicatorBreaks, AGraphWhosePeerNeverComesIsAborted) {
  const CudaStream stream;
  Values values(std::vector<float>(4096, 1.0f));
  team->all_reduce_bf16(values.device.data(), 4096, stream);
  const Graph graph(stream, [&] { team->all_reduce_bf16(values.device.data(), 4096, stream); });
  graph.launch(stream, *team);
  stream.synchronize();
  team->barrier();
  if (team->rank() != 0) return;
  graph.launch(stream, *team);
  expect_given_up(stream);
}

/// A process that stands still while it holds its part of the team, as under a debugger or on a frozen host.
TEST_F(NcclCommunicatorBreaks, APeerThatStandsStillIsGivenUp) {
  const int mine = static_cast<int>(::getpid());
  std::vector<int> processes(static_cast<std::size_t>(world_size()));
  team->all_gather(&mine, processes.data(), sizeof(mine));
  if (team->rank() == 1) {
    ::raise(SIGSTOP);
    return;
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const CudaStream stream;
  Values values(std::vector<float>(1 << 18, 1.0f));
  team->all_reduce_bf16(values.device.data(), values.count, stream);
  expect_given_up(stream);
  // Other ranks may still wait for their own time to be over.
  std::this_thread::sleep_for(std::chrono::seconds(2));
  if (team->rank() == 0) ::kill(processes[1], SIGCONT);
}

/// NCCL adds what it gets. Either a rank waits for the rest and gives up, or nobody hangs and the comparison
/// finds it.
TEST_F(NcclCommunicatorBreaks, SumsOfDifferentLengthsSurface) {
  const CudaStream stream;
  const std::size_t count = team->rank() == 0 ? std::size_t{1} << 22 : 1024;
  Values values(std::vector<float>(count, 1.0f));
  team->all_reduce_bf16(values.device.data(), count, stream);
  (void)cudaStreamSynchronize(stream);
  barrier();  // of MPI: every rank's stream is empty now
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  int hung = broken(stream) ? 1 : 0;
  LACUNA_MPI(MPI_Allreduce(MPI_IN_PLACE, &hung, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD));
  if (hung == 0) {
    EXPECT_THROW(team->barrier(), Error);
  }
}

/// Run by killed_peer.sh: ends the process.
TEST(NcclCommunicatorKilled, NobodyWaitsForAPeerThatStandsStillInHostMemory) {
  if (std::getenv("LACUNA_TEST_STOPPED_PEER") == nullptr) GTEST_SKIP() << "killed_peer.sh runs it";
  NcclCommunicator team(MPI_COMM_WORLD, {.timeout_seconds = 0.3});
  team.barrier();
  if (team.rank() == 1) {
    ::raise(SIGSTOP);
    std::_Exit(0);
  }
  team.barrier();
  ADD_FAILURE() << "the barrier let this rank through";
}

/// Run by killed_peer.sh: mpirun must let the others live, and MPI cannot end in order afterwards.
TEST(NcclCommunicatorKilled, TheOthersGiveUp) {
  if (std::getenv("LACUNA_TEST_KILLED_PEER") == nullptr) GTEST_SKIP() << "killed_peer.sh runs it";
  const auto leave = [](const char* how) {
    std::printf("%s\n", how);
    std::fflush(stdout);
    std::_Exit(0);
  };
  if (world_size() == 1 || !can_join()) leave("skipped: the ranks need a GPU each, or NCCL 2.30");
  auto* team = new NcclCommunicator(MPI_COMM_WORLD, {.timeout_seconds = 2});
  const CudaStream stream;
  Values values(std::vector<float>(1 << 16, 1.0f));
  for (int i = 0; i < 3; ++i) team->all_reduce_bf16(values.device.data(), values.count, stream);
  stream.synchronize();
  team->barrier();
  if (team->rank() == 1) ::raise(SIGKILL);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const auto begin = std::chrono::steady_clock::now();
  try {
    team->all_reduce_bf16(values.device.data(), values.count, stream);
    (void)cudaStreamSynchronize(stream);
    team->all_reduce_bf16(values.device.data(), 0, stream);
    leave("FAILED: nobody noticed that a rank is gone");
  } catch (const Error& error) {
    std::printf("rank %d: %s\n", team->rank(), error.what());
  }
  leave(seconds_since(begin) < 10 ? "gave up in time" : "FAILED: gave up too late");
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) { return lacuna::testing::run_gpu_team_tests(argc, argv); }
