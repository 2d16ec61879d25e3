// lacuna calibrate: runs a sweep's own prompts through its model until each data-dependent prefill method
// computes the wanted shares of the causal cells, and writes a calibration file for sweeps.
#include "attention/calibrate.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>

#include "attention/budget.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "model/chat.h"
#include "model/engine.h"
#include "model/mpi.h"
#include "runner/commands/commands.h"
#include "sweeps/sweep.h"
#include "tasks/task.h"

namespace lacuna {

namespace {

struct Options {
  std::string sweep, model, out, device = "auto";
  std::vector<std::string> overrides;
  int samples = 1, threads = 0;
};

const SweepModel& choose_model(const Sweep& sweep, const std::string& name) {
  LACUNA_REQUIRE(!name.empty() || sweep.models.size() == 1,
                 "the sweep has {} models; say which one with --model: a calibration is for one model",
                 sweep.models.size());
  for (const SweepModel& model : sweep.models) {
    if (name.empty() || model.name == name) return model;
  }
  throw_usage("the sweep has no model named '{}'", name);
}

/// The first samples of every task of the sweep at one length.
std::vector<std::vector<TokenId>> make_prompts(const Sweep& sweep, const SweepModel& model,
                                               const Tokenizer& tokenizer, std::int64_t length, int samples) {
  const ChatFormat chat = model.chat == "auto" ? detect_chat_format(model.path)
                                               : parse_chat_format(model.chat, "model " + model.name);
  std::vector<std::vector<TokenId>> prompts;
  for (const SweepTask& task : sweep.tasks) {
    Json params = task.params.to_json();
    if (!task.data.empty()) params["data"] = task.data;
    const auto made = make_task(
        task.task, Params::parse(find_task(task.task, "sweep").params, params, "task " + task.name));
    for (int i = 0; i < samples; ++i) {
      prompts.push_back(made->generate({.tokenizer = &tokenizer,
                                        .chat = chat,
                                        .target_tokens = length,
                                        .seed = sweep.seed,
                                        .index = static_cast<std::uint64_t>(i)})
                            .ids);
    }
  }
  LACUNA_REQUIRE(!prompts.empty(), "the sweep has no tasks to take prompts from");
  return prompts;
}

/// Mean over the prompts of the measured density, layers that a strategy applies to.
double measure(Engine& engine, Communicator& team, std::span<const std::vector<TokenId>> prompts,
               const MethodSpec& prefill, std::uint64_t seed) {
  const StrategySpec dense = parse_strategy(nullptr, "calibrate");
  const Variant variant{.evict = dense.evict, .decode = dense.decode, .sampling = {.max_new_tokens = 1}};
  double density = 0;
  for (const auto& prompt : prompts) {
    const JobResult job = engine.run({.prompt = prompt,
                                      .prefill = prefill,
                                      .variants = std::span(&variant, 1),
                                      .seed = seed,
                                      .on_token = {},
                                      .cancelled = {}});
    // Every rank must take the same turn in the search: rank 0 decides, over the cells of all ranks.
    double cells[2] = {job.prefill_sparse.visited_cells, job.prefill_sparse.causal_cells};
    std::vector<double> all(2 * static_cast<std::size_t>(team.size()));
    team.all_gather(cells, all.data(), sizeof(cells));
    double visited = 0, causal = 0;
    for (std::size_t r = 0; r < all.size(); r += 2) {
      visited += all[r];
      causal += all[r + 1];
    }
    density += visited / causal / static_cast<double>(prompts.size());
  }
  return density;
}

/// Wanted densities per data-dependent method at one length.
std::map<std::string, std::pair<MethodSpec, std::set<double>>> wanted(const Sweep& sweep,
                                                                      const SweepModel& model,
                                                                      std::int64_t length) {
  std::map<std::string, std::pair<MethodSpec, std::set<double>>> methods;
  for (const SweepStrategy& strategy : sweep.strategies) {
    const bool here =
        (strategy.models.empty() ||
         std::ranges::find(strategy.models, model.name) != strategy.models.end()) &&
        (strategy.lengths.empty() || std::ranges::find(strategy.lengths, length) != strategy.lengths.end());
    if (!here || !needs_calibration(strategy.base.prefill)) continue;
    const MethodSpec& prefill = strategy.base.prefill;
    for (const Budget& level : strategy.levels) {
      if (level.kind != Budget::Kind::kSparsity || level.value == 0) continue;
      methods.try_emplace(prefill.method, prefill, std::set<double>())
          .first->second.second.insert(1 - level.value);
    }
  }
  return methods;
}

Json calibrate(const Options& options, const Sweep& sweep, const SweepModel& model, const MpiSession& session,
               Communicator& team) {
  ThreadPool threads(options.threads > 0 ? options.threads : std::max(1, default_threads() / session.size()));
  const Tokenizer tokenizer = Tokenizer::load(model.path);
  Json file = {
      {"source", fmt::format("lacuna calibrate, {}, {} prompts per task", model.name, options.samples)},
      {"prefill", Json::object()}};
  std::unique_ptr<Engine> engine;
  std::optional<std::string> loaded_rope;
  for (const std::int64_t length : model.lengths.empty() ? sweep.lengths : model.lengths) {
    const auto methods = wanted(sweep, model, length);
    if (methods.empty()) continue;
    const std::string rope = rope_for(model, length, sweep.max_new_tokens);
    if (!engine || loaded_rope != rope) {
      engine.reset();
      EngineOptions engine_options{.folder = model.path,
                                   .device = options.device == "cuda" ? Device::kCuda : Device::kCpu,
                                   .rope_override = {}};
      if (!rope.empty()) engine_options.rope_override = rope;
      engine = Engine::load(engine_options, team, threads);
      loaded_rope = rope;
    }
    const auto prompts = make_prompts(sweep, model, tokenizer, length, options.samples);
    for (const auto& [name, target] : methods) {
      const std::vector<double> densities(target.second.begin(), target.second.end());
      int runs = 0;
      const auto points =
          calibrate_method(target.first, densities, length, [&, &method = name](const MethodSpec& spec) {
            const double density = measure(*engine, team, prompts, spec, sweep.seed);
            if (session.rank() == 0) {
              log::info("{} at {} tokens: {} computes {:.4f}", method, length, spec.params.to_json().dump(),
                        density);
            }
            ++runs;
            return density;
          });
      file["prefill"][name].push_back(calibration_entry(points, length));
      if (session.rank() == 0)
        log::info("{} at {} tokens: {} runs over {} prompts", name, length, runs, prompts.size());
    }
  }
  LACUNA_REQUIRE(
      !file["prefill"].empty(),
      "nothing to calibrate: the sweep has no sparsity levels of vertical_slash, flexprefill, xattention or "
      "oracle_top_p for model {}",
      model.name);
  return file;
}

void run(const Options& options) {
  const MpiSession session;
  log::configure(session.rank(), session.size());
  std::unique_ptr<Communicator> team;
  if (session.size() > 1)
    team = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD);
  else
    team = std::make_unique<SelfCommunicator>();
  run_together(session, [&] {
    const Sweep sweep = load_sweep(options.sweep, options.overrides);
    const Json file = calibrate(options, sweep, choose_model(sweep, options.model), session, *team);
    if (session.rank() != 0) return;
    // JSON is YAML: the file can be named in a sweep's `calibration`.
    write_file_atomically(options.out, file.dump(1) + "\n");
    std::printf("%s: written; use it in a sweep with `calibration: %s`\n", options.out.c_str(),
                options.out.c_str());
  });
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand("calibrate",
                                      "Finds parameters that reach a sweep's sparsity levels on its own "
                                      "prompts and writes a calibration file");
  verb->add_option("sweep", options->sweep,
                   "Sweep file: its model, tasks, lengths, strategies and sparsity levels are used")
      ->required();
  verb->add_option("overrides", options->overrides, "key=value, as for run");
  verb->add_option("--out", options->out, "The calibration file to write")->required();
  verb->add_option("--model", options->model, "Name of the sweep's model; needed when it has several");
  verb->add_option("--samples", options->samples, "Prompts per task and length")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  verb->add_option("--device", options->device, "auto (cpu), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--threads", options->threads, "Threads per rank; 0: the cores shared among the ranks")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  verb->footer("Example: lacuna calibrate sweep.yaml --out calibration.yaml --samples 2");
  verb->callback([options] { run(*options); });
}

}  // namespace lacuna
