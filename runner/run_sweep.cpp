#include "runner/run_sweep.h"

#include <mpi.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/text.h"
#include "model/mpi.h"
#include "runner/build_info.h"
#include "runner/coordinator.h"
#include "runner/launch.h"
#include "runner/preflight.h"
#include "runner/signals.h"
#include "runner/store.h"
#include "runner/worker.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

/// Builds results.h5 again and again on a thread of its own, from what is in the journals.
class ResultsThread {
 public:
  ResultsThread(FileSystem& files, const Sweep& sweep, const Grid& grid, RunPaths paths, double every)
      : files_(files),
        sweep_(sweep),
        grid_(grid),
        paths_(std::move(paths)),
        state_(files, grid, {paths_.out}),
        every_(every) {
    thread_ = std::thread([this] { loop(); });
  }
  ~ResultsThread() { stop(); }
  ResultsThread(const ResultsThread&) = delete;
  ResultsThread& operator=(const ResultsThread&) = delete;

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  /// After stop(): the last word. Throws when the file cannot be written.
  const RunState& finish() {
    state_.poll();
    build();
    return state_;
  }

 private:
  void build() {
    write_results({&sweep_, &grid_, &state_, read_launches(files_, {paths_.out})}, paths_.results());
  }
  void loop() {
    double pause = every_;
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, std::chrono::duration<double>(pause), [&] { return stopped_; })) {
      lock.unlock();
      const auto begin = std::chrono::steady_clock::now();
      try {
        state_.poll();
        build();
      } catch (const Error& e) {
        // The journal is the truth; the file can be built later.
        log::warning("{}; the journal is complete and results.h5 will be tried again", e.what());
      }
      // A large file costs at most a tenth of this thread's time.
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      pause = std::max(every_, 10 * took);
      lock.lock();
    }
  }

  FileSystem& files_;
  const Sweep& sweep_;
  const Grid& grid_;
  RunPaths paths_;
  RunState state_;
  double every_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopped_ = false;
  std::thread thread_;
};

/// Refuses to mix a changed sweep with old results; writes OUT/sweep.json.
void settle_folder(const RunPaths& paths, const Sweep& sweep) {
  real_file_system().make_folder(paths.out);
  real_file_system().make_folder(paths.journal());
  real_file_system().make_folder(paths.launches());
  if (std::filesystem::exists(paths.sweep())) {
    const auto changes = incompatible_changes(load_run_sweep(paths), sweep);
    std::string text;
    for (const auto& change : changes) text += "\n  " + change;
    LACUNA_REQUIRE(changes.empty(),
                   "{}: this folder was run with another sweep; use another --out or undo these changes:{}",
                   paths.out, text);
  } else {
    LACUNA_REQUIRE(
        real_file_system().list(paths.journal()).empty(),
        "{}: there are journals but no sweep.json, so they cannot be understood; use another --out",
        paths.out);
  }
  write_file_atomically(paths.sweep(), sweep.to_json().dump(1) + "\n");
}

/// One fixed share of a sweep's jobs per shard; the same whatever is done already and however memory splits
/// the jobs.
bool in_shard(const Grid& grid, const JobGroup& group, std::int32_t sample, const RunOptions& options) {
  if (options.shards <= 1) return true;
  const StrategySpec& spec = grid.specs[at(group.prefill_spec)];
  const std::string name = fmt::format("{} {} {} {} {} {}", group.model, group.task, group.length,
                                       spec.prefill.method, spec.prefill.params.to_json().dump(), sample);
  return static_cast<int>(hash64(name) % static_cast<std::uint64_t>(options.shards)) == options.shard;
}

/// "-s2of8": a shard's launches, and so its journals, can be told from the others' by their names. The batch
/// script measures the progress of one shard by that.
std::string shard_suffix(const RunOptions& options) {
  return options.shards > 1 ? fmt::format("-s{}of{}", options.shard, options.shards) : "";
}

