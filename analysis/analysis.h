// All analyses of one sweep, their tables and what they say in words.
#pragma once

#include <string>
#include <vector>

#include "analysis/frontier.h"
#include "analysis/options.h"
#include "analysis/output_table.h"
#include "analysis/result_table.h"
#include "analysis/scaling_law.h"
#include "analysis/significance.h"
#include "analysis/tolerance.h"
#include "core/thread_pool.h"

namespace lacuna {

/// One answer: a sentence that states it, and what it rests on.
struct Finding {
  std::string topic;
  std::string headline;
  std::string detail;
};

/// Points into the ResultTable it was made from.
struct Analysis {
  AnalysisOptions options;
  FrontierAnalysis frontier;
  SignificanceAnalysis significance;
  ScalingAnalysis scaling;
  ToleranceAnalysis tolerance;
  std::vector<OutputTable> tables;
  std::vector<Finding> findings;
  std::vector<std::string> warnings;
  std::vector<std::string> notes;  ///< What could not be done, and why

  const OutputTable& table(const std::string& name) const;
};

/// Deterministic: the same table and options give the same bytes, whatever the number of threads.
Analysis analyze(const ResultTable& table, const AnalysisOptions& options, ThreadPool& threads);

// --- parts of it, in files of their own ---
std::vector<OutputTable> make_tables(const ResultTable& table, const Analysis& analysis);
std::vector<Finding> make_findings(const ResultTable& table, const Analysis& analysis);

/// The summary that `lacuna analyze` prints; plain text of at most 100 columns.
std::string summary_text(const ResultTable& table, const Analysis& analysis);

/// Writes FOLDER/<table>.csv and FOLDER/summary.txt, each atomically.
void write_csv_files(const ResultTable& table, const Analysis& analysis, const std::string& folder);
/// Replaces /analysis in a results file: works on a copy that is renamed at the end, so a crash leaves the
/// old file. Throws kUsage when the results were rebuilt meanwhile (a sweep that still runs).
void write_analysis_hdf5(const Analysis& analysis, const std::string& results_path);

// --- small words shared by tables, findings and figures ---
/// "16K", "128000", "1.5K": tokens
std::string length_label(std::int64_t tokens);
/// "dense" or "quest at 0.90"
std::string configuration_label(const ResultTable& table, const Configuration& point);

}  // namespace lacuna
