#include "slurm/script.h"

#include <algorithm>
#include <cctype>
#include <filesystem>

#include "core/error.h"
#include "core/hash.h"
#include "slurm/templates.h"

namespace lacuna::slurm {
namespace {

/// A value of an #SBATCH line: sbatch knows double quotes and backslashes, and expands nothing but % in file
/// names.
std::string directive_quote(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string escape_percent(const std::string& path) {
  std::string escaped;
  for (const char c : path) escaped += c == '%' ? "%%" : std::string(1, c);
  return escaped;
}

void check_path(const std::string& path, const char* what) {
  LACUNA_REQUIRE(path.find_first_of("\n\r\\") == std::string::npos,
                 "{}: '{}' has a line break or a backslash in its name, which Slurm cannot handle", what,
                 path);
}

std::string shell_list(const std::string& name, const std::vector<std::string>& words) {
  std::string text = name + "=(";
  for (std::size_t i = 0; i < words.size(); ++i) text += (i > 0 ? " " : "") + shell_quote(words[i]);
  return text + ")\n";
}

class Lines {
 public:
  void directive(const std::string& text, const std::string& why = "") {
    text_ += fmt::format("#SBATCH {:<42}{}\n", text, why.empty() ? "" : "  # " + why);
    while (text_.size() > 1 && text_[text_.size() - 2] == ' ') text_.erase(text_.size() - 2, 1);
  }
  void optional(const char* name, const std::string& value) {
    if (!value.empty()) directive(fmt::format("--{}={}", name, directive_quote(value)));
  }
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...) + "\n";
  }
  void raw(std::string_view text) { text_ += text; }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

void common_directives(Lines& script, const Study& study, const SlurmOptions& options) {
  script.optional("comment", study.comment());
  script.optional("chdir", study.working_folder);
  script.optional("partition", options.partition);
  script.optional("account", options.account);
  script.optional("qos", options.qos);
  script.directive("--open-mode=append", "a later start adds to the logs");
  for (const auto& argument : options.sbatch_args) {
    const auto equals = argument.find('=');
    script.directive(equals == std::string::npos
                         ? argument
                         : argument.substr(0, equals + 1) + directive_quote(argument.substr(equals + 1)));
  }
}

/// Modules, environment and setup file: the same for runs and merges.
void environment_lines(Lines& script, const SlurmOptions& options) {
  if (!options.modules.empty()) {
    script.line("# Not every site defines `module` in batch shells.");
    script.line("if ! type module >/dev/null 2>&1; then");
    script.line(
        "  for init in /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh; do");
    script.line("    # shellcheck source=/dev/null");
    script.line("    if [ -r \"$init\" ]; then source \"$init\"; fi");
    script.line("  done");
    script.line("fi");
    for (const auto& module : options.modules) {
      script.line("module load {0} || {{ echo \"lacuna: cannot load the module \"{0} >&2; exit 1; }}",
                  shell_quote(module));
    }
  }
  for (const auto& [name, value] : options.environment) script.line("export {}={}", name, shell_quote(value));
  if (!options.setup.empty()) {
    script.line("# shellcheck source=/dev/null");
    script.line("source {0} || {{ echo \"lacuna: the setup file failed: \"{0} >&2; exit 1; }}",
                shell_quote(options.setup));
  }
}

std::vector<std::string> program_words(const Study& study, const SlurmOptions& options) {
  if (options.container.empty()) return {study.program};
  return {"apptainer", "exec", "--nv", options.container, "lacuna"};
}

void settings_lines(Lines& script, const Study& study) {
  script.line("out={}", shell_quote(study.out));
  script.line("state_folder=$out/slurm/state");
}

}  // namespace

std::string shell_quote(const std::string& text) {
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) ||
           std::string_view("@%+=:,./-_").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

std::string Study::job_name() const {
  std::string name = "lacuna-" + std::filesystem::path(out).filename().string().substr(0, 40);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_' && c != '-') c = '-';
  }
  return name;
}

std::string Study::comment() const { return "lacuna:" + to_hex(hash64(out)); }

