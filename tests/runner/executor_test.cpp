// What the executor does when memory runs out: on a GPU, and on one rank of a team alone.
#include "runner/executor.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/error.h"
#include "sweeps/document.h"
#include "tests/runner/fake_engine.h"

namespace lacuna::testing {
namespace {

/// A team of two whose other rank reports what the test says.
class HalfATeam final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 2; }
  void all_reduce_sum(float*, std::size_t) override {}
  void all_gather(const void* send, void* receive, std::size_t bytes) override {
    auto* to = static_cast<char*>(receive);
    std::memcpy(to, send, bytes);
    std::memset(to + bytes, ++gathers_ == other_fails_at ? 1 : 0, bytes);
  }
  void broadcast(void*, std::size_t, int) override {}
  void barrier() override {}

  int other_fails_at = 0;  ///< Which all_gather says that the other rank failed; 0: none.

 private:
  int gathers_ = 0;
};

class ExecutorTest : public ::testing::Test {
 protected:
  void open(const std::string& path, Device device, int sharing = 1, std::int64_t memory = 0) {
    const std::vector<std::string> overrides = {"models.0.path=" + path};
    sweep_ = load_sweep("tests/runner/sweeps/fake.yaml", overrides);
    grid_ = expand(sweep_, {});
    RankFacts rank;
    rank.device = device;
    rank.sharing = sharing;
    rank.memory = memory;
    executor_ = std::make_unique<Executor>(sweep_, grid_, services_, rank, threads_);
  }
  JobOrder order() const {
    const JobGroup& group = grid_.groups.front();
    return {.load = group.load, .sample = 0, .cells = {group.cells.begin(), group.cells.end()}};
  }

  ModelServices services_ = fake_model_services();
  ThreadPool threads_{1};
  SelfCommunicator alone_;
  Sweep sweep_;
  Grid grid_;
  std::unique_ptr<Executor> executor_;
};

TEST_F(ExecutorTest, AJobOutOfDeviceMemoryFailsAndGivesTheDeviceBack) {
  for (const Device device : {Device::kCpu, Device::kCuda}) {
    open("/fake/throws", device);
    const JobOrder job = order();
    executor_->load(job.load, alone_);
    const auto records = executor_->run(job, 0, 0, [] { return false; });
    ASSERT_EQ(records.size(), job.cells.size());
    for (const auto& record : records) {
      EXPECT_EQ(record.status, schema::kFailed);
      EXPECT_EQ(record.answer_or_error, "out of device memory (fake)");
    }
    EXPECT_EQ(executor_->loaded(), device == Device::kCpu);
    executor_->load(job.load, alone_);
    EXPECT_TRUE(executor_->loaded());
    EXPECT_EQ(executor_->facts()["communicator"], "none");
  }
}

TEST_F(ExecutorTest, WhenTheOtherRankCannotLoadNoRankDoes) {
  for (const int gather : {1, 2}) {  // tokenizer, engine
    open("/fake/ok", Device::kCuda);
    HalfATeam team;
    team.other_fails_at = gather;
    try {
      executor_->load(0, team);
      ADD_FAILURE() << "the other rank failed";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kResource);
      EXPECT_NE(std::string(error.what()).find("rank 1 of the team cannot load one"), std::string::npos)
          << error.what();
    }
  }
}

TEST_F(ExecutorTest, RanksOnOneGpuAreToldTheirShareOfTheCache) {
  std::int64_t told = -1;
  services_.load_engine = [&told, load = services_.load_engine](const EngineOptions& options,
                                                                Communicator& team, ThreadPool& threads) {
    told = options.kv_bytes;
    return load(options, team, threads);
  };
  open("/fake/ok", Device::kCuda, 1, 101 << 20);
  executor_->load(0, alone_);
  EXPECT_EQ(told, 0) << "alone on its GPU: the engine takes what is there";
  open("/fake/ok", Device::kCuda, 2, 101 << 20);  // weights of 1 MiB (fake)
  executor_->load(0, alone_);
  EXPECT_EQ(told, 70 << 20);
  open("/fake/ok", Device::kCuda, 2, 1 << 20);
  EXPECT_THROW(executor_->load(0, alone_), Error);
}

}  // namespace
}  // namespace lacuna::testing
