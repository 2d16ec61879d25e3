#include "slurm/script.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "slurm/commands.h"

namespace lacuna::slurm {
namespace {

using testing::HasSubstr;
using testing::Not;

Study study(const std::string& out = "/data/study") {
  return {.program = "/opt/lacuna",
          .sweep = "/home/me/sweep.yaml",
          .out = out,
          .overrides = {"samples=5"},
          .working_folder = "/home/me"};
}

TEST(ShellQuote, BashGivesBackEveryWord) {
  SystemCommands commands;
  for (const std::string word : {"plain", "", "a b", "it's", "\"q\"", "$HOME `ls` \\", "a\nb", "*?[x]", "~",
                                 "-n", "ü", "a#b", "!x", "=(x)"}) {
    const auto result = commands.run({"bash", "-c", "printf %s " + shell_quote(word)});
    EXPECT_EQ(result.out, word) << shell_quote(word);
  }
}

TEST(RunScript, HoldsEveryRequest) {
  SlurmOptions options;
  options.nodes = 2;
  options.gpus_per_node = 4;
  options.cpus_per_gpu = 12;
  options.partition = "gpu";
  options.account = "a1";
  options.qos = "high";
  options.constraint = "h100&ib";
  options.gpu_type = "h100";
  options.memory = "0";
  options.time = "12:00:00";
  options.sbatch_args = {"--exclusive", "--mail-type=END,FAIL"};
  const std::string text = run_script_text(study(), options);
  for (const char* line : {"#SBATCH --job-name=lacuna-study",
                           "#SBATCH --nodes=2",
                           "#SBATCH --ntasks-per-node=4",
                           "#SBATCH --gres=gpu:h100:4",
                           "#SBATCH --cpus-per-task=12",
                           "#SBATCH --mem=0",
                           "#SBATCH --time=12:00:00",
                           "#SBATCH --constraint=\"h100&ib\"",
                           "#SBATCH --requeue",
                           "#SBATCH --signal=B:USR2@120",
                           "#SBATCH --output=\"/data/study/slurm/%j.log\"",
                           "#SBATCH --chdir=\"/home/me\"",
                           "#SBATCH --partition=\"gpu\"",
                           "#SBATCH --account=\"a1\"",
                           "#SBATCH --qos=\"high\"",
                           "#SBATCH --open-mode=append",
                           "#SBATCH --exclusive",
                           "#SBATCH --mail-type=\"END,FAIL\"",
                           "run=(/opt/lacuna run /home/me/sweep.yaml --out /data/study samples=5)",
                           "marker=$out/COMPLETE ",
                           "launch=(mpirun "}) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + line)) << line;
  }
  EXPECT_THAT(text, Not(HasSubstr("--array")));
  EXPECT_THAT(text, Not(HasSubstr("USR1")));
  EXPECT_THAT(text, Not(HasSubstr("module load")));
}

TEST(RunScript, LeavesOutWhatWasNotAsked) {
  const std::string text = run_script_text(study(), {});
  for (const char* option : {"--mem", "--partition", "--account", "--qos", "--constraint"})
    EXPECT_THAT(text, Not(HasSubstr(option)));
}

TEST(RunScript, ArraysShareTheSweep) {
  SlurmOptions options;
  options.array = 4;
  const std::string text = run_script_text(study(), options);
  EXPECT_THAT(text, HasSubstr("#SBATCH --array=0-3"));
  EXPECT_THAT(text, HasSubstr("--shard \"$SLURM_ARRAY_TASK_ID/$shards\""));
  EXPECT_THAT(text, HasSubstr("/%A_%a.log"));
  EXPECT_THAT(text, HasSubstr("journals=\"*-s${SLURM_ARRAY_TASK_ID}of$shards-*.jsonl\""));
  const std::string merge = merge_script_text(study(), options);
  EXPECT_THAT(merge, HasSubstr("merge=(/opt/lacuna merge /data/study)"));
  EXPECT_THAT(merge, HasSubstr("analyze=(/opt/lacuna analyze /data/study)"));
  EXPECT_THAT(merge, Not(HasSubstr("--gres")));
}

TEST(RunScript, ModulesEnvironmentSetupAndContainer) {
  SlurmOptions options;
  options.modules = {"cuda/12.4", "x y"};
  options.environment = {{"A", "b $c"}};
  options.setup = "/home/me/my setup.sh";
  options.container = "/images/lacuna.sif";
  options.launcher = "srun";
  const std::string text = run_script_text(study(), options);
  EXPECT_THAT(text, HasSubstr("module load cuda/12.4 || "));
  EXPECT_THAT(text, HasSubstr("module load 'x y' || "));
  EXPECT_THAT(text, HasSubstr("export A='b $c'"));
  EXPECT_THAT(text, HasSubstr("source '/home/me/my setup.sh' || "));
  EXPECT_THAT(text, HasSubstr("run=(apptainer exec --nv /images/lacuna.sif lacuna run "));
  EXPECT_THAT(text, HasSubstr("launch=(srun --mpi=pmix "));
}

TEST(RunScript, OddPathsStayOnTheirLine) {
  const std::string text = run_script_text(study("/data/50% \"x\" it's"), {});
  EXPECT_THAT(text, HasSubstr("#SBATCH --output=\"/data/50%% \\\"x\\\" it's/slurm/%j.log\""));
  EXPECT_THAT(text, HasSubstr("out='/data/50% \"x\" it'\\''s'"));
  EXPECT_THROW(run_script_text(study("/data/a\nb"), {}), Error);
  EXPECT_THROW(run_script_text(study("/data/a\\b"), {}), Error);
}

TEST(Study, NamesAndCommentsTellFoldersApart) {
  EXPECT_EQ(study("/x/my study!").job_name(), "lacuna-my-study-");
  EXPECT_EQ(study("/x/a").job_name(), study("/y/a").job_name());
  EXPECT_NE(study("/x/a").comment(), study("/y/a").comment());
  EXPECT_EQ(study("/x/a").comment().size(), std::string("lacuna:").size() + 16);
}

}  // namespace
}  // namespace lacuna::slurm
