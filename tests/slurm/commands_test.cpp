#include "slurm/commands.h"

#include <gtest/gtest.h>

#include <chrono>

namespace lacuna::slurm {
namespace {

TEST(SystemCommands, PassesArgumentsUntouchedAndKeepsOutputsApart) {
  SystemCommands commands;
  const auto result = commands.run(
      {"sh", "-c", "printf '%s|' \"$@\"; echo wrong >&2; exit 7", "sh", "a b", "$HOME", "it's", ""});
  EXPECT_EQ(result.out, "a b|$HOME|it's||");
  EXPECT_EQ(result.err, "wrong\n");
  EXPECT_EQ(result.code, 7);
}

TEST(SystemCommands, SaysWhenThereIsNoSuchProgram) {
  SystemCommands commands;
  const auto result = commands.run({"no-such-program-anywhere"});
  EXPECT_EQ(result.code, 127);
  EXPECT_NE(result.err.find("no-such-program-anywhere"), std::string::npos);
}

TEST(SystemCommands, TakesMoreThanAPipeHolds) {
  SystemCommands commands;
  EXPECT_EQ(commands.run({"head", "-c", "300000", "/dev/zero"}).out.size(), 300000U);
}

TEST(SystemCommands, EndsWhatDoesNotAnswer) {
  SystemCommands commands(1);
  const auto start = std::chrono::steady_clock::now();
  const auto result = commands.run({"sleep", "30"});
  EXPECT_EQ(result.code, 124);
  EXPECT_NE(result.err.find("no answer within 1 s"), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(SystemCommands, ReportsDeathBySignal) {
  SystemCommands commands;
  EXPECT_EQ(commands.run({"sh", "-c", "kill -9 $$"}).code, 128 + 9);
}

}  // namespace
}  // namespace lacuna::slurm
