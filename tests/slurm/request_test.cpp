#include "slurm/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/error.h"

namespace lacuna::slurm {
namespace {

using testing::HasSubstr;

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

ModelDemand model(const std::string& name, int tp, long long jobs, double seconds_each = 0) {
  return {.name = name, .tp = tp, .load_seconds = 0, .jobs = {{jobs, seconds_each}}};
}

SlurmOptions request(int nodes, int gpus, int array = 1) {
  SlurmOptions options;
  options.nodes = nodes;
  options.gpus_per_node = gpus;
  options.array = array;
  return options;
}

std::string study_error(const SlurmOptions& options, const StudyDemand& demand) {
  return error_of([&] { check_study(options, demand, false); });
}

TEST(CheckStudy, AcceptsWhatKeepsGpusBusy) {
  EXPECT_EQ(
      study_error(request(2, 4),
                  {.models = {model("a", 1, 1000), model("b", 4, 100)}, .samples = 10, .times_known = false}),
      "no error");
}

TEST(CheckStudy, RefusesATensorParallelDegreeBeyondTheRanks) {
  const auto error =
      study_error(request(1, 2), {.models = {model("big", 4, 100)}, .samples = 1, .times_known = false});
  EXPECT_THAT(error, HasSubstr("model 'big' needs tp 4"));
  EXPECT_THAT(error, HasSubstr("use --nodes 2 --gpus-per-node 2"));
}

TEST(CheckStudy, RefusesGpusThatNoTeamCanUse) {
  const auto error =
      study_error(request(2, 3), {.models = {model("a", 2, 1000)}, .samples = 1, .times_known = false});
  EXPECT_THAT(error, HasSubstr("1 of the 3 GPUs of every node would idle"));
  EXPECT_THAT(error, HasSubstr("use --nodes 2 --gpus-per-node 2"));
  // A model of degree 1 beside it fills the gap.
  EXPECT_EQ(
      study_error(request(2, 3),
                  {.models = {model("a", 2, 1000), model("b", 1, 1000)}, .samples = 1, .times_known = false}),
      "no error");
}

TEST(CheckStudy, RefusesMoreGpusThanJobsAndSaysWhatIsBetter) {
  const auto error =
      study_error(request(4, 8), {.models = {model("a", 1, 6)}, .samples = 6, .times_known = false});
  EXPECT_THAT(error, HasSubstr("busy only 19 %"));  // 6 of 32
  EXPECT_THAT(error, HasSubstr("use --nodes 1 --gpus-per-node 6"));
  EXPECT_EQ(study_error(request(1, 6), {.models = {model("a", 1, 6)}, .samples = 6, .times_known = false}),
            "no error");
}

/// The request that an error proposes.
SlurmOptions proposal(const std::string& error, SlurmOptions options) {
  const auto from = error.find("; use ");
  const auto read = [&](const std::string& name, int& value) {
    const auto at = error.find(name + " ", from);
    if (at != std::string::npos) value = std::stoi(error.substr(at + name.size() + 1));
  };
  read("--nodes", options.nodes);
  read("--gpus-per-node", options.gpus_per_node);
  read("--array", options.array);
  return options;
}

// What is proposed must itself be accepted, whatever was asked.
TEST(CheckStudy, ProposalsPassTheirOwnCheck) {
  int proposals = 0;
  for (int nodes : {1, 2, 3, 5, 8}) {
    for (int gpus : {1, 2, 3, 4, 8}) {
      for (int array : {1, 4}) {
        for (long long jobs : {1, 3, 7, 40}) {
          for (int tp : {1, 2, 4}) {
            const StudyDemand demand{
                .models = {model("a", tp, jobs), model("b", 2, 3)}, .samples = 9, .times_known = false};
            const auto asked = request(nodes, gpus, array);
            const auto error = study_error(asked, demand);
            if (error == "no error") continue;
            ++proposals;
            EXPECT_EQ(study_error(proposal(error, asked), demand), "no error") << error;
          }
        }
      }
    }
  }
  EXPECT_GT(proposals, 100);
}

TEST(CheckStudy, AllowIdleSilencesOnlyIdleness) {
  const StudyDemand demand{.models = {model("a", 1, 2)}, .samples = 2, .times_known = false};
  EXPECT_NO_THROW(check_study(request(4, 8), demand, true));
  const StudyDemand wide{.models = {model("a", 64, 2)}, .samples = 2, .times_known = false};
  EXPECT_THROW(check_study(request(4, 8), wide, true), Error);
}

TEST(CheckStudy, RefusesATimeLimitInWhichNoJobEnds) {
  SlurmOptions options = request(1, 1);
  options.time = "1:00:00";
  options.signal_seconds = 3100;
  const auto demand = [](double seconds) {
    return StudyDemand{.models = {model("a", 1, 10, seconds)}, .samples = 10, .times_known = true};
  };
  EXPECT_TRUE(check_study(options, demand(3000), false).empty());
  const auto remarks = check_study(options, demand(3200), false);
  ASSERT_EQ(remarks.size(), 1U);
  EXPECT_THAT(remarks[0], HasSubstr("--signal USR2@6400"));
  EXPECT_THAT(study_error(options, demand(3700)),
              HasSubstr("never ends within --time 1:00:00; use --time 02:03:20"));
}

TEST(CheckStudy, OneLongJobMakesManyGpusIdle) {
  StudyDemand demand{.models = {model("a", 1, 100, 10)}, .samples = 101, .times_known = true};
  demand.models[0].jobs.push_back({1, 2000});
  EXPECT_THAT(study_error(request(1, 8), demand), HasSubstr("busy only 19 %"));  // 3000 / (8 * 2000)
  EXPECT_NEAR(forecast(demand, 1, 8, 1).hours, 2000.0 / 3600, 1e-9);
}

// Nothing but a schedule shows this: all eight GPUs work for the first 100 s, one of them for 200 s more.
// Evenly spread work or the longest job alone would promise 62 %.
TEST(CheckStudy, IdlenessComesFromTheSchedule) {
  const StudyDemand demand{
      .models = {model("wide", 8, 1, 100), model("long", 1, 1, 200)}, .samples = 2, .times_known = true};
  const Forecast seen = forecast(demand, 1, 8, 1);
  EXPECT_NEAR(seen.utilisation, 1000.0 / (8 * 300), 1e-9);
  EXPECT_NEAR(seen.hours, 300.0 / 3600, 1e-9);
  EXPECT_THAT(study_error(request(1, 8), demand), HasSubstr("busy only 42 % of the time"));
}

TEST(CheckStudy, AStudyThatNoRequestServesBetterIsNotRefused) {
  const StudyDemand demand{
      .models = {model("wide", 8, 1, 10), model("long", 1, 1, 90)}, .samples = 2, .times_known = true};
  const auto remarks = check_study(request(1, 8), demand, false);
  ASSERT_EQ(remarks.size(), 1U);
  EXPECT_THAT(remarks[0], HasSubstr("busy only 21 % of the time"));  // 170 of 8 x 100
  EXPECT_THAT(remarks[0], HasSubstr("no other request"));
}

TEST(CheckStudy, LoadingIsNotIdling) {
  StudyDemand demand{.models = {model("a", 1, 8, 10)}, .samples = 8, .times_known = true};
  demand.models[0].load_seconds = 30;
  // Loading for 30 s is worth it for the first ranks only; the others would idle.
  EXPECT_THAT(study_error(request(1, 8), demand), HasSubstr("use --nodes 1 --gpus-per-node"));
  EXPECT_NEAR(forecast(demand, 1, 1, 1).utilisation, 1, 1e-9);
  EXPECT_NEAR(forecast(demand, 1, 1, 1).hours, 110.0 / 3600, 1e-9);
}

// Elements of an array end one by one and give their GPUs back.
TEST(CheckStudy, ArrayElementsGiveTheirGpusBack) {
  const StudyDemand demand{.models = {model("a", 1, 3, 100)}, .samples = 3, .times_known = true};
  EXPECT_NEAR(forecast(demand, 1, 1, 2).utilisation, 1, 1e-9);
  EXPECT_NEAR(forecast(demand, 1, 1, 2).hours, 200.0 / 3600, 1e-9);
  EXPECT_NEAR(forecast(demand, 1, 2, 1).utilisation, 0.75, 1e-9);
}

TEST(CheckStudy, RefusesMoreArrayJobsThanJobs) {
  EXPECT_THAT(
      study_error(request(1, 1, 8), {.models = {model("a", 1, 5)}, .samples = 5, .times_known = false}),
      HasSubstr("--array 5"));
}

TEST(CheckStudy, RemarksOnTeamsAcrossNodes) {
  const auto remarks =
      check_study(request(2, 4), {.models = {model("a", 8, 100)}, .samples = 1, .times_known = false}, false);
  ASSERT_EQ(remarks.size(), 1U);
  EXPECT_THAT(remarks[0], HasSubstr("span nodes"));
}

std::vector<NodeGroup> site() {
  return parse_sinfo(
      "gpu*|up|2-00:00:00|10|64|512000|gpu:h100:4(S:0-1)\n"
      "gpu*|up|2-00:00:00|2|96|1024000|gpu:h200:8\n"
      "short|up|1:00:00|4|32|256000|gpu:a100_40g:2\n"
      "cpu|up|infinite|100|128|256000|(null)\n"
      "old|down|infinite|3|16|64000|gpu:v100:2\n");
}

std::string cluster_error(SlurmOptions options) {
  return error_of([&] { check_cluster(options, site()); });
}

TEST(CheckCluster, FillsInCoresAndGpuMemory) {
  SlurmOptions options = request(2, 4);
  check_cluster(options, site());
  EXPECT_EQ(options.cpus_per_gpu, 12);  // 96 / 8 is less than 64 / 4
  EXPECT_EQ(options.gpu_memory_gib, 79);
  SlurmOptions given = request(1, 1);
  given.cpus_per_gpu = 3;
  given.gpu_memory_gib = 11;
  check_cluster(given, site());
  EXPECT_EQ(given.cpus_per_gpu, 3);
  EXPECT_EQ(given.gpu_memory_gib, 11);
}

TEST(CheckCluster, SaysWhatTheClusterHas) {
  SlurmOptions options = request(1, 2);
  options.partition = "shrot";
  EXPECT_THAT(cluster_error(options), HasSubstr("did you mean 'short'"));
  options.partition = "cpu";
  EXPECT_THAT(cluster_error(options), HasSubstr("has no GPUs"));
  options.partition = "old";
  EXPECT_THAT(cluster_error(options), HasSubstr("is down"));
  options.partition = "short";
  EXPECT_THAT(cluster_error(options), HasSubstr("allows at most 01:00:00"));
  options.time = "30";
  EXPECT_EQ(cluster_error(options), "no error");
  options.gpus_per_node = 3;
  EXPECT_THAT(cluster_error(options), HasSubstr("use --nodes 2 --gpus-per-node 2"));
  options.gpus_per_node = 2;
  options.nodes = 5;
  EXPECT_THAT(cluster_error(options), HasSubstr("use --nodes 4"));
  SlurmOptions typed = request(3, 8);
  typed.gpu_type = "h200";
  EXPECT_THAT(cluster_error(typed), HasSubstr("has 2 nodes with 8 h200 GPUs"));
  typed.gpu_type = "b200";
  EXPECT_THAT(cluster_error(typed), HasSubstr("has no b200 GPUs"));
}

TEST(CheckSpace, RefusesAFullDisk) {
  EXPECT_NO_THROW(check_space("/", 10));
  EXPECT_THAT(error_of([] { check_space("/", 1LL << 50); }), HasSubstr("free, the results of"));
}

}  // namespace
}  // namespace lacuna::slurm
