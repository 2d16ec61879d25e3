// lacuna analyze: from results.h5 to answers, tables and /analysis.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "analysis/analysis.h"
#include "analysis/score_overview.h"
#include "core/error.h"
#include "core/log.h"
#include "runner/commands/analysis_arguments.h"
#include "runner/commands/commands.h"

namespace lacuna {

namespace {

struct Arguments {
  AnalysisArguments analysis;
  bool no_write = false;
};

void run(const Arguments& arguments) {
  const AnalysisOptions options = arguments.analysis.options();
  const std::string file = results_file(arguments.analysis.folder);
  const ResultTable table = read_results(file);
  ThreadPool threads(default_threads());
  const Analysis analysis = analyze(table, options, threads);
  if (!arguments.no_write) {
    const std::string folder = (std::filesystem::path(file).parent_path() / "analysis").string();
    write_csv_files(table, analysis, folder);
    write_analysis_hdf5(analysis, file);
    log::info("wrote {} tables to {} and to /analysis of {}", analysis.tables.size(), folder, file);
  }
  std::fputs(summary_text(table, analysis).c_str(), stdout);
  std::printf("\nMean score over tasks and lengths, by measured sparsity\n%s", score_overview(table).c_str());
}

}  // namespace

void add_analyze_command(CLI::App& app) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = app.add_subcommand(
      "analyze", "Answers from a sweep's results: best per cost, largest sparsity, scaling law");
  add_analysis_arguments(*verb, arguments->analysis);
  verb->add_flag("--no-write", arguments->no_write,
                 "Print the summary only; write neither /analysis nor CSV files");
  verb->footer(
      "Examples:\n"
      "  lacuna analyze out/demo\n"
      "  lacuna analyze out/demo --test permutation --alpha 0.01 --cost seconds\n"
      "  lacuna analyze out/demo --predict model=72B,length=256K,compression=20");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace lacuna
