#include "slurm/submission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "tests/slurm/fake_commands.h"

namespace lacuna::slurm {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

class SubmissionTest : public testing::Test {
 protected:
  void SetUp() override {
    study_.out = testing::TempDir() + "/lacuna-submission";
    std::filesystem::remove_all(study_.out);
    std::filesystem::create_directories(study_.out);
    study_.program = "/opt/lacuna";
    study_.sweep = "/sweep.yaml";
    study_.working_folder = "/";
  }
  void TearDown() override { std::filesystem::remove_all(study_.out); }

  /// A line of scontrol for a job of ours, or of another folder.
  std::string job_line(const std::string& id, const std::string& state,
                       const std::string& comment = "") const {
    return "JobId=" + id + " JobName=" + study_.job_name() + " JobState=" + state +
           " Comment=" + (comment.empty() ? study_.comment() : comment) + "\n";
  }

  Study study_;
};

TEST_F(SubmissionTest, WritesScriptsThatCanBeRun) {
  SlurmOptions options;
  options.array = 2;
  write_scripts(study_, options);
  for (const auto& script : {study_.run_script(), study_.merge_script(), study_.rank_script()})
    EXPECT_TRUE(std::filesystem::exists(script)) << script;
  EXPECT_NE(std::filesystem::status(study_.run_script()).permissions() & std::filesystem::perms::owner_exec,
            std::filesystem::perms::none);
}

TEST_F(SubmissionTest, AFileInTheWayIsAClearError) {
  std::ofstream(study_.out + "/slurm") << "x";
  try {
    write_scripts(study_, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("cannot make the folder"));
  }
}

TEST_F(SubmissionTest, SubmitsAnArrayWithItsMergeAndRemembersBoth) {
  SlurmOptions options;
  options.array = 3;
  write_scripts(study_, options);
  FakeCommands commands([](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "sbatch") return {0, argv[2].rfind("--dependency", 0) == 0 ? "21\n" : "20\n", ""};
    return {0, "", ""};
  });
  Cluster cluster(commands);
  const auto made = submit(cluster, study_, options);
  ASSERT_EQ(made.size(), 2U);
  EXPECT_THAT(commands.asked, Contains(ElementsAre("sbatch", "--parsable", "--dependency=afterany:20",
                                                   study_.merge_script())));
  const auto read = read_submitted_jobs(study_.out);
  ASSERT_EQ(read.size(), 2U);
  EXPECT_EQ(read[0].id, "20");
  EXPECT_EQ(read[0].array, 3);
  EXPECT_EQ(read[1].kind, "merge");
  EXPECT_EQ(read[1].comment, study_.comment());
}

TEST_F(SubmissionTest, RefusesASecondRunInTheSameFolder) {
  write_scripts(study_, {});
  FakeCommands commands([&](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "squeue") return {0, "20|" + study_.comment() + "\n", ""};
    return {0, "", ""};
  });
  Cluster cluster(commands);
  EXPECT_THROW(submit(cluster, study_, {}), Error);
  for (const auto& argv : commands.asked) EXPECT_NE(argv[0], "sbatch");
}

TEST_F(SubmissionTest, CancelsAJobThatCouldNotBeWrittenDown) {
  write_scripts(study_, {});
  std::filesystem::create_directories(study_.out + "/slurm/jobs.json.d");
  FakeCommands commands([&](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "sbatch") {
      // From here on the folder cannot be written: a folder stands where the file should be.
      std::filesystem::create_directories(study_.out + "/slurm/jobs.json/x");
      return {0, "20\n", ""};
    }
    return {0, "", ""};
  });
  Cluster cluster(commands);
  EXPECT_THROW(submit(cluster, study_, {}), Error);
  EXPECT_THAT(commands.asked, Contains(ElementsAre("scancel", "20")));
}

TEST_F(SubmissionTest, CancelsOnlyWhatIsStillOurs) {
  write_scripts(study_, {});
  int next = 30;
  FakeCommands submitting([&](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "sbatch") return {0, std::to_string(next++) + "\n", ""};
    if (argv[0] == "scontrol") return {0, job_line(argv.back(), "COMPLETED"), ""};
    return {0, "", ""};
  });
  Cluster first(submitting);
  for (int i = 0; i < 3; ++i) submit(first, study_, {});
  // 30 has ended; 31 is another user's job by now; 32 runs; 33 was submitted by hand.
  FakeCommands commands([&](const std::vector<std::string>& argv) -> CommandResult {
    if (argv[0] == "squeue") return {0, "33|" + study_.comment() + "\n", ""};
    if (argv[0] == "scontrol" && argv.back() == "30") return {0, job_line("30", "COMPLETED"), ""};
    if (argv[0] == "scontrol" && argv.back() == "31")
      return {0, job_line("31", "RUNNING", "lacuna:other"), ""};
    if (argv[0] == "scontrol" && argv.back() == "32") return {0, job_line("32", "RUNNING"), ""};
    return {0, "", ""};
  });
  Cluster cluster(commands);
  EXPECT_THAT(cancel(cluster, study_.out), ElementsAre("32", "33"));
  EXPECT_THAT(commands.asked.back(), ElementsAre("scancel", "32", "33"));
}

TEST_F(SubmissionTest, NothingToCancelCancelsNothing) {
  FakeCommands commands([](const auto&) { return CommandResult{0, "", ""}; });
  Cluster cluster(commands);
  EXPECT_TRUE(cancel(cluster, study_.out).empty());
  for (const auto& argv : commands.asked) EXPECT_NE(argv[0], "scancel");
}

TEST_F(SubmissionTest, DamagedRecordsAreErrorsThatNameTheFile) {
  std::filesystem::create_directories(study_.out + "/slurm");
  for (const char* text :
       {"{", "[]", "{\"jobs\": 3}",
        "{\"jobs\": [{\"id\": \"1; rm\", \"kind\": \"run\", \"name\": \"x\", \"comment\": \"y\"}]}"}) {
    std::ofstream(study_.out + "/slurm/jobs.json") << text;
    try {
      read_submitted_jobs(study_.out);
      ADD_FAILURE() << text;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("jobs.json")) << text;
    }
  }
}

}  // namespace
}  // namespace lacuna::slurm
