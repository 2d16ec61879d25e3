// One function per verb of the command line: it adds its subcommand with options and a callback that does the work.
// A verb is one file in this folder and one line in main.cpp.
#pragma once

namespace CLI {
class App;
}

namespace lacuna {

// In the order of main.cpp.
void add_plan_command(CLI::App& app);
void add_run_command(CLI::App& app);
void add_status_command(CLI::App& app);
void add_retry_command(CLI::App& app);
void add_merge_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_doctor_command(CLI::App& app);
void add_attend_command(CLI::App& app);
void add_strategies_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_tasks_command(CLI::App& app);
void add_sbatch_command(CLI::App& app);
void add_analyze_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_bench_command(CLI::App& app);

}  // namespace lacuna
