// lacuna status
#include "runner/status.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <thread>

#include "core/json.h"
#include "runner/commands/commands.h"

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
      "Reads the journals only: works while the run is going, from any machine that sees the folder.");
  verb->add_option("folder", given->folder, "Folder of the run")->required();
  verb->add_flag("--watch,-w", given->watch, "Show it again and again until the run is complete");
  verb->add_option("--every", given->every, "Seconds between two looks with --watch")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  verb->add_flag("--json", given->json, "As JSON");
  verb->callback([given] {
    StatusReader reader(given->folder);
    while (true) {
      const Status status = reader.read();
      const std::string text =
          given->json ? to_json(status).dump(given->watch ? -1 : 1) + "\n" : to_text(status);
      if (given->watch && !given->json && ::isatty(STDOUT_FILENO) == 1) std::fputs("\x1b[H\x1b[2J", stdout);
      std::fputs(text.c_str(), stdout);
      std::fflush(stdout);
      if (!given->watch || status.total.pending() == 0) return;
      std::this_thread::sleep_for(std::chrono::duration<double>(given->every));
    }
  });
}

}  // namespace lacuna
