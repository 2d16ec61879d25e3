// lacuna run, lacuna retry.
#include <CLI/CLI.hpp>
#include <fstream>

#include "core/error.h"
#include "core/text.h"
#include "runner/commands/commands.h"
#include "runner/commands/run_verbs.h"
#include "runner/run_sweep.h"

namespace lacuna {

namespace {

/// This process's command line as typed, for provenance.
std::vector<std::string> own_command() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::vector<std::string> words = split(text, '\0');
  if (!words.empty() && words.back().empty()) words.pop_back();
  return words;
}

/// "2/8": shard 2 of 8, counted from 0.
void parse_shard(const std::string& text, RunOptions& options) {
  if (text.empty()) return;
  const auto parts = split(text, '/');
  LACUNA_REQUIRE(parts.size() == 2, "--shard {}: expected i/n, for instance 0/8", text);
  options.shard = static_cast<int>(parse_count(parts[0], "--shard"));
  options.shards = static_cast<int>(parse_count(parts[1], "--shard"));
  LACUNA_REQUIRE(options.shards >= 1 && options.shard < options.shards, "--shard {}: i goes from 0 to n-1",
                 text);
}

struct Given {
  RunOptions options;
  std::string shard;
  bool one_by_one = false;
};

void add_common(CLI::App& verb, const std::shared_ptr<Given>& given) {
  verb.add_option("--device", given->options.device, "auto (GPU where there is one), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb.add_flag("--share-gpu", given->options.share_gpu,
                "Let several ranks use one GPU, each with its share of the memory");
  verb.add_option("--profile", given->options.profile,
                  "How fast a rank is, for the order of jobs: a file that `lacuna bench --profile` wrote, or "
                  "h100-peak, h200-peak, a100-peak");
  verb.add_option("--results-every", given->options.results_seconds,
                  "Seconds between rebuilds of results.h5 while running")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_flag("--verbose,-v", given->options.verbose, "Progress also says what each team of ranks is at");
  verb.add_option("--progress-every", given->options.progress_seconds,
                  "Seconds between progress lines where there is no terminal")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  verb.add_flag("--one-by-one", given->one_by_one,
                "Run every cell in a job of its own, to measure what sharing prefills saves");
}

void run_and_exit(Given& given, const ModelServices& services) {
  given.options.share_prefills = !given.one_by_one;
  given.options.command = own_command();
  const int code = run_sweep(given.options, services);
  if (code != 0) throw CLI::RuntimeError(code);
}

}  // namespace

void add_run_command(CLI::App& app, const ModelServices& services) {
  const auto given = std::make_shared<Given>();
  CLI::App* verb = app.add_subcommand("run", "Run a sweep; a run that was stopped goes on where it was");
  verb->footer(
      "Examples:\n  lacuna run sweeps/demo.yaml --out results/demo\n"
      "  mpirun -np 8 lacuna run sweeps/paper-v1.yaml --out results/paper samples=10 lengths=16384,32768\n"
      "Exit codes: 0 all done, 3 some samples failed, 75 stopped by a signal (run again to go on), 2 wrong "
      "input.");
  verb->add_option("sweep", given->options.sweep, "Sweep file (docs/sweeps.md)")->required();
  verb->add_option("overrides", given->options.overrides,
                   "key=value, for instance samples=10 or models.0.path=/data/Qwen");
  verb->add_option("--out,-o", given->options.out, "Folder for journal and results")->required();
  verb->add_option("--shard", given->shard, "i/n: only share i of n of the jobs; shares may use one folder");
  add_common(*verb, given);
  verb->callback([given, services] {
    parse_shard(given->shard, given->options);
    run_and_exit(*given, services);
  });
}

void add_retry_command(CLI::App& app, const ModelServices& services) {
  const auto given = std::make_shared<Given>();
  CLI::App* verb =
      app.add_subcommand("retry", "Run again what failed in a run folder, and whatever is still to do");
  verb->footer("Example:\n  lacuna retry results/demo");
  verb->add_option("folder", given->options.out, "Folder of the run")->required();
  add_common(*verb, given);
  verb->callback([given, services] {
    given->options.retry = true;
    run_and_exit(*given, services);
  });
}

void add_run_command(CLI::App& app) { add_run_command(app, real_model_services()); }
void add_retry_command(CLI::App& app) { add_retry_command(app, real_model_services()); }

}  // namespace lacuna
