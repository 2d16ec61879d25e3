// report.html: the answers, figures, sortable tables and provenance of one sweep in one file that needs no
// network.
#pragma once

#include <string>
#include <vector>

#include "analysis/analysis.h"
#include "analysis/figures.h"

namespace lacuna {

/// A picture that stands in the gallery of kept query-key cells.
struct GalleryPicture {
  std::string caption;
  std::string svg;
};
/// DIR/patterns/*.svg, sorted by name (`--picture` of generate and attend writes them); the file name is the
/// caption.
std::vector<GalleryPicture> read_gallery(const std::string& folder);

/// The whole page. `figures_folder` holds the drawn panels; they are embedded, and linked as SVG and PDF by
/// the relative path `figures_link`.
std::string report_html(const ResultTable& table, const Analysis& analysis,
                        const std::vector<FigureGroup>& figures, const std::string& figures_folder,
                        const std::string& figures_link, const std::vector<GalleryPicture>& gallery);

/// & < > " ' as entities; bytes that are not UTF-8 and control characters become U+FFFD.
std::string escape_html(std::string_view text);

/// Draws DIR/figures and writes DIR/report.html; returns its path.
std::string write_report(const ResultTable& table, const Analysis& analysis, const std::string& folder);

}  // namespace lacuna
