// lacuna report: one self-contained page with the answers, figures and tables of a sweep.
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "analysis/report.h"
#include "core/error.h"
#include "core/log.h"
#include "runner/commands/analysis_arguments.h"
#include "runner/commands/commands.h"
#include "runner/commands/layer_picture.h"

namespace lacuna {

namespace {

struct Arguments {
  AnalysisArguments analysis;
  bool open = false, gallery = false;
};

/// Hands the page to the desktop and does not wait for the browser.
void open_in_browser(const std::string& path) {
  const pid_t child = ::fork();
  if (child < 0) throw_library("fork failed; open {} yourself", path);
  if (child == 0) {
    ::execlp("xdg-open", "xdg-open", path.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  LACUNA_REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0,
                 "--open: xdg-open could not open {}; open it yourself (package xdg-utils)", path);
}

void run(const Arguments& arguments) {
  const AnalysisOptions options = arguments.analysis.options();
  const std::string file = results_file(arguments.analysis.folder);
  const ResultTable table = read_results(file);
  ThreadPool threads(default_threads());
  const Analysis analysis = analyze(table, options, threads);
  const std::filesystem::path parent = std::filesystem::path(file).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  if (arguments.gallery) {
    const int drawn = draw_gallery(folder, threads);
    log::info("drew what {} strategies keep into {}/patterns", drawn, folder);
  }
  const std::string page = write_report(table, analysis, folder);
  for (const std::string& warning : analysis.warnings) log::warning("{}", warning);
  std::printf("%s\n", page.c_str());
  if (arguments.open) open_in_browser(page);
}

}  // namespace

void add_report_command(CLI::App& app) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = app.add_subcommand(
      "report", "One page (report.html, works offline) and figures as SVG and PDF from a sweep's results");
  add_analysis_arguments(*verb, arguments->analysis);
  verb->add_flag("--open", arguments->open, "Open the page in the browser");
  verb->add_flag("--gallery", arguments->gallery,
                 "Load the sweep's smallest model and draw what each strategy keeps of one of its prompts");
  verb->footer(
      "Examples:\n"
      "  lacuna report out/demo\n"
      "  lacuna report out/demo --cost seconds --predict model=72B,length=256K,compression=20 --open");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace lacuna
