// lacuna sbatch: a batch script for a sweep, checked against the study and the cluster, and submitted if
// asked.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "runner/commands/commands.h"
#include "runner/preflight.h"
#include "runner/run_folder.h"
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

/// The speed on the data sheet of the GPUs asked for: what is computed from it is never too long.
HardwareProfile datasheet_profile(const std::string& gpu_type) {
  for (const auto& profile : datasheet_profiles()) {
    const std::string family = profile.name.substr(0, profile.name.find('-'));
    if (!gpu_type.empty() && gpu_type.find(family) != std::string::npos) return profile;
  }
  return datasheet_profiles().front();
}

/// Says which cells of a model cannot run; throws when none of them can.
void report_problems(const Sweep& sweep, const Grid& grid, const Preflight& preflight) {
  for (std::size_t model = 0; model < sweep.models.size(); ++model) {
    std::size_t cells = 0, broken = 0;
    std::string first;
    for (std::size_t cell = 0; cell < grid.cells.size(); ++cell) {
      if (grid.cells[cell].model != static_cast<int>(model)) continue;
      ++cells;
      if (preflight.can_run(static_cast<int>(cell))) continue;
      if (broken++ == 0) first = preflight.cell_problem[cell];
    }
    const std::string& name = sweep.models[model].name;
    LACUNA_REQUIRE(cells == 0 || broken < cells, "model '{}' cannot run: {}", name, first);
    if (broken > 0) log::warning("model '{}': {} of {} cells cannot run: {}", name, broken, cells, first);
  }
}

/// What of the sweep is left to run, model by model. `out` may hold finished samples already.
slurm::StudyDemand study_demand(const Sweep& sweep, const slurm::SlurmOptions& options,
                                const std::string& out) {
  Grid grid = expand(sweep);
  const bool on_cpu = std::ranges::all_of(sweep.models, [](const auto& m) { return m.device == "cpu"; });
  // Degrees beyond the ranks are judged with the request, which can say what would be better.
  int widest = options.ranks();
  for (const auto& model : sweep.models) widest = std::max(widest, model.tp);
  const Hardware hardware{
      .device = on_cpu ? Device::kCpu : Device::kCuda,
      .ranks = widest,
      .memory = static_cast<std::int64_t>(options.gpu_memory_gib.value_or(0) * 1024 * 1024 * 1024),
      .profile = datasheet_profile(options.gpu_type)};
  const auto preflight = check_sweep(sweep, grid, real_model_services(), hardware, false);
  report_problems(sweep, grid, preflight);

  const RunPaths paths(out);
  std::vector<std::string> folders;
  if (std::filesystem::exists(paths.sweep())) {
    const auto changes = incompatible_changes(load_run_sweep(paths), sweep);
    LACUNA_REQUIRE(changes.empty(), "{}: holds results of another sweep ({}); use another --out", out,
                   fmt::join(changes, "; "));
    folders.push_back(out);
  }
  RunState state(real_file_system(), grid, folders);
  state.poll();

  slurm::StudyDemand demand;
  demand.times_known = !on_cpu;
  for (std::size_t m = 0; m < sweep.models.size(); ++m) {
    const auto& shape = preflight.models[m].shape;
    const int tp = sweep.models[m].tp;
    const double load = shape ? load_seconds(*shape, tp, element_bytes(hardware.device)) : 0;
    demand.models.push_back({sweep.models[m].name, tp, load, {}});
  }
  for (std::size_t g = 0; g < grid.groups.size(); ++g) {
    const JobGroup& group = grid.groups[g];
    const JobCost& cost = preflight.costs[g];
    // Jobs of which some cells are done already share less and take less long.
    std::map<std::int64_t, long long> jobs_missing;
    for (int sample = 0; sample < grid.cells[static_cast<std::size_t>(group.cells.front())].samples;
         ++sample) {
      const auto missing = std::ranges::count_if(group.cells, [&](int cell) {
        return state.state(cell, sample) == SampleState::kPending && !state.cell_failed(cell) &&
               preflight.can_run(cell);
      });
      if (missing == 0) continue;
      demand.samples += missing;
      ++jobs_missing[missing];
    }
    for (const auto& [missing, jobs] : jobs_missing) {
      const double share = static_cast<double>(missing) / static_cast<double>(group.cells.size());
      demand.models[static_cast<std::size_t>(group.model)].jobs.push_back(
          {jobs, cost.prefill_seconds + share * (cost.seconds - cost.prefill_seconds)});
    }
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

void report_plan(const slurm::SlurmOptions& options, const slurm::StudyDemand& demand) {
  long long jobs = 0;
  for (const auto& model : demand.models) jobs += model.job_count();
  std::string text =
      fmt::format("{} samples in {} jobs on {} GPUs", demand.samples, jobs, options.ranks() * options.array);
  if (demand.times_known) {
    const double seconds =
        3600 * slurm::forecast(demand, options.nodes, options.gpus_per_node, options.array).hours;
    text += fmt::format(", at least {} at the GPUs' peak speed", format_seconds(seconds));
    const auto limit = slurm::parse_time(options.time, "--time");
    if (limit && seconds > static_cast<double>(*limit)) {
      text += fmt::format(": {:.0f} starts of {} or more, one after the other by themselves",
                          std::ceil(seconds / static_cast<double>(*limit)), options.time);
    }
  }
  log::info("{}", text);
}

void run_cancel(const std::string& dir) {
  LACUNA_REQUIRE(std::filesystem::exists(dir), "--cancel {}: no such folder", dir);
  slurm::SystemCommands commands;
  slurm::Cluster cluster(commands);
  LACUNA_REQUIRE(cluster.available(), "--cancel: no Slurm answers on this machine (sbatch --version fails)");
  const auto ids = slurm::cancel(cluster, std::filesystem::canonical(dir).string());
  if (ids.empty()) log::info("{}: no job of this folder waits or runs", dir);
  for (const auto& id : ids) fmt::print("{}\n", id);
}

void run_sbatch(Options given) {
  slurm::SlurmOptions options = read_options(given);
  const Sweep sweep = load_sweep(given.sweep, given.overrides);
  check_models(sweep);
  if (given.out.empty()) given.out = "results/" + sweep.name;
  slurm::SystemCommands commands;
  slurm::Cluster cluster(commands);
  const bool here = cluster.available();
  LACUNA_REQUIRE(here || !given.submit,
                 "--submit: no Slurm answers on this machine (sbatch --version fails); use a login node");
  if (here) slurm::check_cluster(options, cluster.nodes());
  const auto demand = study_demand(sweep, options, given.out);
  for (const auto& remark : slurm::check_study(options, demand, given.allow_idle)) log::warning("{}", remark);
  report_plan(options, demand);

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
    log::warning("not checked against a cluster: no Slurm answers on this machine (sbatch --version fails)");
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
  sub->add_option("--out", options->out,
                  "Folder for the results; the scripts go to its slurm/ (default: results/NAME of the sweep)")
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
    run_sbatch(*options);
  });
}

}  // namespace lacuna
