#include "analysis/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "analysis/report_style.h"
#include "analysis/utf8.h"
#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

namespace lacuna {

namespace {

namespace fs = std::filesystem;
/// Longer tables show their head; the whole stands in the CSV file.
constexpr std::size_t kShownRows = 400;

std::string base64(std::string_view bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t word = 0;
    const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t k = 0; k < 3; ++k)
      word = word << 8 | (k < n ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (std::size_t k = 0; k < 4; ++k) out += k <= n ? kDigits[word >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

/// Numbers for people: enough digits to compare, no more.
std::string shown_number(double value, const OutputColumn& column) {
  if (std::isnan(value)) return "";
  if (std::isinf(value)) return value > 0 ? "∞" : "-∞";
  const double size = std::abs(value);
  if (column.unit == "tokens") return fmt::format("{:.0f}", value);
  if (size >= 1e6) return format_count(value);
  if (value == std::round(value) && size < 1e6) return fmt::format("{:.0f}", value);
  if (size != 0 && size < 1e-4) return fmt::format("{:.1e}", value);
  return size < 10 ? fmt::format("{:.4f}", value) : fmt::format("{:.1f}", value);
}

class Page {
 public:
  Page(const ResultTable& table, const Analysis& analysis) : table_(table), a_(analysis) {}

  std::string write(const std::vector<FigureGroup>& figures, const std::string& folder,
                    const std::string& link, const std::vector<GalleryPicture>& gallery) {
    head();
    answers();
    for (const FigureGroup& group : figures) figure_group(group, folder, link);
    pictures(gallery);
    tables();
    provenance();
    out_ += "<footer>Made by Lacuna " LACUNA_VERSION
            ". This page is one file and asks nothing of the network.</footer>\n<script>";
    out_ += kReportScript;
    out_ += "</script>\n</body></html>\n";
    return std::move(out_);
  }

 private:
  std::string sweep_name() const {
    for (const auto& [name, value] : table_.provenance) {
      if (name == "sweep") return value;
    }
    return "sweep";
  }

  void head() {
    const std::string title = escape_html(sweep_name()) + ": how much attention can be left out";
    out_ +=
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src "
        "'unsafe-inline'; "
        "script-src 'unsafe-inline'\"><meta name=\"viewport\" content=\"width=device-width, "
        "initial-scale=1\">"
        "<title>" +
        title + "</title><style>" + kReportStyle + "</style></head>\n<body>\n<header><h1>" + title + "</h1>";
    for (const Finding& f : a_.findings) {
      if (f.topic == "Data")
        out_ += "<p class=\"soft\">" + escape_html(f.headline) + ". " + escape_html(f.detail) + "</p>";
    }
    out_ +=
        "</header>\n<nav><a href=\"#answers\">Answers</a><a href=\"#figures\">Figures</a><a "
        "href=\"#tables\">Tables</a>"
        "<a href=\"#provenance\">Provenance</a></nav>\n<main>\n";
  }

  void list(const std::vector<std::string>& lines) {
    out_ += "<ul>";
    for (const std::string& line : lines) out_ += "<li>" + escape_html(line) + ".</li>";
    out_ += "</ul>";
  }

  void answers() {
    out_ += "<h2 id=\"answers\">Answers</h2>\n";
    if (!a_.warnings.empty()) {
      out_ += "<div class=\"box warn\"><h3>Warnings</h3>";
      list(a_.warnings);
      out_ += "</div>\n";
    }
    out_ += "<div class=\"cards\">\n";
    for (const Finding& f : a_.findings) {
      if (f.topic == "Data") continue;
      out_ += "<div class=\"card\"><div class=\"topic\">" + escape_html(f.topic) + "</div><h3>" +
              escape_html(f.headline) + ".</h3><p>" + escape_html(f.detail) + "</p></div>\n";
    }
    out_ += "</div>\n";
    if (!a_.notes.empty()) {
      out_ += "<details><summary>Not done, or to be read with care <span class=\"soft\">(" +
              std::to_string(a_.notes.size()) + ")</span></summary><div class=\"scroll\">";
      list(a_.notes);
      out_ += "</div></details>\n";
    }
    out_ += "<h2 id=\"figures\">Figures</h2>\n";
  }

  void figure_group(const FigureGroup& group, const std::string& folder, const std::string& link) {
    out_ += "<section id=\"" + group.id + "\"><h2>" + escape_html(group.heading) + "</h2><p class=\"soft\">" +
            escape_html(group.caption) + "</p><div class=\"panels\">\n";
    for (const Panel& p : group.panels) {
      const std::string svg = read_file((fs::path(folder) / (p.name + ".svg")).string());
      const std::string file = link + "/" + p.name;  // [a-z0-9_] and the link of our own
      out_ += "<figure class=\"figure\"><img width=\"" + std::to_string(p.width) + "\" height=\"" +
              std::to_string(p.height) + "\" alt=\"" + escape_html(p.title) +
              "\" src=\"data:image/svg+xml;base64," + base64(svg) + "\"><figcaption><a href=\"" + file +
              ".svg\">SVG</a> <a href=\"" + file + ".pdf\">PDF</a></figcaption></figure>\n";
    }
    out_ += "</div></section>\n";
  }

  void pictures(const std::vector<GalleryPicture>& gallery) {
    if (gallery.empty()) return;
    out_ +=
        "<section id=\"patterns\"><h2>What the strategies keep</h2><p class=\"soft\">Queries run downwards, "
        "keys to the right; dark cells "
        "are computed, light ones left out. From prompts of this sweep.</p><div class=\"panels\">\n";
    for (const GalleryPicture& p : gallery) {
      out_ += "<figure class=\"figure\"><img alt=\"" + escape_html(p.caption) +
              "\" src=\"data:image/svg+xml;base64," + base64(p.svg) + "\"><figcaption>" +
              escape_html(p.caption) + "</figcaption></figure>\n";
    }
    out_ += "</div></section>\n";
  }

  void tables() {
    out_ +=
        "<h2 id=\"tables\">Tables</h2>\n<p class=\"soft\">A click on a column's head sorts. The same tables, "
        "whole, are in "
        "analysis/*.csv (written by <code>lacuna analyze</code>).</p>\n";
    for (const OutputTable& t : a_.tables) {
      if (t.rows() > 0) one_table(t);
    }
  }

  void one_table(const OutputTable& t) {
    out_ += "<details id=\"table-" + t.name() + "\"><summary>" + escape_html(t.description()) +
            " <span class=\"soft\">(" + std::to_string(t.rows()) + (t.rows() == 1 ? " row" : " rows") +
            (t.rows() > kShownRows ? fmt::format(", the first {} shown", kShownRows) : std::string()) +
            ")</span></summary><div class=\"scroll\"><table><thead><tr>";
    for (const OutputColumn& c : t.columns()) {
      const bool unit = !c.unit.empty() && c.unit != "1" && c.unit != "see cost_unit";
      out_ += std::string(c.text ? "<th" : "<th class=\"n\"") + " scope=\"col\" title=\"" +
              escape_html(c.description) + "\">" + escape_html(c.name) +
              (unit ? "<span class=\"u\">" + escape_html(c.unit) + "</span>" : "") + "</th>";
    }
    out_ += "</tr></thead><tbody>\n";
    for (std::size_t r = 0; r < std::min(t.rows(), kShownRows); ++r) {
      out_ += "<tr>";
      for (std::size_t c = 0; c < t.columns().size(); ++c) {
        if (t.columns()[c].text) {
          out_ += "<td>" + escape_html(t.text(r, c)) + "</td>";
        } else {
          const double value = t.number(r, c);
          const std::string exact = std::isnan(value)   ? ""
                                    : std::isinf(value) ? (value > 0 ? "Infinity" : "-Infinity")
                                                        : fmt::format("{}", value);
          out_ += "<td class=\"n\" data-v=\"" + exact + "\">" + shown_number(value, t.columns()[c]) + "</td>";
        }
      }
      out_ += "</tr>\n";
    }
    out_ += "</tbody></table></div></details>\n";
  }

  void provenance() {
    out_ += "<h2 id=\"provenance\">Provenance</h2>\n<div class=\"box\"><dl>";
    const auto entry = [&](const std::string& name, const std::string& value) {
      if (!value.empty()) out_ += "<dt>" + escape_html(name) + "</dt><dd>" + escape_html(value) + "</dd>\n";
    };
    for (const auto& [name, value] : table_.provenance) entry(name, value);
    for (const ResultModel& m : table_.models) {
      if (!m.has_shape()) {
        entry("model " + m.name, "never loaded");
        continue;
      }
      entry("model " + m.name,
            fmt::format(
                "{}, {} parameters, {} layers, {} query heads, {} kv heads, {}, {}, tensor-parallel {}{}{}",
                m.family, format_count(m.shape.parameters), m.shape.layers, m.shape.q_heads, m.shape.kv_heads,
                m.dtype, m.device, m.tp, m.rope.empty() ? "" : ", rope " + m.rope,
                m.weights_hash.empty() ? "" : ", weights " + m.weights_hash));
    }
    entry("analysis settings",
          fmt::format("cost {}; {}; link {}, main fit {}; confidence {}; {} resamples, seed {}",
                      name_of(a_.options.cost), describe_test(a_.options), name_of(a_.options.link),
                      name_of(a_.options.fit), a_.options.confidence, a_.options.resamples, a_.options.seed));
    out_ += "</dl></div>\n</main>\n";
  }

  const ResultTable& table_;
  const Analysis& a_;
  std::string out_;
};

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = utf8_length(text, i);
    const char c = text[i];
    if (n == 0 || (n == 1 && static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
      out += "\xEF\xBF\xBD";
      ++i;
      continue;
    }
    if (n > 1) {
      out += text.substr(i, n);
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += c;
    }
    i += n;
  }
  return out;
}

std::vector<GalleryPicture> read_gallery(const std::string& folder) {
  std::vector<GalleryPicture> gallery;
  std::vector<fs::path> files;
  const fs::path patterns = fs::path(folder) / "patterns";
  if (fs::is_directory(patterns)) {
    for (const auto& entry : fs::directory_iterator(patterns)) {
      if (entry.path().extension() == ".svg") files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) gallery.push_back({file.stem().string(), read_file(file.string())});
  return gallery;
}

std::string report_html(const ResultTable& table, const Analysis& analysis,
                        const std::vector<FigureGroup>& figures, const std::string& figures_folder,
                        const std::string& figures_link, const std::vector<GalleryPicture>& gallery) {
  return Page(table, analysis).write(figures, figures_folder, figures_link, gallery);
}

std::string write_report(const ResultTable& table, const Analysis& analysis, const std::string& folder) {
  const std::string figures_folder = (fs::path(folder) / "figures").string();
  const std::vector<FigureGroup> figures = make_figures(table, analysis);
  draw_figures(figures, figures_folder);
  const std::string path = (fs::path(folder) / "report.html").string();
  write_file_atomically(
      path, report_html(table, analysis, figures, figures_folder, "figures", read_gallery(folder)));
  return path;
}

}  // namespace lacuna