/// The jobs that are left, in the scheduler's terms. Samples that miss the same cells stay in one group.
PlannedJobs plan_jobs(const Sweep& sweep, const Grid& grid, const Preflight& preflight, const RunState& state,
                      const Hardware& hardware, const RunOptions& options) {
  PlannedJobs jobs;
  for (const auto& load : grid.loads) {
    const SweepModel& model = sweep.models[at(load.model)];
    const auto& shape = preflight.models[at(load.model)].shape;
    jobs.models.push_back(
        {model.tp, shape ? load_seconds(*shape, model.tp, element_bytes(hardware.device), hardware.profile) : 0});
  }
  for (std::size_t g = 0; g < grid.groups.size(); ++g) {
    const JobGroup& group = grid.groups[g];
    std::map<std::vector<std::int32_t>, std::vector<std::int32_t>> samples_of;
    const int samples = grid.cells[at(group.cells.front())].samples;
    for (std::int32_t sample = 0; sample < samples; ++sample) {
      if (!in_shard(grid, group, sample, options)) continue;
      std::vector<std::int32_t> missing;
      for (const int cell : group.cells) {
        if (state.state(cell, sample) == SampleState::kPending && !state.cell_failed(cell))
          missing.push_back(cell);
      }
      if (!missing.empty()) samples_of[std::move(missing)].push_back(sample);
    }
    for (auto& [cells, list] : samples_of) {
      const double share = static_cast<double>(cells.size()) / static_cast<double>(group.cells.size());
      const JobCost& cost = preflight.costs[g];
      jobs.groups.push_back({group.load, cost.prefill_seconds + share * (cost.seconds - cost.prefill_seconds),
                             cost.memory, std::move(list)});
      jobs.cells.push_back(cells);
    }
  }
  return jobs;
}

/// Newest facts of each model in earlier launches.
Json known_models(const Json& launches) {
  Json known = Json::object();
  for (const auto& launch : launches) {
    if (!launch.contains("models") || !launch["models"].is_object()) continue;
    for (const auto& [name, facts] : launch["models"].items()) known[name] = facts;
  }
  return known;
}

/// `wanted`, or for "auto" the one device that all models of the sweep ask for, if they do.
std::string device_of(const Sweep& sweep, const std::string& wanted) {
  if (wanted != "auto" || sweep.models.empty()) return wanted;
  const std::string& first = sweep.models.front().device;
  return std::ranges::all_of(sweep.models, [&](const SweepModel& m) { return m.device == first; }) ? first
                                                                                                   : wanted;
}

/// What all ranks must agree on before work begins; travels as JSON.
struct Setup {
  Json sweep;
  std::string out, launch;
  int attempt = 0;
  Json known;
  bool share_prefills = true;
};

/// Rank 0 before and after the work.
class Head {
 public:
  Head(const RunOptions& options, const ModelServices& services, Transport& transport)
      : options_(options),
        services_(services),
        transport_(transport),
        paths_(options.out),
        launch_(new_launch_name() + shard_suffix(options)) {}

  /// Reads the sweep, claims the folder. Throws kUsage.
  void open() {
    const Sweep given =
        options_.sweep.empty() ? load_run_sweep(paths_) : load_sweep(options_.sweep, options_.overrides);
    // In its canonical form, exactly as the other ranks will read it.
    sweep_ = parse_sweep(Document::parse(given.to_json().dump(), "sweep.json"));
    grid_ = expand(sweep_, {.share_prefills = options_.share_prefills});
    settle_folder(paths_, sweep_);
    const std::string shard =
        options_.shards > 1 ? fmt::format("{}of{}", options_.shard, options_.shards) : "";
    lock_ = std::make_unique<FolderLock>(paths_, shard, launch_);
    if (options_.retry) {
      real_file_system().make_folder(paths_.retries());
      write_file_atomically(paths_.retries() + "/" + launch_,
                            "everything that failed before this launch is run again\n");
    }
    std::error_code ignored;
    std::filesystem::remove(paths_.complete(), ignored);
    std::filesystem::remove(paths_.complete(options_.shard, options_.shards), ignored);
    state_ = std::make_unique<RunState>(real_file_system(), grid_, std::vector<std::string>{paths_.out});
    state_->poll();
    for (const auto& issue : state_->issues())
      log::warning("journal {}:{}: {}", issue.file, issue.line, issue.what);
    if (state_->duplicates() > 0)
      log::warning("{} duplicate records in the journals are ignored", state_->duplicates());
    for (const auto& conflict : state_->conflicts())
      log::warning("two results for one sample: {}; the first counts", conflict);
  }

