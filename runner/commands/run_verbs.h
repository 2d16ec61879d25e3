// run and retry on given model services: tests put a fake engine behind the same verbs.
#pragma once

#include "runner/services.h"

namespace CLI {
class App;
}

namespace lacuna {

void add_run_command(CLI::App& app, const ModelServices& services);
void add_retry_command(CLI::App& app, const ModelServices& services);

}  // namespace lacuna
