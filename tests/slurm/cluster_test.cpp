#include "slurm/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/slurm/fake_commands.h"

namespace lacuna::slurm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ParseSinfo, ReadsShapesAndTheDefaultPartition) {
  const auto groups = parse_sinfo(
      "gpu*|up|1-00:00:00|4|32|256000|gpu:a100:4(S:0,1),nvme:1\n"
      "short|down|30:00|1|8|1024|(null)\n"
      "long|up|infinite|2|8+|1024+|gpu:2\n"
      "garbage\n\n");
  ASSERT_EQ(groups.size(), 3U);
  EXPECT_EQ(groups[0].partition, "gpu");
  EXPECT_TRUE(groups[0].is_default);
  EXPECT_EQ(groups[0].time_limit, 86400);
  EXPECT_EQ(groups[0].gpu_count("a100"), 4);
  EXPECT_EQ(groups[0].gpu_count("h100"), 0);
  EXPECT_EQ(groups[0].gpu_count(""), 4);
  EXPECT_FALSE(groups[1].up);
  EXPECT_EQ(groups[1].time_limit, 1800);
  EXPECT_EQ(groups[1].gpu_count(""), 0);
  EXPECT_EQ(groups[2].time_limit, std::nullopt);
  EXPECT_EQ(groups[2].cpus, 8);
  EXPECT_EQ(groups[2].gpu_count(""), 2);
}

TEST(ParseGres, KnowsTheFormsOfSites) {
  EXPECT_EQ(parse_gres_gpus("gpu:a100:4(S:0-1),gpu:v100:2(S:0,1)"),
            (std::map<std::string, int>{{"a100", 4}, {"v100", 2}}));
  EXPECT_EQ(parse_gres_gpus("nvme:1,gpu:8"), (std::map<std::string, int>{{"", 8}}));
  EXPECT_TRUE(parse_gres_gpus("(null)").empty());
  EXPECT_TRUE(parse_gres_gpus("").empty());
}

// A line as Slurm 22.05 prints it, with a folder whose name tries to look like a field.
constexpr const char* kJobLine =
    "JobId=12 JobName=lacuna-study UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 "
    "Account=(null) QOS=(null) JobState=PENDING Reason=BeginTime Dependency=(null) Requeue=1 Restarts=2 "
    "BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=00:05:00 Comment=lacuna:abc "
    "StartTime=2026-05-01T10:00:00 "
    "NodeList=(null) Command=/data/my study JobState=COMPLETED/slurm/run.sbatch WorkDir=/tmp/a b\n";

TEST(ParseScontrol, TakesTheFirstFieldOfAName) {
  const auto jobs = parse_scontrol_jobs(kJobLine);
  ASSERT_EQ(jobs.size(), 1U);
  EXPECT_EQ(jobs[0].id, "12");
  EXPECT_EQ(jobs[0].get("JobState"), "PENDING");
  EXPECT_EQ(jobs[0].get("Restarts"), "2");
  EXPECT_EQ(jobs[0].get("Comment"), "lacuna:abc");
  EXPECT_EQ(jobs[0].get("WorkDir"), "/tmp/a b");
  EXPECT_EQ(jobs[0].get("NoSuchField"), "");
}

TEST(ParseScontrol, NamesArrayTasks) {
  const auto jobs = parse_scontrol_jobs(
      "JobId=26 ArrayJobId=26 ArrayTaskId=3 JobName=x JobState=RUNNING\n"
      "JobId=27 ArrayJobId=26 ArrayTaskId=4-7%2 JobName=x JobState=PENDING\n");
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0].id, "26_3");
  EXPECT_EQ(jobs[1].id, "26_[4-7%2]");
}

TEST(Cluster, SubmitsAndReadsTheId) {
  FakeCommands commands([](const auto&) { return CommandResult{0, "123;alpha\n", ""}; });
  EXPECT_EQ(Cluster(commands).submit("/a b/run.sbatch", "afterany:7"), "123");
  EXPECT_THAT(commands.asked.at(0),
              ElementsAre("sbatch", "--parsable", "--dependency=afterany:7", "/a b/run.sbatch"));
}

TEST(Cluster, NeverTakesChatterForAnId) {
  FakeCommands commands([](const auto&) { return CommandResult{0, "Welcome to the cluster!\n", ""}; });
  EXPECT_THROW(Cluster(commands).submit("x"), Error);
}

TEST(Cluster, PassesOnSlurmsOwnWords) {
  FakeCommands commands([](const auto&) {
    return CommandResult{1, "",
                         "sbatch: error: Batch job submission failed: Invalid account or account/partition "
                         "combination specified\n"};
  });
  try {
    Cluster(commands).test("run.sbatch");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_THAT(e.what(), HasSubstr(": Invalid account or account/partition combination specified"));
  }
}

TEST(Cluster, TellsAForgottenJobFromASilentController) {
  FakeCommands forgotten([](const auto&) {
    return CommandResult{1, "", "slurm_load_jobs error: Invalid job id specified\n"};
  });
  EXPECT_TRUE(Cluster(forgotten).jobs("5").empty());
  FakeCommands silent([](const auto&) {
    return CommandResult{1, "", "slurm_load_jobs error: Unable to contact slurm controller\n"};
  });
  EXPECT_THROW(Cluster(silent).jobs("5"), Error);
}

TEST(Cluster, FindsOnlyJobsWithTheComment) {
  FakeCommands commands([](const auto&) {
    return CommandResult{0, "5|lacuna:aaa\n6|lacuna:bbb\n7|(null)\n5|lacuna:aaa\n", ""};
  });
  EXPECT_THAT(Cluster(commands).find_jobs("lacuna-x", "lacuna:aaa"), ElementsAre("5"));
}

TEST(Cluster, ReadsAccounting) {
  FakeCommands commands([](const auto&) {
    return CommandResult{0, "12|CANCELLED by 1000|0:15|node1\n", ""};
  });
  const auto jobs = Cluster(commands).finished_jobs("12");
  ASSERT_EQ(jobs.size(), 1U);
  EXPECT_EQ(jobs[0].get("JobState"), "CANCELLED");
  FakeCommands none([](const auto&) {
    return CommandResult{1, "", "Slurm accounting storage is disabled\n"};
  });
  EXPECT_TRUE(Cluster(none).finished_jobs("12").empty());
}

}  // namespace
}  // namespace lacuna::slurm
