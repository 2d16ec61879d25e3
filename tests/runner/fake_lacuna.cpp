// The verbs run and retry over the fake engine, for tests of crashes, signals and scheduling under mpirun.
#include <mpi.h>

#include <CLI/CLI.hpp>

#include "core/error.h"
#include "core/log.h"
#include "runner/commands/run_verbs.h"
#include "tests/runner/fake_engine.h"

int main(int argc, char** argv) {
  CLI::App app{"lacuna over a fake engine"};
  app.require_subcommand(1);
  lacuna::add_run_command(app, lacuna::testing::fake_model_services());
  lacuna::add_retry_command(app, lacuna::testing::fake_model_services());
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::RuntimeError& e) {
    return e.get_exit_code();
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  } catch (const lacuna::Error& e) {
    lacuna::log::error("{} [{}]", e.what(), e.place());
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (initialized != 0 && finalized == 0) MPI_Abort(MPI_COMM_WORLD, lacuna::exit_code(e.kind()));
    return lacuna::exit_code(e.kind());
  }
}
