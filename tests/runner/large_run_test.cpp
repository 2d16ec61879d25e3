// A run folder of a million samples: how long `lacuna status` and building results.h5 take, and how much
// memory.
//   LACUNA_TEST_SAMPLES=1000000  samples in all
//   LACUNA_TEST_KEEP=FOLDER      makes the folder there and leaves it
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "runner/run_folder.h"
#include "sweeps/cells.h"
#include "tests/runner/harness.h"

namespace lacuna::testing {
namespace {

/// What a real sample leaves, with numbers and texts of the usual length.
SampleRecord plausible_record(const Cell& cell, std::int32_t sample, int team, Rng& rng, double finished) {
  SampleRecord r;
  r.cell = cell.key;
  r.sample = sample;
  r.finished = finished;
  r.score = static_cast<double>(rng.below(2));
  r.stopped = 1;
  r.input_tokens = static_cast<std::int32_t>(cell.length) - static_cast<std::int32_t>(rng.below(50));
  r.output_tokens = 10;
  for (double* value :
       {&r.sparsity_computed, &r.sparsity_prefill, &r.sparsity_decode, &r.sparsity_bytes,
        &r.sparsity_resident, &r.tile_efficiency, &r.prefill_s, &r.evict_s, &r.decode_s, &r.index_s}) {
    *value = rng.uniform();
  }
  r.shared = 28;
  r.flops = 1e12 * rng.uniform();
  r.attention_flops = r.flops / 3;
  r.index_flops = 0;
  r.kv_bytes_read = 1e9;
  r.index_bytes_read = 0;
  r.kv_bytes_resident = 1 << 20;
  r.peak_bytes = 1 << 28;
  r.team = team;
  r.seed = rng.next_u64();
  r.prediction = "the answer is 4815162342, and 1123581321";
  r.gold = "4815162342, 1123581321";
  r.answer_or_error = "4815162342, 1123581321";
  return r;
}

/// sweeps/mini.yaml with so many samples per cell that there are `samples` or a few more in all; journals of
/// eight teams in the order in which a run writes them, job by job. Returns the number of samples.
std::int64_t make_run_folder(const std::string& out, std::int64_t samples) {
  const auto cells = static_cast<std::int64_t>(expand(load_sweep("sweeps/mini.yaml")).cells.size());
  const std::int64_t each = (samples + cells - 1) / cells;
  const Sweep sweep = load_sweep("sweeps/mini.yaml", std::vector<std::string>{"samples=" + std::to_string(each)});
  const Grid grid = expand(sweep);
  const RunPaths paths(out);
  std::filesystem::create_directories(paths.journal());
  std::filesystem::create_directories(paths.launches());
  write_file_atomically(paths.sweep(), sweep.to_json().dump(1) + "\n");
  constexpr int kTeams = 8;
  std::vector<std::ofstream> journals;
  for (int team = 0; team < kTeams; ++team)
    journals.emplace_back(fmt::format("{}/20260101T000000-host-1-0000-r{:05d}.jsonl", paths.journal(), team));
  Rng rng(1, stream_id("large_run"));
  std::int64_t job = 0, written = 0;
  for (const auto& group : grid.groups) {
    for (std::int32_t sample = 0; sample < each; ++sample, ++job) {
      const int team = static_cast<int>(job % kTeams);
      for (const int cell : group.cells) {
        journals[static_cast<std::size_t>(team)]
            << to_journal_line(plausible_record(grid.cells[static_cast<std::size_t>(cell)], sample, team, rng,
                                                1.7e9 + 0.01 * static_cast<double>(job)));
        ++written;
      }
    }
  }
  return written;
}

struct Measured {
  int code = -1;
  double seconds = 0;
  double peak_mib = 0;
  std::string output;
};
/// The program as a child: wall time and the largest resident set of any child so far.
Measured measure(const Words& command) {
  const auto begin = std::chrono::steady_clock::now();
  const Ended ended = run(command);
  Measured m{ended.code, 0, 0, ended.output};
  m.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  rusage usage{};
  ::getrusage(RUSAGE_CHILDREN, &usage);
  m.peak_mib = static_cast<double>(usage.ru_maxrss) / 1024;
  return m;
}

TEST(LargeRun, StatusAndResultsOfAMillionSamples) {
  const char* wanted = std::getenv("LACUNA_TEST_SAMPLES");
  const char* keep = std::getenv("LACUNA_TEST_KEEP");
  const Scratch scratch;
  const std::string out = keep != nullptr ? keep : scratch / "out";
  const std::int64_t samples = make_run_folder(out, wanted != nullptr ? std::atoll(wanted) : 1'000'000);
  const std::string program = std::getenv("LACUNA_BIN");

  const Measured status = measure({program, "status", out, "--json"});
  ASSERT_EQ(status.code, 0) << status.output;
  std::printf("%lld samples: status %.2f s, %.0f MiB\n", static_cast<long long>(samples), status.seconds,
              status.peak_mib);
  const Json said = parse_json(status.output, "status");
  EXPECT_EQ(said["samples"]["done"].get<std::int64_t>(), samples);
  EXPECT_EQ(said["samples"]["pending"].get<std::int64_t>(), 0);
  EXPECT_LT(status.seconds, 5.0 * static_cast<double>(samples) / 1e6 + 1);

  const Measured merge = measure({program, "merge", out});
  ASSERT_EQ(merge.code, 0) << merge.output;
  std::printf("results.h5 %.1f s, %.0f MiB\n", merge.seconds, merge.peak_mib);
  EXPECT_EQ(rows(out), samples);
  EXPECT_LT(merge.seconds, 60.0 * static_cast<double>(samples) / 1e6 + 1);
  EXPECT_LT(merge.peak_mib, 400.0 * static_cast<double>(samples) / 1e6 + 100);
}

}  // namespace
}  // namespace lacuna::testing
