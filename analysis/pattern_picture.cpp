#include "analysis/pattern_picture.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {

namespace {

/// Rows looked at per bin.
constexpr std::int64_t kRowsPerBin = 16;
/// Shades from "left out" to "all kept".
constexpr std::array<const char*, 7> kShades{"#e6ebf1", "#c3d4e6", "#9bbad9", "#6f9dca",
                                             "#4380b8", "#1f639f", "#084a83"};
constexpr double kSide = 380, kLeft = 62, kTop = 72;

/// For SVG text: markup escaped, control characters dropped.
std::string xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

/// First position of bin i when `total` positions are cut into `bins`.
std::int64_t bin_begin(std::int64_t i, std::int64_t bins, std::int64_t total) { return i * total / bins; }

/// Adds the cells of [begin, end) to the column bins they fall into.
void add_range(std::vector<double>& columns, std::int64_t begin, std::int64_t end, std::int64_t keys) {
  const auto bins = std::int64_t(columns.size());
  if (begin >= end) return;
  auto i = std::clamp<std::int64_t>(begin * bins / keys, 0, bins - 1);
  while (i > 0 && bin_begin(i, bins, keys) > begin) --i;
  while (i + 1 < bins && bin_begin(i + 1, bins, keys) <= begin) ++i;
  for (; i < bins && bin_begin(i, bins, keys) < end; ++i) {
    const std::int64_t low = std::max(begin, bin_begin(i, bins, keys)),
                       high = std::min(end, bin_begin(i + 1, bins, keys));
    columns[std::size_t(i)] += double(high - low);
  }
}

struct Raster {
  std::int64_t rows = 0, columns = 0;
  std::vector<double> kept, visible;         // [rows * columns]
  double kept_cells = 0, visible_cells = 0;  // of the rows looked at
};

Raster rasterize(const PatternView& view, std::int64_t bins) {
  Raster raster;
  raster.rows = std::min(bins, view.rows);
  raster.columns = std::min(bins, view.keys);
  raster.kept.assign(std::size_t(raster.rows * raster.columns), 0);
  raster.visible = raster.kept;
  std::vector<KeyRange> ranges;
  std::vector<double> kept(std::size_t(raster.columns)), visible(std::size_t(raster.columns));
  for (std::int64_t b = 0; b < raster.rows; ++b) {
    const std::int64_t begin = bin_begin(b, raster.rows, view.rows),
                       end = bin_begin(b + 1, raster.rows, view.rows);
    const std::int64_t looked = std::min(kRowsPerBin, end - begin);
    std::fill(kept.begin(), kept.end(), 0);
    std::fill(visible.begin(), visible.end(), 0);
    for (std::int64_t i = 0; i < looked; ++i) {
      const std::int64_t row = begin + i * (end - begin) / looked, position = view.first_query + row;
      const std::int64_t last = std::min(view.keys, position + 1);
      const std::int64_t first = view.window > 0 ? std::max<std::int64_t>(0, position + 1 - view.window) : 0;
      add_range(visible, first, last, view.keys);
      ranges.clear();
      view.kept(row, ranges);
      for (const KeyRange& r : ranges) {
        const std::int64_t low = std::max<std::int64_t>(first, r.start),
                           high = std::min<std::int64_t>(last, std::int64_t{r.start} + r.width);
        add_range(kept, low, high, view.keys);
        raster.kept_cells += double(std::max<std::int64_t>(0, high - low));
      }
      raster.visible_cells += double(std::max<std::int64_t>(0, last - first));
    }
    std::copy(kept.begin(), kept.end(), raster.kept.begin() + b * raster.columns);
    std::copy(visible.begin(), visible.end(), raster.visible.begin() + b * raster.columns);
  }
  return raster;
}

/// Shade of a raster cell, -1 where no query sees the keys.
int shade(const Raster& raster, std::int64_t row, std::int64_t column) {
  const auto i = std::size_t(row * raster.columns + column);
  if (raster.visible[i] <= 0) return -1;
  const double share = raster.kept[i] / raster.visible[i];
  if (share <= 0) return 0;
  return std::clamp(int(std::ceil(share * double(kShades.size() - 1) - 1e-9)), 1, int(kShades.size()) - 1);
}

}  // namespace

PatternView view_of_prefill(const TileLists& lists, int head, std::int64_t window) {
  LACUNA_REQUIRE(head >= 0 && head < lists.heads, "picture: head {} of {}", head, lists.heads);
  PatternView view;
  view.rows = view.keys = lists.tokens;
  view.window = window;
  view.kept = [&lists, head](std::int64_t row, std::vector<KeyRange>& kept) {
    if (lists.dense) {
      kept.push_back({0, std::int32_t(lists.tokens)});
      return;
    }
    const auto ranges = lists.ranges_of(head, row / lists.row_block);
    std::size_t next = 0;  // ranges and single columns merge into one sorted list
    for (const std::int32_t column : lists.columns_of(head)) {
      while (next < ranges.size() && ranges[next].start + ranges[next].width <= column)
        kept.push_back(ranges[next++]);
      const bool inside = next < ranges.size() && ranges[next].start <= column;
      if (!inside) kept.push_back({column, 1});
    }
    kept.insert(kept.end(), ranges.begin() + std::ptrdiff_t(next), ranges.end());
  };
  return view;
}

PatternView view_of_decode(std::int64_t prompt_tokens, std::vector<PageList> lists) {
  PatternView view;
  view.rows = std::int64_t(lists.size());
  view.keys = prompt_tokens + view.rows;
  view.first_query = prompt_tokens;
  view.kept = [lists = std::move(lists)](std::int64_t row, std::vector<KeyRange>& kept) {
    for (const std::int32_t page : lists[std::size_t(row)]) kept.push_back({page * kPageTokens, kPageTokens});
  };
  return view;
}

