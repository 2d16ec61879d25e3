// lacuna merge
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "runner/commands/commands.h"
#include "runner/run_sweep.h"
#include "runner/store.h"

namespace lacuna {

namespace {

/// Every folder must have been run with the same settings; the sweep with the most cells and samples is the
/// one to report by.
Sweep common_sweep(const std::vector<std::string>& folders) {
  Sweep common = load_run_sweep(RunPaths(folders[0]));
  for (std::size_t i = 1; i < folders.size(); ++i) {
    const Sweep other = load_run_sweep(RunPaths(folders[i]));
    if (incompatible_changes(other, common).empty()) continue;
    const auto changes = incompatible_changes(common, other);
    std::string text;
    for (const auto& change : changes) text += "\n  " + change;
    LACUNA_REQUIRE(changes.empty(), "{} and {} were run with different sweeps:{}", folders[0], folders[i],
                   text);
    common = other;
  }
  return common;
}

int merge(const std::vector<std::string>& folders, std::string out) {
  if (out.empty()) {
    LACUNA_REQUIRE(folders.size() == 1, "say with --out where the merged results.h5 is to go");
    out = RunPaths(folders[0]).results();
  } else if (std::filesystem::is_directory(out)) {
    out = RunPaths(out).results();
  }
  const Sweep sweep = common_sweep(folders);
  const Grid grid = expand(sweep);
  RunState state(real_file_system(), grid, folders);
  state.poll();
  for (const auto& issue : state.issues())
    std::fprintf(stderr, "journal %s:%llu: %s\n", issue.file.c_str(),
                 static_cast<unsigned long long>(issue.line), issue.what.c_str());
  for (const auto& conflict : state.conflicts())
    std::fprintf(stderr, "two results for one sample, the first counts: %s\n", conflict.c_str());
  write_results({&sweep, &grid, &state, read_launches(real_file_system(), folders)}, out);
  const auto counts = state.counts();
  fmt::print("{}: {} of {} samples done, {} failed, {} pending; {} duplicates, {} conflicts\n", out,
             counts.ok, counts.total, counts.failed, counts.pending(), state.duplicates(),
             state.conflicts().size());
  return state.conflicts().empty() && counts.failed == 0 ? kExitDone : kExitSomeFailed;
}

}  // namespace

void add_merge_command(CLI::App& app) {
  struct Given {
    std::vector<std::string> folders;
    std::string out;
  };
  const auto given = std::make_shared<Given>();
  CLI::App* verb =
      app.add_subcommand("merge", "Build results.h5 from the journals of one or several run folders");
  verb->footer(
      "Examples:\n  lacuna merge results/demo\n  lacuna merge results/part0 results/part1 --out all.h5\n"
      "Exit codes: 0 merged, 3 merged but some samples failed or contradict each other, 2 wrong input.");
  verb->add_option("folders", given->folders, "Run folders of one sweep")->required();
  verb->add_option("--out,-o", given->out, "File to write; default: results.h5 of the only folder");
  verb->callback([given] {
    if (const int code = merge(given->folders, given->out); code != 0) throw CLI::RuntimeError(code);
  });
}

}  // namespace lacuna
