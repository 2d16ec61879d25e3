// What coordination costs: the coordinator's own processor time beside 256 teams that only pretend to work.
#include "runner/coordinator.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <numeric>
#include <queue>

#include "core/json.h"
#include "core/rng.h"
#include "tests/runner/harness.h"

namespace lacuna::testing {
namespace {

using Clock = std::chrono::steady_clock;

/// All ranks at once: answers each job of a team after a while, as a worker far away would.
class PretendedTeams final : public Endpoint {
 public:
  PretendedTeams(double shortest, double longest) : shortest_(shortest), longest_(longest) {}
  void send(int to, const Message& message) override {
    if (message.kind == Message::Kind::kForm && message.numbers[1] == to) team_of_[to] = message.numbers[0];
    if (message.kind == Message::Kind::kStop) ++stopped;
    if (message.kind != Message::Kind::kRun) return;
    ++jobs;
    const double seconds = shortest_ + (longest_ - shortest_) * rng_.uniform();
    const auto cells = static_cast<std::int32_t>(message.numbers.size() - 2);
    due_.push(
        {Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)),
         team_of_.at(to), cells});
  }
  std::optional<Message> poll() override {
    if (due_.empty() || due_.top().when > Clock::now()) return std::nullopt;
    const Due due = due_.top();
    due_.pop();
    return Message{.kind = Message::Kind::kDone, .numbers = {due.team, due.cells, 0}};
  }

  int jobs = 0, stopped = 0;

 private:
  struct Due {
    Clock::time_point when;
    int team = 0;
    std::int32_t cells = 0;
    bool operator<(const Due& other) const { return when > other.when; }
  };
  double shortest_, longest_;
  Rng rng_{1, stream_id("coordinator_test")};
  std::map<int, int> team_of_;
  std::priority_queue<Due> due_;
};

TEST(Coordinator, CostsUnderOnePercentOfACoreAt256Teams) {
  constexpr int kTeams = 256, kRounds = 3;
  const Scratch scratch;
  PlannedJobs jobs;
  jobs.models = {{1, 0}};
  std::vector<std::int32_t> samples(kTeams * kRounds), cells(31);
  std::iota(samples.begin(), samples.end(), 0);
  std::iota(cells.begin(), cells.end(), 0);
  jobs.groups = {{0, 1.0, 0, samples}};
  jobs.cells = {cells};
  PretendedTeams teams(0.5, 1.5);  // seconds per job; real ones of 7B models take longer
  JournalWriter failures(real_file_system(), scratch / "journal", "dropped.jsonl");
  LaunchFile launch(scratch / "launch.json", Json::object());
  Progress progress(static_cast<std::int64_t>(samples.size() * cells.size()), 0, 0);
  Coordinator coordinator(teams, Grid(), jobs, std::vector<Scheduler::Rank>(kTeams), failures, 0, launch,
                          progress);
  coordinator.run();
  launch.write();
  EXPECT_EQ(teams.jobs, kTeams * kRounds);
  EXPECT_EQ(teams.stopped, kTeams);
  const Json cost = read_json_file(scratch / "launch.json")["coordinator"];
  const double cpu = cost["cpu_seconds"].get<double>(), wall = cost["seconds"].get<double>();
  std::printf("%d jobs in %.2f s: %.4f s of processor time, %.2f %% of a core\n", teams.jobs, wall, cpu,
              100 * cpu / wall);
  EXPECT_GT(wall, 1.4);
  EXPECT_LT(cpu, 0.01 * wall);
}

}  // namespace
}  // namespace lacuna::testing
