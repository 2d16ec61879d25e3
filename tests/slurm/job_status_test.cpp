#include "slurm/job_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "slurm/submission.h"
#include "tests/slurm/fake_commands.h"

namespace lacuna::slurm {
namespace {

using testing::HasSubstr;

class JobStatusTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/lacuna-job-status";
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_ + "/slurm/state");
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(dir_ + "/slurm/" + name) << text;
  }
  void submitted(const std::string& entries) {
    write("jobs.json", "{\"version\": 1, \"jobs\": [" + entries + "]}");
  }
  static std::string entry(const std::string& id, const std::string& kind) {
    return "{\"id\": \"" + id + "\", \"kind\": \"" + kind + "\", \"name\": \"n\", \"comment\": \"c\"}";
  }
  static CommandResult job(const std::string& rest) {
    return {0, "JobId=" + rest + " JobName=n Comment=c\n", ""};
  }

  std::string dir_;
};

TEST_F(JobStatusTest, NothingForFoldersThatNeverMetSlurm) {
  FakeCommands commands([](const auto&) { return CommandResult{}; });
  EXPECT_TRUE(job_statuses(dir_, commands).empty());
  EXPECT_TRUE(commands.asked.empty());
  EXPECT_EQ(format_job_statuses({}), "");
}

TEST_F(JobStatusTest, SaysStateRestartsAndTheLastWord) {
  submitted(entry("12", "run"));
  write("state/12.note", "2026-05-01 12:00:00 work is left: back in the queue\n");
  FakeCommands commands([](const auto&) {
    return job("12 JobState=PENDING Reason=BeginTime Restarts=2 ExitCode=0:0 StartTime=Unknown");
  });
  const auto jobs = job_statuses(dir_, commands);
  ASSERT_EQ(jobs.size(), 1U);
  EXPECT_EQ(jobs[0].restarts, 2);
  EXPECT_EQ(format_job_statuses(jobs),
            "Slurm job 12: queued (BeginTime), requeued 2 times; last: 2026-05-01 12:00:00 work is left: "
            "back in the queue\n");
  EXPECT_EQ(to_json(jobs)[0]["state"], "PENDING");
}

TEST_F(JobStatusTest, RunningFailedAndFinished) {
  submitted(entry("12", "run"));
  FakeCommands running([](const auto&) {
    return job("12 JobState=RUNNING Reason=None Restarts=1 NodeList=node[1-2] RunTime=01:02:03");
  });
  EXPECT_EQ(format_job_statuses(job_statuses(dir_, running)),
            "Slurm job 12: running on node[1-2] for 01:02:03, requeued 1 time\n");
  FakeCommands failed(
      [](const auto&) { return job("12 JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=3:0"); });
  EXPECT_EQ(format_job_statuses(job_statuses(dir_, failed)),
            "Slurm job 12: failed (NonZeroExitCode), exit code 3:0\n");
}

TEST_F(JobStatusTest, ListsArrayTasksAndTheMergeJob) {
  submitted(entry("12", "run") + "," + entry("13", "merge"));
  FakeCommands commands([](const std::vector<std::string>& argv) -> CommandResult {
    if (argv.back() == "13") return job("13 JobState=PENDING Reason=Dependency Restarts=0");
    return {0,
            "JobId=12 ArrayJobId=12 ArrayTaskId=0 JobName=n Comment=c JobState=RUNNING Restarts=0\n"
            "JobId=14 ArrayJobId=12 ArrayTaskId=1 JobName=n Comment=c JobState=COMPLETED Restarts=0\n",
            ""};
  });
  const std::string text = format_job_statuses(job_statuses(dir_, commands));
  EXPECT_THAT(text, HasSubstr("Slurm job 12_0: running"));
  EXPECT_THAT(text, HasSubstr("Slurm job 12_1: completed"));
  EXPECT_THAT(text, HasSubstr("Slurm merge job 13: queued (Dependency)"));
}

TEST_F(JobStatusTest, EarlierSubmissionsOnlyWhileTheyAreAlive) {
  submitted(entry("12", "run") + "," + entry("13", "run") + "," + entry("14", "run"));
  FakeCommands commands([](const std::vector<std::string>& argv) -> CommandResult {
    if (argv.back() == "12") return job("12 JobState=COMPLETED Restarts=0");
    if (argv.back() == "13") return job("13 JobState=RUNNING Restarts=0");
    return job("14 JobState=COMPLETED Restarts=0");
  });
  const auto jobs = job_statuses(dir_, commands);
  ASSERT_EQ(jobs.size(), 2U);
  EXPECT_EQ(jobs[0].id, "13");
  EXPECT_EQ(jobs[1].id, "14");
}

TEST_F(JobStatusTest, JobsSubmittedByHandAreFound) {
  write("run.sbatch", "");
  const std::string out = std::filesystem::canonical(dir_).string();
  const Study study{.program = {}, .sweep = {}, .out = out, .overrides = {}, .working_folder = {}};
  FakeCommands commands([&](const auto& argv) {
    if (argv[0] == "squeue") return CommandResult{0, "7|" + study.comment() + "\n8|lacuna:other\n", ""};
    return CommandResult{0,
                         "JobId=" + argv.back() + " JobName=" + study.job_name() +
                             " Comment=" + study.comment() + " JobState=RUNNING NodeList=n1 RunTime=00:01\n",
                         ""};
  });
  EXPECT_EQ(format_job_statuses(job_statuses(dir_, commands)), "Slurm job 7: running on n1 for 00:01\n");
}

TEST_F(JobStatusTest, ASilentSlurmIsNoError) {
  submitted(entry("12", "run"));
  FakeCommands commands([](const auto&) {
    return CommandResult{1, "",
                         "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"};
  });
  const auto jobs = job_statuses(dir_, commands);
  ASSERT_EQ(jobs.size(), 1U);
  EXPECT_EQ(jobs[0].state, "unknown");
  EXPECT_THAT(jobs[0].reason, HasSubstr("Unable to contact"));
}

TEST_F(JobStatusTest, AForgottenOrReusedIdIsAskedOfAccounting) {
  submitted(entry("12", "run"));
  FakeCommands commands([](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "scontrol") return {0, "JobId=12 JobName=other Comment=x JobState=RUNNING\n", ""};
    return {0, "12|TIMEOUT|0:0|node1\n", ""};
  });
  EXPECT_EQ(format_job_statuses(job_statuses(dir_, commands)), "Slurm job 12: timeout\n");
  FakeCommands nobody([](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "scontrol") return {1, "", "slurm_load_jobs error: Invalid job id specified"};
    return {1, "", "disabled"};
  });
  EXPECT_THAT(format_job_statuses(job_statuses(dir_, nobody)), HasSubstr("unknown (Slurm has forgotten it"));
}

}  // namespace
}  // namespace lacuna::slurm
