// A small table for the terminal: mean score of each model under each strategy and sparsity.
#pragma once

#include <string>

#include "analysis/result_table.h"

namespace lacuna {

/// One line per (strategy, requested sparsity), one column per model: the mean over tasks and lengths of the
/// cells' mean scores, after the measured sparsity averaged over the line. "-" where nothing was measured.
/// Ends with a newline.
std::string score_overview(const ResultTable& table);

}  // namespace lacuna
