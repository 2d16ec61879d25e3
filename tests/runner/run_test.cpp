// `lacuna run` from outside, over the fake engine: ranks, resume, faults, signals, shards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "core/json.h"
#include "tests/runner/harness.h"

namespace lacuna::testing {
namespace {

const std::string kFake = FAKE_LACUNA;
const std::string kSweep = "tests/runner/sweeps/fake.yaml";
constexpr int kRows = 144;  // 2 models, 2 tasks, 6 strategies with levels, 6 samples

Words fake_run(const std::string& out, Words more = {}) {
  Words words = {kFake, "run", kSweep, "--out", out};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

/// The uninterrupted run that others are compared with.
const std::string& reference_digest() {
  static const std::string value = [] {
    const Scratch scratch;
    const auto ended = run(fake_run(scratch / "out"));
    EXPECT_EQ(ended.code, 0) << ended.output;
    EXPECT_EQ(rows(scratch / "out"), kRows);
    return digest(scratch / "out");
  }();
  return value;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::int64_t journal_lines(const std::string& out) {
  std::int64_t lines = 0;
  for (const auto& entry : std::filesystem::directory_iterator(out + "/journal")) {
    const std::string text = read_file(entry.path().string());
    lines += std::count(text.begin(), text.end(), '\n');
  }
  return lines;
}

TEST(Run, EveryRankCountAndTensorParallelDegreeGivesTheSameSamples) {
  for (const auto& [ranks, tp] :
       {std::pair(1, 1), std::pair(2, 1), std::pair(4, 1), std::pair(2, 2), std::pair(4, 2)}) {
    const Scratch scratch;
    const auto ended = run(launch(ranks, fake_run(scratch / "out", {"models.0.tp=" + std::to_string(tp)})));
    EXPECT_EQ(ended.code, 0) << ended.output;
    EXPECT_EQ(rows(scratch / "out"), kRows);
    EXPECT_EQ(digest(scratch / "out"), reference_digest()) << ranks << " ranks, tp " << tp;
    EXPECT_TRUE(std::filesystem::exists(scratch / "out/COMPLETE"));
  }
}

TEST(Run, DoneSamplesAreNeverRunAgainAndMoreSamplesRunOnlyNewOnes) {
  const Scratch scratch;
  ASSERT_EQ(run(fake_run(scratch / "out", {"samples=2"})).code, 0);
  EXPECT_EQ(journal_lines(scratch / "out"), kRows / 3);
  ASSERT_EQ(run(fake_run(scratch / "out", {"samples=2"})).code, 0);
  EXPECT_EQ(journal_lines(scratch / "out"), kRows / 3);
  ASSERT_EQ(run(launch(2, fake_run(scratch / "out"))).code, 0);
  EXPECT_EQ(journal_lines(scratch / "out"), kRows);
  EXPECT_EQ(digest(scratch / "out"), reference_digest());
}

TEST(Run, AChangedSweepIsRefusedWithTheDifference) {
  const Scratch scratch;
  ASSERT_EQ(run(fake_run(scratch / "out", {"samples=2"})).code, 0);
  auto ended = run(fake_run(scratch / "out", {"samples=2", "seed=8"}));
  EXPECT_EQ(ended.code, 2);
  EXPECT_TRUE(contains(ended.output, "seed: 7 -> 8")) << ended.output;
  ended = run(fake_run(scratch / "out", {"samples=1"}));
  EXPECT_EQ(ended.code, 2);
  EXPECT_TRUE(contains(ended.output, "samples: 2 -> 1")) << ended.output;
  ended = run(fake_run(scratch / "out", {"samples=2", "tasks=ruler_niah"}));
  EXPECT_EQ(ended.code, 2);
  EXPECT_TRUE(contains(ended.output, "no longer there: one ruler_vt 512 dense")) << ended.output;
  // A model under an old name must be the old model.
  ended = run(fake_run(scratch / "out"), {{"LACUNA_FAKE_WEIGHTS", "w2"}});
  EXPECT_EQ(ended.code, 2);
  EXPECT_TRUE(contains(ended.output, "weights_hash")) << ended.output;
}

TEST(Run, WhatCannotRunFailsAloneWithItsReason) {
  const std::map<std::string, std::string> kinds = {{"missing", "No such file"},
                                                    {"noload", "cannot open (fake)"},
                                                    {"throws", "out of device memory (fake)"},
                                                    {"big", "a rank has"}};
  for (const auto& [kind, reason] : kinds) {
    for (const int ranks : {0, 2}) {
      const Scratch scratch;
      const auto ended = run(launch(ranks, fake_run(scratch / "out", {"models.0.path=/fake/" + kind})));
      EXPECT_EQ(ended.code, 3) << kind << ended.output;
      EXPECT_EQ(rows(scratch / "out"), kRows) << kind;
      EXPECT_EQ(failed_rows(scratch / "out"), kRows / 2) << kind;
      const auto status = run({std::getenv("LACUNA_BIN"), "status", scratch / "out"});
      EXPECT_TRUE(contains(status.output, reason)) << kind << status.output;
      EXPECT_TRUE(std::filesystem::exists(scratch / "out/COMPLETE"));
    }
  }
}

TEST(Run, AFailedSampleIsRecordedAndRetryRunsItAgain) {
  const Scratch scratch;
  const Words broken = fake_run(scratch / "out", {"models.0.path=/fake/nan"});
  ASSERT_EQ(run(broken).code, 3);
  const auto failed = failed_rows(scratch / "out");
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, kRows / 2);
  ASSERT_EQ(run(broken).code, 3) << "a failed sample is not run again by itself";
  EXPECT_EQ(journal_lines(scratch / "out"), kRows);
  ASSERT_EQ(run({kFake, "retry", scratch / "out"}, {{"LACUNA_FAKE_FIXED", "1"}}).code, 0);
  EXPECT_EQ(journal_lines(scratch / "out"), kRows + failed);
  EXPECT_EQ(failed_rows(scratch / "out"), 0);
  EXPECT_EQ(digest(scratch / "out"), reference_digest());
}

TEST(Run, ASignalEndsTheRunCleanlyAndItCanGoOn) {
  for (const int number : {SIGTERM, SIGUSR2, SIGINT}) {
    const Scratch scratch;
    Child child(fake_run(scratch / "out"), {{"LACUNA_FAKE_MS", "20"}});
    while (!std::filesystem::exists(scratch / "out/journal") || journal_lines(scratch / "out") < 6)
      ::usleep(5000);
    child.signal(number);
    EXPECT_EQ(child.wait(), 75) << child.output();
    EXPECT_FALSE(std::filesystem::exists(scratch / "out/COMPLETE"));
    EXPECT_EQ(rows(scratch / "out"), journal_lines(scratch / "out"));
    EXPECT_LT(rows(scratch / "out"), kRows);
    ASSERT_EQ(run(fake_run(scratch / "out")).code, 0);
    EXPECT_EQ(digest(scratch / "out"), reference_digest());
  }
}

TEST(Run, ASecondSignalGivesUpTheRunningSample) {
  const Scratch scratch;
  Child child(fake_run(scratch / "out"), {{"LACUNA_FAKE_MS", "60000"}});
  while (!std::filesystem::exists(scratch / "out/launches") ||
         std::filesystem::is_empty(scratch / "out/launches"))
    ::usleep(5000);
  ::usleep(200'000);
  child.signal(SIGTERM);
  ::usleep(200'000);
  EXPECT_TRUE(child.running());
  child.signal(SIGTERM);
  EXPECT_EQ(child.wait(), 75) << child.output();
  EXPECT_EQ(rows(scratch / "out"), 0);
}

TEST(Run, SignalsReachAllRanks) {
  const Scratch scratch;
  Child child(launch(3, fake_run(scratch / "out")), {{"LACUNA_FAKE_MS", "30"}});
  while (!std::filesystem::exists(scratch / "out/journal") ||
         std::filesystem::is_empty(scratch / "out/journal"))
    ::usleep(5000);
  ::kill(child.pid(), SIGUSR2);  // mpirun passes it on
  EXPECT_EQ(child.wait(), 75) << child.output();
  ASSERT_EQ(run(fake_run(scratch / "out")).code, 0);
  EXPECT_EQ(digest(scratch / "out"), reference_digest());
}

TEST(Run, ShardsShareAFolderOrAreMerged) {
  const Scratch scratch;
  for (int i = 0; i < 3; ++i) {
    const std::string shard = std::to_string(i) + "/3";
    ASSERT_EQ(run(fake_run(scratch / "one", {"--shard", shard})).code, 0);
    ASSERT_EQ(run(fake_run(scratch / ("part" + std::to_string(i)), {"--shard", shard})).code, 0);
    EXPECT_EQ(std::filesystem::exists(scratch / "one/COMPLETE"), i == 2);
  }
  EXPECT_EQ(digest(scratch / "one"), reference_digest());
  std::filesystem::create_directories(scratch / "all");
  const auto merged = run({std::getenv("LACUNA_BIN"), "merge", scratch / "part0", scratch / "part1",
                           scratch / "part2", "--out", scratch / "all/results.h5"});
  EXPECT_EQ(merged.code, 0) << merged.output;
  EXPECT_EQ(digest(scratch / "all"), reference_digest());
}

TEST(Run, MergeReportsContradictions) {
  const Scratch scratch;
  ASSERT_EQ(run(fake_run(scratch / "a")).code, 0);
  ASSERT_EQ(run(fake_run(scratch / "b", {"models.0.path=/fake/other"}), {{"LACUNA_FAKE_SALT", "9"}}).code, 0);
  const auto merged =
      run({std::getenv("LACUNA_BIN"), "merge", scratch / "a", scratch / "b", "--out", scratch / "m.h5"});
  EXPECT_EQ(merged.code, 3);
  EXPECT_TRUE(contains(merged.output, "two results for one sample")) << merged.output;
}

TEST(Run, GarbageInTheJournalIsReportedAndSurvived) {
  const Scratch scratch;
  ASSERT_EQ(run(fake_run(scratch / "out", {"samples=3"})).code, 0);
  const auto first = std::filesystem::directory_iterator(scratch / "out/journal")->path().string();
  const std::string good = read_file(first);
  std::ofstream(first, std::ios::app) << "\x01\x02garbage\n"
                                      << good.substr(0, good.find('\n') + 1) << good.substr(0, 100);
  const auto ended = run(fake_run(scratch / "out"));
  EXPECT_EQ(ended.code, 0) << ended.output;
  EXPECT_TRUE(contains(ended.output, "checksum")) << ended.output;
  EXPECT_TRUE(contains(ended.output, "cut off")) << ended.output;
  EXPECT_TRUE(contains(ended.output, "1 duplicate")) << ended.output;
  EXPECT_EQ(digest(scratch / "out"), reference_digest());
}

TEST(Run, AFullDiskEndsTheRunWithAClearErrorAndTheJournalResumes) {
  const Scratch scratch;
  const auto full = run(fake_run(scratch / "out"), {}, 24 * 1024);
  EXPECT_EQ(full.code, 1) << full.output;
  EXPECT_TRUE(contains(full.output, "cannot write")) << full.output;
  ASSERT_EQ(run(fake_run(scratch / "out")).code, 0);
  EXPECT_EQ(digest(scratch / "out"), reference_digest());
}

/// A file system of 64 KiB, where this machine lets us make one.
TEST(Run, AFullFileSystemUnderSeveralRanks) {
  const Scratch scratch;
  const std::string disk = scratch / "disk";
  std::filesystem::create_directories(disk);
  if (run({"mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk}).code != 0) {
    GTEST_SKIP() << "mounting a small tmpfs needs root";
  }
  const auto full = run(launch(2, fake_run(disk + "/out")));
  EXPECT_EQ(full.code, 1) << full.output;
  EXPECT_TRUE(contains(full.output, "No space left on device")) << full.output;
  EXPECT_EQ(run({"mount", "-o", "remount,size=64m", disk}).code, 0);
  const auto again = run(launch(2, fake_run(disk + "/out")));
  EXPECT_EQ(again.code, 0) << again.output;
  if (again.code == 0) {
    EXPECT_EQ(digest(disk + "/out"), reference_digest());
  }
  EXPECT_EQ(run({"umount", disk}).code, 0);
}

TEST(Run, AnUnwritableFolderAndAWrongSweepAreClearErrors) {
  const Scratch scratch;
  std::ofstream(scratch / "file") << "x";
  auto ended = run(fake_run(scratch / "file/out"));
  EXPECT_NE(ended.code, 0);
  EXPECT_TRUE(contains(ended.output, "file/out")) << ended.output;
  ended = run({kFake, "run", scratch / "none.yaml", "--out", scratch / "out"});
  EXPECT_EQ(ended.code, 2);
  EXPECT_TRUE(contains(ended.output, "none.yaml: cannot open")) << ended.output;
  ended = run(launch(2, {kFake, "run", kSweep, "--out", scratch / "out", "sampels=3"}));
  EXPECT_EQ(ended.code, 2);
  EXPECT_TRUE(contains(ended.output, "did you mean 'samples'")) << ended.output;
  EXPECT_FALSE(std::filesystem::exists(scratch / "out"));
}

TEST(Run, VerboseSaysWhatEachTeamIsAt) {
  const Scratch scratch;
  const Ended ended = run(launch(2, {FAKE_LACUNA, "run", "tests/runner/sweeps/fake.yaml", "--out",
                                     scratch / "out", "--verbose", "--progress-every", "0.2"}),
                          {{"LACUNA_FAKE_MS", "50"}});
  ASSERT_EQ(ended.code, 0) << ended.output;
  EXPECT_THAT(ended.output, ::testing::HasSubstr("team 0 (rank 0): one ruler_"));
  EXPECT_THAT(ended.output,
              ::testing::ContainsRegex(
                  "team 1 \\(rank 1\\): one ruler_.* 512 .*, sample [0-9], for .*; [0-9]+ samples"));
  EXPECT_THAT(ended.output, ::testing::HasSubstr("2 teams busy"));
}

TEST(Run, TwoRunsIntoOneFolderAreKeptApart) {
  const Scratch scratch;
  Child child(fake_run(scratch / "out"), {{"LACUNA_FAKE_MS", "30"}});
  while (!std::filesystem::exists(scratch / "out/journal") ||
         std::filesystem::is_empty(scratch / "out/journal"))
    ::usleep(5000);
  const auto second = run(fake_run(scratch / "out"));
  EXPECT_EQ(second.code, 2);
  EXPECT_TRUE(contains(second.output, "another run is writing")) << second.output;
  const auto status = run({std::getenv("LACUNA_BIN"), "status", scratch / "out", "--json"});
  EXPECT_EQ(parse_json(status.output, "status")["samples"]["total"], kRows);
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace lacuna::testing