  Setup setup() const {
    return {sweep_.to_json(),
            options_.out,
            launch_,
            state_->attempt(),
            known_models(read_launches(real_file_system(), {paths_.out})),
            options_.share_prefills};
  }

  /// Checks everything that can be known beforehand and lays out the jobs.
  void prepare(const std::vector<RankFacts>& ranks) {
    Hardware hardware{
        .device = ranks[0].device,
        .ranks = static_cast<int>(ranks.size()),
        .memory = ranks[0].memory,
        .profile = choose_profile(options_.profile, ranks[0].device)};
    std::map<std::string, int> nodes;
    Json hosts = Json::array();
    for (const auto& rank : ranks) {
      LACUNA_REQUIRE(rank.device == hardware.device,
                     "{} runs on {}, {} on {}: all ranks must use one kind; say --device", ranks[0].host,
                     name_of(hardware.device), rank.host, name_of(rank.device));
      hardware.memory = std::min(hardware.memory, rank.memory);
      const auto [node, is_new] = nodes.try_emplace(rank.host, static_cast<int>(nodes.size()));
      scheduler_ranks_.push_back({node->second, rank.memory});
      hosts.push_back(to_json(rank));
    }
    preflight_ = check_sweep(sweep_, grid_, services_, hardware, false);
    record_problems();
    jobs_ = plan_jobs(sweep_, grid_, preflight_, *state_, hardware, options_);
    launch_file_ = std::make_unique<LaunchFile>(paths_.launches() + "/" + launch_ + ".json",
                                                Json{{"launch", launch_},
                                                     {"started", now_seconds()},
                                                     {"program_version", LACUNA_VERSION},
                                                     {"git_commit", git_commit()},
                                                     {"versions", library_versions()},
                                                     {"command", options_.command},
                                                     {"sweep_hash", sweep_.hash()},
                                                     {"seed", sweep_.seed},
                                                     {"attempt", state_->attempt()},
                                                     {"shard", {options_.shard, options_.shards}},
                                                     {"ranks", hosts},
                                                     {"data", data_fingerprints()},
                                                     {"models", Json::object()},
                                                     {"loads", Json::array()}});
    launch_file_->write();
    std::int64_t pending = 0, jobs = 0;
    for (std::size_t g = 0; g < jobs_.groups.size(); ++g) {
      jobs += static_cast<std::int64_t>(jobs_.groups[g].samples.size());
      pending += static_cast<std::int64_t>(jobs_.groups[g].samples.size() * jobs_.cells[g].size());
    }
    const auto counts = state_->counts();
    log::info("{}: {} cells, {} samples: {} done, {} failed, {} to do in {} jobs on {} rank{} of {} host{}",
              sweep_.name, grid_.cells.size(), counts.total, counts.ok, counts.failed, pending, jobs,
              ranks.size(), ranks.size() == 1 ? "" : "s", nodes.size(), nodes.size() == 1 ? "" : "s");
  }

