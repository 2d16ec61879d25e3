#include "slurm/options.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/error.h"

namespace lacuna::slurm {
namespace {

std::string write_site(const std::string& text) {
  const std::string path = testing::TempDir() + "/site.yaml";
  std::ofstream(path) << text;
  return path;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

/// The site file that docs/slurm.md shows.
std::string documented_site_file() {
  std::ifstream file("docs/slurm.md");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::string fence = "```yaml\n";
  const auto begin = text.find(fence) + fence.size();
  return text.substr(begin, text.find("```", begin) - begin);
}

TEST(SiteFile, TheExampleOfTheDocsIsRead) {
  SlurmOptions options;
  apply_site_file(options, write_site(documented_site_file()));
  EXPECT_EQ(options.partition, "gpu");
  EXPECT_EQ(options.modules.size(), 3U);
  EXPECT_EQ(options.environment.size(), 1U);
  EXPECT_EQ(options.sbatch_args, std::vector<std::string>{"--exclusive"});
}

std::string site_error(const std::string& text) {
  return error_of([&] {
    SlurmOptions options;
    apply_site_file(options, write_site(text));
  });
}

void apply(SlurmOptions& options, const std::string& name, const std::string& value) {
  for (const auto& setting : slurm_settings()) {
    if (setting.name == name) return setting.apply(options, value, "--" + name);
  }
  FAIL() << "no setting " << name;
}

std::string setting_error(const std::string& name, const std::string& value) {
  return error_of([&] {
    SlurmOptions options;
    apply(options, name, value);
  });
}

TEST(SiteFile, SetsEverySettingIncludingLists) {
  SlurmOptions options;
  apply_site_file(options, write_site("partition: gpu\n"
                                      "account: project7\n"
                                      "time: 12:00:00\n"
                                      "gpus-per-node: 4\n"
                                      "gpu-memory: 79.5\n"
                                      "module: [cuda/12.4, openmpi]\n"
                                      "env:\n  NCCL_DEBUG: WARN\n  OMP_NUM_THREADS: 8\n"
                                      "sbatch-arg: --exclusive\n"
                                      "signal: USR2@300\n"));
  EXPECT_EQ(options.partition, "gpu");
  EXPECT_EQ(options.account, "project7");
  EXPECT_EQ(options.time, "12:00:00");
  EXPECT_EQ(options.gpus_per_node, 4);
  EXPECT_DOUBLE_EQ(options.gpu_memory_gib.value(), 79.5);
  EXPECT_EQ(options.modules, (std::vector<std::string>{"cuda/12.4", "openmpi"}));
  ASSERT_EQ(options.environment.size(), 2U);
  EXPECT_EQ(options.environment[0], (std::pair<std::string, std::string>{"NCCL_DEBUG", "WARN"}));
  EXPECT_EQ(options.environment[1].second, "8");
  EXPECT_EQ(options.sbatch_args, std::vector<std::string>{"--exclusive"});
  EXPECT_EQ(options.signal_seconds, 300);
}

TEST(SiteFile, ErrorsNameLineColumnAndWhatToDo) {
  const std::string misspelt = site_error("nodes: 2\npartiton: gpu\n");
  EXPECT_NE(misspelt.find("site.yaml:2:"), std::string::npos) << misspelt;
  EXPECT_NE(misspelt.find("did you mean 'partition'"), std::string::npos) << misspelt;
  const std::string value = site_error("partition: gpu\n\nnodes: many\n");
  EXPECT_NE(value.find("site.yaml:3:"), std::string::npos) << value;
  EXPECT_NE(value.find("'many' must be a whole number"), std::string::npos) << value;
  EXPECT_NE(site_error("- a list\n"), "no error");
  EXPECT_NE(site_error("partition: [a, b]\n").find("site.yaml:1:"), std::string::npos);
  EXPECT_NE(site_error("partition: {").find("site.yaml:"), std::string::npos);
}

TEST(Settings, RefuseWhatWouldBreakTheScript) {
  EXPECT_NE(setting_error("signal", "USR1@60").find("NCCL"), std::string::npos);
  EXPECT_NE(setting_error("signal", "HUP@60"), "no error");
  EXPECT_NE(setting_error("signal", "USR2@0"), "no error");
  EXPECT_NE(setting_error("sbatch-arg", "--signal=B:USR1@5").find("set by lacuna sbatch itself"),
            std::string::npos);
  EXPECT_NE(setting_error("sbatch-arg", "-N 3"), "no error");
  EXPECT_EQ(setting_error("sbatch-arg", "--mail-type=END"), "no error");
  EXPECT_NE(setting_error("env", "NO_VALUE"), "no error");
  EXPECT_NE(setting_error("env", "2X=1"), "no error");
  EXPECT_EQ(setting_error("env", "X=a=b c"), "no error");
  EXPECT_NE(setting_error("partition", "two words"), "no error");
  EXPECT_NE(setting_error("partition", "x\n#SBATCH --nodes=9"), "no error");
  EXPECT_NE(setting_error("module", "x\nrm"), "no error");
  EXPECT_NE(setting_error("nodes", "0"), "no error");
  EXPECT_NE(setting_error("nodes", "2x"), "no error");
  EXPECT_NE(setting_error("nodes", "99999999999"), "no error");
  EXPECT_NE(setting_error("memory", "64GB"), "no error");
  EXPECT_EQ(setting_error("memory", "0"), "no error");
  EXPECT_NE(setting_error("launcher", "mpiexec"), "no error");
  EXPECT_NE(setting_error("gpu-memory", "-1"), "no error");
}

TEST(Settings, CommandLineAddsToListsAndReplacesValues) {
  SlurmOptions options;
  apply_site_file(options, write_site("module: [one]\nnodes: 7\n"));
  apply(options, "module", "two");
  apply(options, "nodes", "2");
  EXPECT_EQ(options.modules, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(options.nodes, 2);
}

// Forms of sbatch(1), --time.
TEST(Time, EveryFormOfSlurm) {
  EXPECT_EQ(parse_time("90", "t"), 5400);
  EXPECT_EQ(parse_time("1:30", "t"), 90);
  EXPECT_EQ(parse_time("1:00:30", "t"), 3630);
  EXPECT_EQ(parse_time("2-12", "t"), 2 * 86400 + 12 * 3600);
  EXPECT_EQ(parse_time("2-12:30", "t"), 2 * 86400 + 12 * 3600 + 1800);
  EXPECT_EQ(parse_time("2-12:30:05", "t"), 2 * 86400 + 12 * 3600 + 1805);
  EXPECT_EQ(parse_time("UNLIMITED", "t"), std::nullopt);
  for (const char* wrong : {"", "0", "1h", "1:2:3:4", "-5", "1-", "1-2:3:4:5", "1:-2"}) {
    EXPECT_THROW(parse_time(wrong, "t"), Error) << wrong;
  }
  EXPECT_EQ(format_time(90061), "1-01:01:01");
  EXPECT_EQ(format_time(59), "00:00:59");
}

TEST(GpuMemory, KnowsTypesByTheNamesSitesUse) {
  EXPECT_EQ(gpu_memory_by_type("h100"), 79);
  EXPECT_EQ(gpu_memory_by_type("nvidia_h100_80gb_hbm3"), 79);
  EXPECT_EQ(gpu_memory_by_type("H200"), 140);
  EXPECT_EQ(gpu_memory_by_type("a100"), 39);
  EXPECT_EQ(gpu_memory_by_type("a100_80g"), 79);
  EXPECT_EQ(gpu_memory_by_type("NVIDIA-A100-SXM4-80GB"), 79);
  EXPECT_EQ(gpu_memory_by_type("gh200"), 94);
  EXPECT_EQ(gpu_memory_by_type("l40s"), 44);
  EXPECT_EQ(gpu_memory_by_type("l4"), 22);
  EXPECT_EQ(gpu_memory_by_type("mi250"), std::nullopt);
  EXPECT_EQ(gpu_memory_by_type(""), std::nullopt);
}

TEST(DefaultSiteFile, FollowsTheEnvironment) {
  ::setenv("LACUNA_SLURM_SITE", "/a/b.yaml", 1);
  EXPECT_EQ(default_site_file(), "/a/b.yaml");
  ::unsetenv("LACUNA_SLURM_SITE");
  ::setenv("XDG_CONFIG_HOME", "/x", 1);
  EXPECT_EQ(default_site_file(), "/x/lacuna/slurm.yaml");
  ::unsetenv("XDG_CONFIG_HOME");
  ::setenv("HOME", "/home/someone", 1);
  EXPECT_EQ(default_site_file(), "/home/someone/.config/lacuna/slurm.yaml");
}

}  // namespace
}  // namespace lacuna::slurm
