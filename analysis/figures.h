// The figures of the report, drawn by gnuplot as SVG (for the page) and PDF (for papers).
#pragma once

#include <string>
#include <vector>

#include "analysis/analysis.h"

namespace lacuna {

/// One drawing. Its script draws into the terminal and output that draw_figures sets.
struct Panel {
  std::string name;    ///< File name without extension: [a-z0-9_]+
  std::string title;   ///< States the finding; drawn above the plot
  std::string script;  ///< gnuplot commands with their data
  int width = 480, height = 400;
};

/// Panels that show one thing.
struct FigureGroup {
  std::string id;       ///< HTML anchor
  std::string heading;  ///< States the finding
  std::string caption;  ///< How to read it
  std::vector<Panel> panels;
};

/// Everything that can be drawn from the analysis; groups without data are left out.
std::vector<FigureGroup> make_figures(const ResultTable& table, const Analysis& analysis);

/// Writes FOLDER/<name>.svg, .pdf and figures.gnuplot (which redraws them). Throws kUsage naming the package
/// when there is no gnuplot, kLibrary with gnuplot's words when it fails.
void draw_figures(const std::vector<FigureGroup>& groups, const std::string& folder);

// --- what tests look at ---
/// A gnuplot string constant that shows `text`: single-quoted, where neither commands, macros nor escapes are
/// expanded. Control characters become spaces, apostrophes typographic, bytes that are not UTF-8 U+FFFD.
std::string gnuplot_string(std::string_view text);
/// Colour of a method: the same everywhere, from the Okabe-Ito palette, which colour-blind readers can tell
/// apart.
std::string method_color(const ResultTable& table, int method);

}  // namespace lacuna