  /// Works as a rank too, beside the coordinator's thread.
  void work(const WorkerContext& context) {
    ResultsThread results(real_file_system(), sweep_, grid_, paths_, options_.results_seconds);
    const auto endpoint = transport_.coordinator_endpoint();
    const auto counts = state_->counts();
    Progress progress(counts.total, counts.ok, counts.failed, options_.progress_seconds);
    TeamBoard board(sweep_, grid_, jobs_.cells);
    JournalWriter failures(real_file_system(), paths_.journal(), launch_ + "-dropped.jsonl");
    Coordinator coordinator(*endpoint, grid_, jobs_, scheduler_ranks_, failures, state_->attempt(),
                            *launch_file_, progress, options_.verbose ? &board : nullptr);
    std::exception_ptr failure;
    std::thread thread([&] {
      try {
        coordinator.run();
      } catch (...) {
        failure = std::current_exception();
      }
    });
    try {
      serve(context);
    } catch (...) {
      coordinator.abandon();
      thread.join();
      throw;
    }
    thread.join();
    results.stop();
    if (failure) std::rethrow_exception(failure);
    interrupted_ = coordinator.interrupted();
    finish(results.finish());
  }

  int exit_code() const { return exit_code_; }
  const Grid& grid() const { return grid_; }
  const Sweep& sweep() const { return sweep_; }

 private:
  static double now_seconds() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
  Json data_fingerprints() const {
    Json data = Json::object();
    for (const auto& task : sweep_.tasks) {
      const Json params = task.params.to_json();
      const std::string path =
          params.contains("data") && params["data"].is_string() ? params["data"].get<std::string>() : "";
      if (!path.empty() && std::filesystem::is_regular_file(path))
        data[task.name] = {{"path", path}, {"xxh3", hash_file(path)}};
    }
    const Json launches = read_launches(real_file_system(), {paths_.out});
    for (const auto& launch : launches) {
      if (!launch.contains("data") || !launch["data"].is_object()) continue;
      for (const auto& [name, before] : launch["data"].items()) {
        if (!data.contains(name)) continue;
        LACUNA_REQUIRE(
            before.value("xxh3", "") == data[name]["xxh3"].get<std::string>(),
            "task {}: its data file {} is not the one of earlier launches into {}; use another --out", name,
            data[name]["path"].get<std::string>(), paths_.out);
      }
    }
    return data;
  }

  /// Cells that cannot run fail now, with their reason.
  void record_problems() {
    std::vector<SampleRecord> records;
    std::map<std::string, int> reasons;
    for (std::size_t i = 0; i < grid_.cells.size(); ++i) {
      const int cell = static_cast<int>(i);
      if (preflight_.can_run(cell) || state_->cell_failed(cell) || state_->counts(cell).pending() == 0)
        continue;
      records.push_back(cell_failure(grid_.cells[i], preflight_.cell_problem[i], state_->attempt()));
      ++reasons[preflight_.cell_problem[i]];
    }
    for (const auto& [reason, cells] : reasons)
      log::warning("{} cell{} cannot run: {}", cells, cells == 1 ? "" : "s", reason);
    JournalWriter(real_file_system(), paths_.journal(), launch_ + "-checks.jsonl").append(records);
    state_->poll();
  }

  /// Nothing is pending of what this shard has to do.
  bool share_is_done(const RunState& state) const {
    for (const auto& group : grid_.groups) {
      for (const int cell : group.cells) {
        for (int sample = 0; sample < grid_.cells[at(cell)].samples; ++sample) {
          if (in_shard(grid_, group, sample, options_) && !state.cell_failed(cell) &&
              state.state(cell, sample) == SampleState::kPending)
            return false;
        }
      }
    }
    return true;
  }

  void finish(const RunState& state) {
    const auto counts = state.counts();
    launch_file_->set("ended", now_seconds());
    launch_file_->set("interrupted", interrupted_);
    launch_file_->write();
    const std::string marker =
        Json{{"sweep", sweep_.name},     {"sweep_hash", sweep_.hash()}, {"samples", counts.total},
             {"ok", counts.ok},          {"failed", counts.failed},     {"launch", launch_},
             {"finished", now_seconds()}}
            .dump(1) +
        "\n";
    if (options_.shards > 1 && share_is_done(state))
      write_file_atomically(paths_.complete(options_.shard, options_.shards), marker);
    if (counts.pending() == 0) write_file_atomically(paths_.complete(), marker);
    exit_code_ = interrupted_ ? kExitInterrupted : counts.failed > 0 ? kExitSomeFailed : kExitDone;
    if (interrupted_ && counts.pending() == 0) exit_code_ = counts.failed > 0 ? kExitSomeFailed : kExitDone;
    log::info("{}: {} of {} samples done, {} failed, {} pending; {}", interrupted_ ? "stopped" : "finished",
              counts.ok, counts.total, counts.failed, counts.pending(), paths_.results());
    if (counts.failed > 0)
      log::info("`lacuna status {0}` shows what failed and why, `lacuna retry {0}` runs it again",
                paths_.out);
  }

