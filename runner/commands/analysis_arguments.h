// Options that analyze and report share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "analysis/options.h"

namespace lacuna {

struct AnalysisArguments {
  std::string folder;  ///< Sweep folder or a results file
  std::string cost = "v2", test = "paired-t", link = "logit", fit = "fractional";
  double alpha = 0.05, margin = 0, clip = 0, confidence = 0.95, target_error = 0.05, budget = 0;
  bool no_holm = false, two_sided = false;
  int resamples = 2000;
  std::uint64_t seed = 1;
  std::vector<std::string> methods, predict;

  /// Checked. Throws kUsage.
  AnalysisOptions options() const;
};

void add_analysis_arguments(CLI::App& verb, AnalysisArguments& arguments);
/// DIR/results.h5, or the file itself.
std::string results_file(const std::string& path);

}  // namespace lacuna
