// lacuna status
#include "runner/status.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <thread>

#include "core/json.h"
#include "runner/commands/commands.h"
#include "slurm/job_status.h"

namespace lacuna {

void add_status_command(CLI::App& app) {
  struct Given {
    std::string folder;
    bool watch = false, json = false;
    double every = 5;
  };
  const auto given = std::make_shared<Given>();
  CLI::App* verb = app.add_subcommand(
      "status", "How far a run is, by model, task, length and strategy, and what failed and why");
  verb->footer(
      "Examples:\n  lacuna status results/demo\n  lacuna status results/demo --json\n"
      "Reads the journals, and asks Slurm about jobs of `lacuna sbatch`: works while the run is going, from "
      "any machine that sees the folder.");
  verb->add_option("folder", given->folder, "Folder of the run")->required();
  verb->add_flag("--watch,-w", given->watch, "Show it again and again until the run is complete");
  verb->add_option("--every", given->every, "Seconds between two looks with --watch")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  verb->add_flag("--json", given->json, "As JSON");
  verb->callback([given] {
    slurm::SystemCommands commands(10);
    std::optional<StatusReader> reader;  // none while a submitted job still waits for its first start
    while (true) {
      const auto jobs = slurm::job_statuses(given->folder, commands);
      const bool waits = !jobs.empty() && !std::filesystem::exists(RunPaths(given->folder).sweep());
      if (!reader && !waits) reader.emplace(given->folder);
      std::optional<Status> status;
      if (reader) status = reader->read();
      std::string text;
      if (given->json) {
        nlohmann::json json = status ? to_json(*status) : nlohmann::json::object();
        json["slurm"] = slurm::to_json(jobs);
        text = json.dump(given->watch ? -1 : 1) + "\n";
      } else {
        text = (status ? to_text(*status) : "nothing has run yet\n") + slurm::format_job_statuses(jobs);
      }
      if (given->watch && !given->json && ::isatty(STDOUT_FILENO) == 1) std::fputs("\x1b[H\x1b[2J", stdout);
      std::fputs(text.c_str(), stdout);
      std::fflush(stdout);
      if (!given->watch || (status && status->total.pending() == 0)) return;
      std::this_thread::sleep_for(std::chrono::duration<double>(given->every));
    }
  });
}

}  // namespace lacuna