  const RunOptions& options_;
  const ModelServices& services_;
  Transport& transport_;
  RunPaths paths_;
  std::string launch_;
  Sweep sweep_;
  Grid grid_;
  std::unique_ptr<FolderLock> lock_;
  std::unique_ptr<RunState> state_;
  std::unique_ptr<LaunchFile> launch_file_;
  std::vector<Scheduler::Rank> scheduler_ranks_;
  Preflight preflight_;
  PlannedJobs jobs_;
  bool interrupted_ = false;
  int exit_code_ = kExitDone;
};

}  // namespace

int run_sweep(const RunOptions& options, const ModelServices& services, Transport& transport) {
  const SignalGuard signals;
  const bool is_head = transport.rank() == 0;
  std::optional<Head> head;
  if (is_head) {
    head.emplace(options, services, transport);
    head->open();
  }
  // Which ranks share a host and which GPUs they see decides devices, threads and memory.
  Json sights = Json::array();
  for (const auto& sight : transport.gather(to_json(look_around(options.device)).dump()))
    sights.push_back(parse_json(sight, "rank"));
  Json plan;
  if (is_head) {
    const Setup setup = head->setup();
    plan = {{"sweep", setup.sweep},
            {"out", setup.out},
            {"launch", setup.launch},
            {"attempt", setup.attempt},
            {"known", setup.known},
            {"sights", sights},
            {"device", device_of(head->sweep(), options.device)}};
  }
  plan = parse_json(transport.broadcast(plan.dump()), "the run's setup");
  std::vector<RankSight> ranks;
  for (const auto& sight : plan["sights"]) ranks.push_back(rank_sight_from(sight));
  const RankFacts facts = claim_device(plan["device"].get<std::string>(),
                                       choose_device(ranks, transport.rank()), options.share_gpu);
  std::vector<RankFacts> all;
  for (const auto& text : transport.gather(to_json(facts).dump()))
    all.push_back(rank_facts_from(parse_json(text, "rank")));

  // Cells and loads are numbered alike on every rank: both come from the same sweep by the same rules.
  std::optional<Sweep> own_sweep;
  std::optional<Grid> own_grid;
  if (is_head) {
    head->prepare(all);
  } else {
    own_sweep = parse_sweep(Document::parse(plan["sweep"].dump(), "sweep.json"));
    own_grid = expand(*own_sweep);
  }
  ThreadPool threads(facts.threads);
  const WorkerContext context{.transport = &transport,
                              .sweep = is_head ? &head->sweep() : &*own_sweep,
                              .grid = is_head ? &head->grid() : &*own_grid,
                              .services = &services,
                              .files = &real_file_system(),
                              .threads = &threads,
                              .rank = facts,
                              .journal = RunPaths(plan["out"].get<std::string>()).journal(),
                              .launch = plan["launch"].get<std::string>(),
                              .attempt = plan["attempt"].get<int>(),
                              .known_models = plan["known"]};
  if (is_head)
    head->work(context);
  else
    serve(context);
  return std::stoi(transport.broadcast(is_head ? std::to_string(head->exit_code()) : ""));
}

int run_sweep(const RunOptions& options, const ModelServices& services) {
  if (!launched_by_mpi()) {
    const auto transport = make_local_transport();
    return run_sweep(options, services, *transport);
  }
  const MpiSession session(MPI_THREAD_MULTIPLE);
  log::configure(session.rank(), session.size());
  const auto transport = make_mpi_transport();
  return run_sweep(options, services, *transport);
}

}  // namespace lacuna