std::string run_script_text(const Study& study, const SlurmOptions& options) {
  check_path(study.out, "--out");
  check_path(study.working_folder, "working folder");
  const bool array = options.array > 1;
  const int cpus = std::max(1, options.cpus_per_gpu);

  Lines script;
  script.line("#!/bin/bash");
  script.line("# Lacuna on {} node(s) with {} GPU(s) each{}. Written by `lacuna sbatch`.", options.nodes,
              options.gpus_per_node, array ? fmt::format(", {} such jobs side by side", options.array) : "");
  script.line(
      "# Submit it again whenever you like: finished samples are in the journal and are not run twice.");
  script.line("# shellcheck disable=SC2016  # quoted words may hold a $");
  script.directive("--job-name=" + study.job_name());
  script.directive(fmt::format("--nodes={}", options.nodes));
  script.directive(fmt::format("--ntasks-per-node={}", options.gpus_per_node), "one rank per GPU");
  script.directive(fmt::format("--gres=gpu:{}{}", options.gpu_type.empty() ? "" : options.gpu_type + ":",
                               options.gpus_per_node),
                   "per node");
  script.directive(fmt::format("--cpus-per-task={}", cpus), "cores per rank");
  if (!options.memory.empty()) script.directive("--mem=" + options.memory);
  script.directive("--time=" + options.time, "of one start; what is left runs in the next");
  script.optional("constraint", options.constraint);
  if (array)
    script.directive(fmt::format("--array=0-{}", options.array - 1), "each runs its own part of the sweep");
  script.directive("--requeue", "start again after preemption or a lost node");
  script.directive(fmt::format("--signal=B:{}@{}", options.signal, options.signal_seconds),
                   "warn this script before the time limit");
  script.directive("--output=" +
                   directive_quote(escape_percent(study.folder()) + (array ? "/%A_%a.log" : "/%j.log")));
  common_directives(script, study, options);
  script.raw("\n");
  environment_lines(script, options);
  script.raw("set -uo pipefail\n\n");
  script.line(
      "# --- What runs: change it here, then submit again "
      "----------------------------------------------------------");
  settings_lines(script, study);
  script.line("script={}", shell_quote(study.run_script()));
  script.line("rank_script={}", shell_quote(study.rank_script()));
  script.line("ranks_per_node={}", options.gpus_per_node);
  script.line("max_stalls={}  # starts in a row without a finished sample", options.max_stalls);
  script.line("launcher={}", options.launcher);
  std::vector<std::string> run = program_words(study, options);
  run.insert(run.end(), {"run", study.sweep, "--out", study.out});
  run.insert(run.end(), study.overrides.begin(), study.overrides.end());
  script.raw(shell_list("run", run));
  if (array) {
    script.line("shards={}", options.array);
    script.line("run+=(--shard \"$SLURM_ARRAY_TASK_ID/$shards\")");
    script.line(
        "marker=$out/COMPLETE.$SLURM_ARRAY_TASK_ID-of-$shards  # written by lacuna when this part is "
        "finished");
    script.line("journals=\"*-s${{SLURM_ARRAY_TASK_ID}}of$shards-*.jsonl\"  # of this part only");
    script.line("job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID");
  } else {
    script.line("marker=$out/COMPLETE  # written by lacuna when every sample is finished");
    script.line("journals='*.jsonl'");
    script.line("job=$SLURM_JOB_ID");
  }
  script.line("log_folder=$out/slurm/logs/$job");
  if (options.launcher == "srun") {
    script.line(
        "# All cores and GPUs of the job are given to each rank here; rank.sh chooses its own of them.");
    script.line("launch=(srun --mpi=pmix --ntasks=$((SLURM_JOB_NUM_NODES * ranks_per_node))");
    script.line(
        "  --ntasks-per-node=\"$ranks_per_node\" --cpus-per-task={} --cpu-bind=none "
        "--kill-on-bad-exit=1)",
        cpus);
  } else {
    script.line(
        "# mpirun starts its helpers through srun, which must see the whole node. rank.sh binds GPU and "
        "cores.");
    script.line("unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK SLURM_TRES_PER_TASK");
    script.line(
        "launch=(mpirun -np $((SLURM_JOB_NUM_NODES * ranks_per_node)) --map-by \"ppr:$ranks_per_node:node\" "
        "--bind-to none)");
  }
  script.raw("\n");
  script.raw(kRunTemplate);
  return script.take();
}

std::string merge_script_text(const Study& study, const SlurmOptions& options) {
  check_path(study.out, "--out");
  Lines script;
  script.line("#!/bin/bash");
  script.line(
      "# Lacuna: merges and analyses what the {} jobs of run.sbatch found. Written by `lacuna sbatch`.",
      options.array);
  script.line("# shellcheck disable=SC2016  # quoted words may hold a $");
  script.directive("--job-name=" + study.job_name());
  script.directive("--ntasks=1");
  script.directive("--time=1:00:00");
  script.directive("--requeue");
  script.directive("--output=" + directive_quote(escape_percent(study.folder()) + "/merge-%j.log"));
  common_directives(script, study, options);
  script.raw("\n");
  environment_lines(script, options);
  script.raw("set -uo pipefail\n\n");
  settings_lines(script, study);
  script.line("shards={}", options.array);
  script.line("job=$SLURM_JOB_ID");
  for (const char* verb : {"merge", "analyze"}) {
    std::vector<std::string> words = program_words(study, options);
    words.insert(words.end(), {verb, study.out});
    script.raw(shell_list(verb, words));
  }
  script.raw("\n");
  script.raw(kMergeTemplate);
  return script.take();
}

std::string rank_script_text() { return std::string(kRankTemplate); }

}  // namespace lacuna::slurm
