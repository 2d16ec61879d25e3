// Running gnuplot.
#pragma once

#include <string>

namespace lacuna {

/// Runs `gnuplot script` (a file name) in a folder, without any start-up file. Throws kUsage naming the
/// package when gnuplot is not on PATH, kLibrary with its last words when it fails.
void run_gnuplot(const std::string& folder, const std::string& script);

}  // namespace lacuna
