// SIGKILL at random moments, again and again: nothing acknowledged is lost, nothing is run twice, results.h5
// always opens.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "core/hdf5.h"
#include "core/rng.h"
#include "runner/journal.h"
#include "tests/runner/harness.h"

namespace lacuna::testing {
namespace {

const std::string kFake = FAKE_LACUNA;

Words fake_run(const std::string& out) {
  return {kFake,  "run",       "tests/runner/sweeps/fake.yaml", "--out", out, "--results-every",
          "0.05", "samples=20"};
}

std::set<std::pair<std::uint64_t, std::int32_t>> acknowledged(const std::string& out) {
  std::set<std::pair<std::uint64_t, std::int32_t>> done;
  JournalReader reader(real_file_system(), out + "/journal");
  reader.poll([&](const RecordHead& head, std::string_view, const LineRef&) {
    EXPECT_TRUE(done.emplace(head.cell, head.sample).second) << "run twice: sample " << head.sample;
  });
  EXPECT_EQ(reader.issue_count(), 0U) << "only a torn last line may be left behind";
  return done;
}

void kill_until_done(int kills, bool with_mpi, std::uint64_t seed) {
  const Scratch scratch;
  const std::string out = scratch / "out", whole = scratch / "whole";
  ASSERT_EQ(run(fake_run(whole)).code, 0);
  Rng rng(seed, stream_id("crash_test"));
  std::set<std::pair<std::uint64_t, std::int32_t>> before;
  for (int k = 0; k < kills; ++k) {
    const int ranks = with_mpi ? 1 + static_cast<int>(rng.below(4)) : 0;
    Child child(launch(ranks, fake_run(out)), {{"LACUNA_FAKE_MS", "8"}});
    // From before the first sample to well into the run.
    ::usleep(
        static_cast<useconds_t>((with_mpi ? 250'000 : 10'000) + rng.below(with_mpi ? 500'000 : 150'000)));
    const auto pids = ranks_of(out);
    switch (with_mpi ? k % 3 : 0) {
      case 0:
        child.signal(SIGKILL);
        for (const auto& [rank, pid] : pids) ::kill(pid, SIGKILL);
        break;
      case 1:
        if (!pids.empty()) ::kill(pids.begin()->second, SIGKILL);  // rank 0: the coordinator
        break;
      default:
        if (!pids.empty()) ::kill(pids.rbegin()->second, SIGKILL);
    }
    child.wait();
    for (int tries = 0; tries < 500 && !ranks_of(out).empty(); ++tries) ::usleep(10'000);
    ASSERT_TRUE(ranks_of(out).empty()) << "a rank outlived its job";
    if (std::filesystem::exists(out + "/results.h5")) {
      const auto file = hdf5::File::open(out + "/results.h5");
      EXPECT_EQ(file.read_int_attribute("/", schema::kAttrSchemaVersion), schema::kSchemaVersion);
      rows(out);
    }
    if (!std::filesystem::exists(out + "/journal")) continue;
    const auto now = acknowledged(out);
    for (const auto& sample : before) ASSERT_TRUE(now.contains(sample)) << "lost";
    before = now;
  }
  ASSERT_EQ(run(fake_run(out)).code, 0);
  EXPECT_EQ(acknowledged(out).size(), 480U);
  EXPECT_EQ(rows(out), 480);
  EXPECT_EQ(digest(out), digest(whole));
}

TEST(Crash, TheProgramAlone) { kill_until_done(12, false, 1); }
TEST(CrashMpi, JobRankAndCoordinatorAtThirtyMoments) { kill_until_done(30, true, 2); }

}  // namespace
}  // namespace lacuna::testing