PatternView view_of_pages(std::int64_t tokens, std::vector<PageList> lists) {
  PatternView view;
  view.rows = std::int64_t(lists.size());
  view.keys = view.first_query = tokens;
  view.kept = [lists = std::move(lists)](std::int64_t row, std::vector<KeyRange>& kept) {
    for (const std::int32_t page : lists[std::size_t(row)]) kept.push_back({page * kPageTokens, kPageTokens});
  };
  return view;
}

PictureOptions picture_options(const MethodSpec& spec) {
  PictureOptions options;
  options.title = spec.method;
  const Json params = spec.params.to_json();
  for (const auto& [name, value] : params.items()) {
    options.subtitle += (options.subtitle.empty() ? "" : ", ") + name + " " +
                        (value.is_string() ? value.get<std::string>() : value.dump());
  }
  return options;
}

PatternView view_of_eviction(std::int64_t prompt_tokens,
                             std::vector<std::vector<std::int32_t>> kept_per_head) {
  PatternView view;
  view.rows = std::int64_t(kept_per_head.size());
  view.keys = prompt_tokens;
  view.first_query = prompt_tokens;
  view.kept = [kept = std::move(kept_per_head)](std::int64_t row, std::vector<KeyRange>& out) {
    for (const std::int32_t position : kept[std::size_t(row)]) out.push_back({position, 1});
  };
  return view;
}

std::string draw_pattern(const PatternView& view, const PictureOptions& options) {
  LACUNA_REQUIRE(view.rows > 0 && view.keys > 0, "picture: there is nothing to draw ({} rows, {} keys)",
                 view.rows, view.keys);
  LACUNA_REQUIRE(options.bins >= 1 && options.bins <= 2000, "picture: {} bins, expected 1 to 2000",
                 options.bins);
  const Raster raster = rasterize(view, options.bins);
  const double cell_w = kSide / double(raster.columns), cell_h = kSide / double(raster.rows);
  // One path per shade, in units of raster cells: runs of equal shade are one rectangle.
  std::array<std::string, kShades.size()> paths;
  for (std::int64_t r = 0; r < raster.rows; ++r) {
    for (std::int64_t c = 0; c < raster.columns;) {
      const int s = shade(raster, r, c);
      std::int64_t end = c + 1;
      while (end < raster.columns && shade(raster, r, end) == s) ++end;
      if (s >= 0) paths[std::size_t(s)] += fmt::format("M{} {}h{}v1h-{}z", c, r, end - c, end - c);
      c = end;
    }
  }
  const double kept = raster.visible_cells > 0 ? 100 * raster.kept_cells / raster.visible_cells : 0;
  const bool sampled = view.rows > raster.rows * kRowsPerBin;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"DejaVu Sans, sans-serif\" font-size=\"12\" fill=\"#1c2430\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
      "<text x=\"{2}\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{3}</text>\n"
      "<text x=\"{2}\" y=\"37\" font-size=\"10.5\" fill=\"#5b6675\">{7}</text>\n"
      "<text x=\"{2}\" y=\"55\">{4}{5:.1f} % of the visible cells kept (sparsity {6:.3f})</text>\n",
      kLeft + kSide + 24, kTop + kSide + 74, kLeft, xml(options.title), sampled ? "about " : "", kept,
      1 - kept / 100,
      xml(options.subtitle.size() > 66 ? options.subtitle.substr(0, 64) + "..." : options.subtitle));
  svg +=
      fmt::format("<g transform=\"translate({} {}) scale({:.6g} {:.6g})\" shape-rendering=\"crispEdges\">\n",
                  kLeft, kTop, cell_w, cell_h);
  for (std::size_t s = 0; s < paths.size(); ++s) {
    if (!paths[s].empty()) svg += fmt::format("<path fill=\"{}\" d=\"{}\"/>\n", kShades[s], paths[s]);
  }
  svg += "</g>\n";
  svg +=
      fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#8a94a3\"/>\n",
                  kLeft, kTop, kSide, kSide);
  const auto label = [&](double x, double y, const char* anchor, const std::string& text) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                       xml(text));
  };
  for (const double share : {0.0, 0.5, 1.0}) {
    label(kLeft + share * kSide, kTop + kSide + 17,
          share == 0   ? "start"
          : share == 1 ? "end"
                       : "middle",
          fmt::format("{}", std::int64_t(share * double(view.keys))));
    label(kLeft - 6,
          kTop + share * kSide +
              (share == 0   ? 10
               : share == 1 ? 0
                            : 4),
          "end",
          fmt::format("{}", view.first_query * (options.row_label == "query position" ? 1 : 0) +
                                std::int64_t(share * double(view.rows))));
  }
  label(kLeft + kSide / 2, kTop + kSide + 36, "middle", "key position");
  svg +=
      fmt::format("<text transform=\"translate(14 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                  kTop + kSide / 2, xml(options.row_label));
  // Legend
  const double y = kTop + kSide + 48;
  label(kLeft, y + 11, "start", "left out");
  for (std::size_t s = 0; s < kShades.size(); ++s) {
    svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"20\" height=\"13\" fill=\"{}\"/>\n",
                       kLeft + 62 + 20 * double(s), y, kShades[s]);
  }
  label(kLeft + 68 + 20 * double(kShades.size()), y + 11, "start", "kept");
  return svg + "</svg>\n";
}

}  // namespace lacuna
