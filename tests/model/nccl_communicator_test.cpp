// Sums over GPUs by NCCL: exact, the same everywhere and every time, captured in graphs, and given up when a
// peer does not come. Run with one rank and with two; two ranks on one GPU are an error that helps.
#include "model/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <numeric>
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

std::vector<float> small_integers(std::size_t count, int rank) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = static_cast<float>(static_cast<int>((i * 7 + static_cast<std::size_t>(rank) * 3) % 17) - 8);
  return values;
}

TEST(NcclCommunicator, SumsExactlyInGraphsAndOut) {
  if (!a_gpu_each()) GTEST_SKIP() << world_size() << " ranks, " << cuda_device_count() << " GPUs";
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

    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    LACUNA_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    team.all_reduce_bf16(values.device.data(), count, stream);
    LACUNA_CUDA(cudaStreamEndCapture(stream, &graph));
    LACUNA_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int replay = 0; replay < 3; ++replay) {
      values.set(mine);
      LACUNA_CUDA(cudaGraphLaunch(executable, stream));
      team.graph_launched(stream);
      stream.synchronize();
      EXPECT_EQ(values.floats(), expected) << "replay " << replay;
    }
    LACUNA_CUDA(cudaGraphExecDestroy(executable));
    LACUNA_CUDA(cudaGraphDestroy(graph));
  }
}

TEST(NcclCommunicator, TheSameSumGivesTheSameBitsOnEveryRankEveryTime) {
  if (!a_gpu_each()) GTEST_SKIP() << world_size() << " ranks, " << cuda_device_count() << " GPUs";
  constexpr std::size_t kCount = 1 << 20;
  std::vector<float> mine(kCount);
  std::uint32_t state = 12345u + static_cast<std::uint32_t>(world_size());
  std::vector<std::uint16_t> first;
  for (int round = 0; round < 2; ++round) {
    NcclCommunicator team(MPI_COMM_WORLD);
    std::uint32_t x = state + static_cast<std::uint32_t>(team.rank()) * 7919u;
    for (float& value : mine) {
      x = x * 1664525u + 1013904223u;
      value = static_cast<float>(x >> 8) * 0x1p-20f - 8.0f;
    }
    const CudaStream stream;
    Values values(mine);
    team.all_reduce_bf16(values.device.data(), kCount, stream);
    stream.synchronize();
    std::vector<std::uint16_t> bits = values.bits(), of_first_rank = bits;
    team.broadcast(of_first_rank.data(), 2 * kCount, 0);
    EXPECT_EQ(bits, of_first_rank);
    if (round == 1) {
      EXPECT_EQ(bits, first);
    }
    first = std::move(bits);
  }
}

TEST(NcclCommunicator, HostCollectivesWorkBeside) {
  if (!a_gpu_each()) GTEST_SKIP() << world_size() << " ranks, " << cuda_device_count() << " GPUs";
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
  if (a_gpu_each()) GTEST_SKIP() << "every rank has a GPU of its own";
  try {
    NcclCommunicator team(MPI_COMM_WORLD, {.timeout_seconds = 30});
    // NCCL 2.30 and later may allow it.
    const CudaStream stream;
    Values values(std::vector<float>(64, 1.0f));
    team.all_reduce_bf16(values.device.data(), 64, stream);
    stream.synchronize();
    EXPECT_EQ(values.floats(), std::vector<float>(64, static_cast<float>(team.size())));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kLibrary);
    EXPECT_NE(std::string(error.what()).find("--share-gpu"), std::string::npos) << error.what();
  }
}

TEST(TeamCommunicator, StagesThroughTheHostWhereRanksShareAGpu) {
  const auto team = make_team_communicator(MPI_COMM_WORLD, Device::kCuda);
  if (world_size() > 1 && !a_gpu_each() && std::getenv("NCCL_MULTI_RANK_GPU_ENABLE") != nullptr)
    GTEST_SKIP() << "NCCL was told to share GPUs";
  const std::string expected = world_size() == 1 ? "none" : a_gpu_each() ? "nccl" : "mpi";
  EXPECT_EQ(team->kind().substr(0, expected.size()), expected) << team->kind();
}

/// The device is kept busy by a callback in the stream, as a sum keeps it busy whose peer never comes.
TEST(NcclCommunicator, AStreamThatHangsIsGivenUpAndSaysSo) {
  if (!a_gpu_each()) GTEST_SKIP() << world_size() << " ranks, " << cuda_device_count() << " GPUs";
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
  LACUNA_MPI(MPI_Barrier(MPI_COMM_WORLD));
}

/// Last: it leaves a broken team behind.
TEST(NcclCommunicatorLast, ASumWhosePeerNeverComesIsAborted) {
  if (world_size() == 1 || !a_gpu_each()) GTEST_SKIP() << "needs two ranks with a GPU each";
  // Leaked: leaving a team in order needs all of it.
  auto* team = new NcclCommunicator(MPI_COMM_WORLD, {.timeout_seconds = 2.0});
  if (team->rank() != 0) {
    std::this_thread::sleep_for(std::chrono::seconds(5));
    return;
  }
  const CudaStream stream;
  Values values(std::vector<float>(4096, 1.0f));
  const auto begin = std::chrono::steady_clock::now();
  team->all_reduce_bf16(values.device.data(), 4096, stream);
  (void)cudaStreamSynchronize(stream);  // ends when the watch thread aborts
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  EXPECT_GT(seconds, 1.5);
  EXPECT_LT(seconds, 20.0);
  EXPECT_THROW(team->barrier(), Error);
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) { return lacuna::testing::run_gpu_team_tests(argc, argv); }
