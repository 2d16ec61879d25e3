// lacuna sbatch: a batch script for a sweep, checked against the study and the cluster, and submitted if
// asked.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "core/error.h"
#include "core/log.h"
#include "runner/commands/commands.h"
#include "slurm/request.h"
#include "slurm/submission.h"
#include "sweeps/cells.h"

namespace lacuna {

namespace {

struct Options {
  std::string sweep, out, cancel, site, program;
  std::vector<std::string> overrides;
  std::map<std::string, std::vector<std::string>> settings;
  bool submit = false, allow_idle = false, no_site = false;
};

/// What of the sweep is left to run, model by model.
slurm::StudyDemand study_demand(const Sweep& sweep) {
  const Grid grid = expand(sweep);
  slurm::StudyDemand demand;
  demand.samples = grid.samples();
  for (const auto& model : sweep.models) {
    demand.models.push_back({.name = model.name,
                             .tp = model.tp,
                             .jobs = 0,
                             .job_seconds = 0,
                             .longest_job_seconds = 0,
                             .bytes_by_tp = {}});
  }
  for (const auto& group : grid.groups) {
    int samples = 0;
    for (const int cell : group.cells)
      samples = std::max(samples, grid.cells[static_cast<std::size_t>(cell)].samples);
    demand.models[static_cast<std::size_t>(group.model)].jobs += samples;
  }
  return demand;
}

/// Said before submission, because a job that starts tomorrow night should not end there with "no such
/// folder".
void check_models(const Sweep& sweep) {
  for (const auto& model : sweep.models) {
    LACUNA_REQUIRE(
        std::filesystem::exists(model.path + "/config.json"),
        "model '{}': {} has no config.json: mend its path in the sweep (or models.{}.path=FOLDER), or copy "
        "the model to a file system that the compute nodes see",
        model.name, model.path, model.name);
  }
}

/// The folder that the results go to, made if need be, as an absolute path without links: jobs are told apart
/// by it.
std::string make_out_folder(const std::string& out) {
  std::error_code error;
  std::filesystem::create_directories(out, error);
  if (error) throw_library("--out {}: cannot make the folder: {}", out, error.message());
  return std::filesystem::canonical(out).string();
}

slurm::SlurmOptions read_options(const Options& given) {
  slurm::SlurmOptions options;
  const std::string site = given.site.empty() ? slurm::default_site_file() : given.site;
  if (!given.no_site && (!given.site.empty() || std::filesystem::exists(site))) {
    slurm::apply_site_file(options, site);
    log::info("site defaults: {}", site);
  }
  for (const auto& setting : slurm::slurm_settings()) {
    const auto it = given.settings.find(setting.name);
    if (it == given.settings.end()) continue;
    for (const auto& value : it->second) setting.apply(options, value, "--" + setting.name);
  }
  for (std::string* file : {&options.setup, &options.container}) {
    if (file->empty()) continue;
    LACUNA_REQUIRE(std::filesystem::exists(*file), "{}: no such file", *file);
    *file = std::filesystem::canonical(*file).string();
  }
  return options;
}

void run_cancel(const std::string& dir) {
  LACUNA_REQUIRE(std::filesystem::exists(dir), "--cancel {}: no such folder", dir);
  slurm::SystemCommands commands;
  slurm::Cluster cluster(commands);
  LACUNA_REQUIRE(cluster.available(), "--cancel: Slurm's commands (sbatch, scancel) are not on this machine");
  const auto ids = slurm::cancel(cluster, std::filesystem::canonical(dir).string());
  if (ids.empty()) log::info("{}: no job of this folder waits or runs", dir);
  for (const auto& id : ids) fmt::print("{}\n", id);
}

void run_sbatch(const Options& given) {
  slurm::SlurmOptions options = read_options(given);
  const Sweep sweep = load_sweep(given.sweep, given.overrides);
  check_models(sweep);
  const auto demand = study_demand(sweep);

  slurm::SystemCommands commands;
  slurm::Cluster cluster(commands);
  const bool here = cluster.available();
  LACUNA_REQUIRE(here || !given.submit,
                 "--submit: Slurm's commands (sbatch) are not on this machine; run it on a login node");
  if (here) slurm::check_cluster(options, cluster.nodes());
  for (const auto& remark : slurm::check_study(options, demand, given.allow_idle)) log::warning("{}", remark);

  slurm::Study study;
  study.out = make_out_folder(given.out);
  LACUNA_REQUIRE(!std::filesystem::exists(study.out + "/COMPLETE"),
                 "{}: this study is finished (see lacuna status {})", given.out, given.out);
  slurm::check_space(study.out, demand.samples);
  study.program = given.program.empty() ? std::filesystem::canonical("/proc/self/exe").string()
                                        : std::filesystem::absolute(given.program).string();
  study.sweep = std::filesystem::canonical(given.sweep).string();
  study.working_folder = std::filesystem::current_path().string();
  study.overrides = given.overrides;
  slurm::write_scripts(study, options);
  log::info("wrote {}", study.run_script());
  if (!here) {
    log::warning("not checked against the cluster: Slurm's commands are not on this machine");
    return;
  }
  log::info("{}", cluster.test(study.run_script()));
  if (options.array > 1) (void)cluster.test(study.merge_script());
  if (!given.submit) {
    log::info("submit it with: the same command and --submit");
    return;
  }
  for (const auto& job : slurm::submit(cluster, study, options)) {
    fmt::print("{}\n", job.id);
    log::info("submitted {} job {}; watch it with: lacuna status {}", job.kind, job.id,
              slurm::shell_quote(given.out));
  }
}

}  // namespace

void add_sbatch_command(CLI::App& app) {
  auto* sub = app.add_subcommand("sbatch", "Write a Slurm batch script for a sweep, check it, and submit it");
  auto options = std::make_shared<Options>();
  sub->add_option("sweep", options->sweep, "Sweep file")->type_name("SWEEP");
  sub->add_option("overrides", options->overrides, "key=value changes of the sweep, as for lacuna run")
      ->type_name("KEY=VALUE");
  sub->add_option("--out", options->out, "Folder for the results; the scripts go to its slurm/")
      ->type_name("DIR");
  sub->add_flag("--submit", options->submit,
                "Submit, and print the job id (of an array: also that of its merge job)");
  sub->add_option("--cancel", options->cancel, "Cancel the jobs of this results folder, and no others")
      ->type_name("DIR");
  sub->add_option("--site", options->site, "Site defaults (default: ~/.config/lacuna/slurm.yaml)")
      ->type_name("FILE");
  sub->add_flag("--no-site", options->no_site, "Do not read site defaults");
  sub->add_option("--program", options->program, "lacuna as the compute nodes see it (default: this program)")
      ->type_name("FILE");
  sub->add_flag("--allow-idle", options->allow_idle, "Accept a request that leaves GPUs idle");
  for (const auto& setting : slurm::slurm_settings()) {
    auto* option = sub->add_option("--" + setting.name, options->settings[setting.name], setting.help)
                       ->type_name(setting.value)
                       ->allow_extra_args(false);
    if (!setting.list) option->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    option->group("Resources and environment (also in the site file)");
  }
  sub->footer(
      "Examples:\n"
      "  lacuna sbatch sweeps/mini.yaml --out results/mini --nodes 2 --gpus-per-node 4 --time 12:00:00 "
      "--submit\n"
      "  lacuna sbatch --cancel results/mini");
  sub->callback([options] {
    if (!options->cancel.empty()) {
      LACUNA_REQUIRE(options->sweep.empty() && !options->submit,
                     "--cancel stands alone: lacuna sbatch --cancel DIR");
      return run_cancel(options->cancel);
    }
    LACUNA_REQUIRE(!options->sweep.empty(),
                   "lacuna sbatch: which sweep? lacuna sbatch SWEEP --out DIR (see --help)");
    LACUNA_REQUIRE(!options->out.empty(),
                   "lacuna sbatch: --out DIR is needed: the folder for results and scripts");
    run_sbatch(*options);
  });
}

}  // namespace lacuna
