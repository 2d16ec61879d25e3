// The program: finds the verb, runs it, and catches every error once.
#include <mpi.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "core/error.h"
#include "core/log.h"
#include "runner/commands/commands.h"

namespace {

/// Prints an error with host and, in a parallel run, brings the other ranks down.
int fail(const char* message, const std::string& place, int code) {
  char host[256] = "unknown";
  (void)gethostname(host, sizeof(host) - 1);
  int initialized = 0, finalized = 0, size = 1;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  const bool parallel = initialized != 0 && finalized == 0;
  if (parallel) MPI_Comm_size(MPI_COMM_WORLD, &size);
  lacuna::log::error("{} [{}{}]", message, size > 1 ? std::string(host) + ", " : std::string(), place);
  if (parallel && size > 1) MPI_Abort(MPI_COMM_WORLD, code);
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Lacuna: how much attention can be left out, by which method, at which size and length?"};
  app.require_subcommand(1);
  app.set_version_flag("--version", LACUNA_VERSION);
  lacuna::add_plan_command(app);
  lacuna::add_run_command(app);
  lacuna::add_status_command(app);
  lacuna::add_retry_command(app);
  lacuna::add_merge_command(app);
  lacuna::add_export_command(app);
  lacuna::add_generate_command(app);
  lacuna::add_doctor_command(app);
  lacuna::add_attend_command(app);
  lacuna::add_strategies_command(app);
  lacuna::add_calibrate_command(app);
  lacuna::add_tasks_command(app);
  lacuna::add_sbatch_command(app);
  lacuna::add_analyze_command(app);
  lacuna::add_report_command(app);
  lacuna::add_bench_command(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::RuntimeError& e) {
    return e.get_exit_code();  // a verb that ends with a code of its own
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  } catch (const lacuna::Error& e) {
    return fail(e.what(), e.place(), lacuna::exit_code(e.kind()));
  } catch (const std::exception& e) {
    return fail(e.what(), "unexpected", 1);
  }
}
