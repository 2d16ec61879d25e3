#include "analysis/figures.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "analysis/gnuplot.h"
#include "analysis/utf8.h"
#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

namespace lacuna {

namespace {

// Okabe & Ito (2008), without black (dense) and with a yellow that shows on white.
constexpr std::array<const char*, 7> kPalette{"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                              "#E69F00", "#56B4E9", "#8A7A00"};
constexpr const char* kDense = "#000000";
/// Methods of the paper keep their colour in every report.
constexpr std::array<const char*, 6> kKnown{"vertical_slash", "block_sparse", "flexprefill",
                                            "snapkv",         "ada_snapkv",   "quest"};
/// Lengths: dark to light, told apart by lightness alone.
constexpr std::array<const char*, 6> kSequence{"#002051", "#2E4F7D", "#5E7A8C",
                                               "#8FA37E", "#C4B356", "#E8C33C"};
/// Filled and open marks, by model.
constexpr std::array<int, 8> kMarks{7, 5, 9, 11, 6, 4, 8, 10};

const char* sequence_color(std::size_t i, std::size_t n) {
  return kSequence[n <= 1 ? 0 : i * (kSequence.size() - 1) / (n - 1)];
}
int mark_of(int model) { return kMarks[std::size_t(model) % kMarks.size()]; }

/// File names from names: everything else than letters and digits becomes '_'.
std::string slug(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const char low = char(std::tolower(static_cast<unsigned char>(c)));
    const bool plain = (low >= 'a' && low <= 'z') || (low >= '0' && low <= '9');
    if (plain) {
      out += low;
    } else if (!out.empty() && out.back() != '_') {
      out += '_';
    }
  }
  while (!out.empty() && out.back() == '_') out.pop_back();
  return out.substr(0, 40);
}

/// Names as keys show them: long ones are cut.
std::string brief(const std::string& text, std::size_t limit = 28) {
  if (text.size() <= limit) return text;
  std::size_t end = limit - 1;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "…";
}

std::string number(double value) { return std::isfinite(value) ? fmt::format("{:.6g}", value) : "NaN"; }

/// A title as a gnuplot expression, broken into lines that fit the panel.
std::string title_lines(const std::string& text) {
  constexpr std::size_t kLine = 46;
  std::string out, line;
  const auto flush = [&] {
    out += (out.empty() ? "" : ".\"\\n\".") + gnuplot_string(line);
    line.clear();
  };
  for (const std::string& word : split(text, ' ')) {
    if (!line.empty() && line.size() + 1 + word.size() > kLine) flush();
    line += (line.empty() ? "" : " ") + word;
  }
  flush();
  return out;
}

/// Collects the data blocks and plot clauses of one panel.
class Plot {
 public:
  explicit Plot(std::string name, std::string title) {
    panel_.name = std::move(name);
    panel_.title = std::move(title);
  }
  Plot& set(const std::string& command) {
    settings_ += command + "\n";
    return *this;
  }
  /// A new data block; returns its name.
  std::string data(const std::vector<std::vector<double>>& rows) {
    const std::string block = fmt::format("$d{}", blocks_++);
    data_ += block + " << EOD\n";
    for (const auto& row : rows) {
      for (std::size_t i = 0; i < row.size(); ++i) data_ += (i == 0 ? "" : " ") + number(row[i]);
      data_ += "\n";
    }
    data_ += "EOD\n";
    return block;
  }
  void draw(const std::string& clause) { clauses_ += (clauses_.empty() ? "" : ", \\\n  ") + clause; }
  bool empty() const { return clauses_.empty(); }
  Panel panel(int width = 480, int height = 400) {
    panel_.width = width;
    panel_.height = height;
    panel_.script =
        data_ + settings_ + "set title " + title_lines(panel_.title) + "\nplot " + clauses_ + "\n";
    return panel_;
  }

 private:
  Panel panel_;
  std::string settings_, data_, clauses_;
  int blocks_ = 0;
};

/// "a" to "b" with room on both sides, inside [floor, ceiling].
std::string padded_range(double low, double high, double floor, double ceiling) {
  constexpr double kLeast = 0.2;  // what hardly changes should look so
  const double room = std::max({0.02, 0.08 * (high - low), (kLeast - (high - low)) / 2});
  return fmt::format("[{}:{}]", number(std::max(floor, low - room)), number(std::min(ceiling, high + room)));
}

/// Labels at 1, 2 and 5 times the powers of ten, so that an axis of less than a decade has some too.
std::string log_tics(double low, double high) {
  static const std::vector<double> kCoarse{1, 2, 5}, kFine{1, 1.5, 2, 3, 4, 5, 7};
  for (const auto* steps : {&kCoarse, &kFine}) {
    std::string tics;
    int count = 0;
    for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10) {
      for (const double step : *steps) {
        const double at = step * decade;
        if (at < low || at > high) continue;
        tics += (tics.empty() ? "" : ", ") + gnuplot_string(format_count(at)) + " " + number(at);
        ++count;
      }
    }
    if (count >= 3 || steps == &kFine) return "(" + tics + ")";
  }
  return "auto";
}

std::string legend(const std::string& text) { return "title " + gnuplot_string(brief(text)); }

class Drawer {
 public:
  Drawer(const ResultTable& table, const Analysis& analysis) : table_(table), a_(analysis) {}

  std::vector<FigureGroup> all() {
    isocost();
    scores();
    largest();
    relative_error();
    breakdown();
    speedup();
    fitted();
    std::vector<FigureGroup> drawn;
    for (FigureGroup& g : groups_) {
      if (!g.panels.empty()) drawn.push_back(std::move(g));
    }
    return drawn;
  }

 private:
  const std::string& model(int i) const { return table_.models[std::size_t(i)].name; }
  const std::string& method(int i) const { return table_.methods[std::size_t(i)]; }
  std::string heading(const std::string& topic, const std::string& fallback) const {
    for (const Finding& f : a_.findings) {
      if (f.topic.starts_with(topic)) return f.headline;
    }
    return fallback;
  }

  void isocost() {
    FigureGroup group{"isocost",
                      heading("Cost", "Score against cost"),
                      "Each point is one model under one strategy at one sparsity, averaged over the tasks "
                      "all models share; bars are "
                      "standard errors. Colour: method; mark: model. The line is the Pareto frontier: no "
                      "other point is both cheaper and better.",
                      {}};
    for (const CostPanel& p : a_.frontier.panels) group.panels.push_back(isocost_panel(p));
    groups_.push_back(std::move(group));
  }

  Panel isocost_panel(const CostPanel& p) {
    std::size_t on = 0, sparse = 0;
    for (const Configuration& c : p.points) {
      on += c.frontier ? 1 : 0;
      sparse += c.frontier && !c.dense ? 1 : 0;
    }
    Plot plot(fmt::format("isocost_{}_{}", name_of(p.phase), p.length),
              fmt::format("{} tokens, {}: {} of {} frontier points sparse", length_label(p.length),
                          name_of(p.phase), sparse, on));
    double cheapest = INFINITY, dearest = 0, lowest = 1, highest = 0;
    for (const Configuration& c : p.points) {
      cheapest = std::min(cheapest, c.cost / 1.15);
      dearest = std::max(dearest, c.cost * 1.15);
      const double bar = std::isnan(c.sem) ? 0 : c.sem;
      lowest = std::min(lowest, c.score - bar);
      highest = std::max(highest, c.score + bar);
    }
    plot.set("set logscale x").set("set xlabel " + gnuplot_string(cost_label(p)));
    plot.set(fmt::format("set xrange [{}:{}]", number(cheapest), number(dearest)));
    plot.set("set xtics " + log_tics(cheapest, dearest));
    plot.set("set yrange " + padded_range(lowest, highest, -0.02, 1.02));
    plot.set("set ylabel 'score (mean over tasks)'");
    std::vector<const Configuration*> frontier;
    for (const Configuration& c : p.points) {
      if (c.frontier) frontier.push_back(&c);
    }
    std::sort(frontier.begin(), frontier.end(),
              [](const auto* x, const auto* y) { return x->cost < y->cost; });
    std::vector<std::vector<double>> line;
    for (const Configuration* c : frontier) line.push_back({c->cost, c->score});
    plot.draw(plot.data(line) + " using 1:2 with steps lc rgb '#999999' lw 1.5 title 'Pareto frontier'");
    // Marks in (method, model) pieces; the key has one line per method and one per model.
    std::map<std::pair<int, int>, std::vector<std::vector<double>>> pieces;
    std::set<int> methods, models;
    for (const Configuration& c : p.points) {
      const int m = c.dense ? -1 : c.method;
      pieces[{m, c.model}].push_back({c.cost, c.score, std::isnan(c.sem) ? 0 : c.sem});
      methods.insert(m);
      models.insert(c.model);
    }
    for (const auto& [key, rows] : pieces) {
      plot.draw(fmt::format("{} using 1:2:3 with yerrorbars lc rgb '{}' pt {} ps 0.8 notitle",
                            plot.data(rows), color(key.first), mark_of(key.second)));
    }
    for (const int m : methods) {
      plot.draw(
          fmt::format("NaN with lines lw 4 lc rgb '{}' {}", color(m), legend(m < 0 ? "dense" : method(m))));
    }
    for (const int m : models) {
      plot.draw(fmt::format("NaN with points pt {} lc rgb '#555555' {}", mark_of(m), legend(model(m))));
    }
    return plot.panel(480, 440);
  }

  static std::string cost_label(const CostPanel& p) {
    const char* what = p.phase == Phase::kDecode    ? "decode cost"
                       : p.phase == Phase::kPrefill ? "prefill cost"
                                                    : "cost of prefill and decode";
    return fmt::format("{} ({})", what, p.unit);
  }

  void scores() {
    FigureGroup group{
        "scores",
        "Score against measured sparsity, task by task",
        "Means over models and lengths on the paper's sparsity grid, interpolated over measured sparsity; "
        "bars are standard errors "
        "of the mean over samples. The dashed line is dense. Only curves that reach a level count there.",
        {}};
    for (int t = 0; t < int(table_.tasks.size()); ++t) {
      auto panel = score_panel(t);
      if (!panel.name.empty()) group.panels.push_back(std::move(panel));
    }
    groups_.push_back(std::move(group));
  }

  Panel score_panel(int task) {
    const auto& grid = paper_sparsity_grid();
    std::map<int, std::vector<const GridCurve*>> by_method;
    std::vector<double> dense;
    for (const GridCurve& c : a_.tolerance.curves) {
      if (c.task == task) by_method[c.method].push_back(&c);
    }
    if (by_method.empty()) return {};
    struct Line {
      int method;
      std::vector<std::vector<double>> rows;
    };
    std::vector<Line> lines;
    int best = -1;
    double best_score = -1, best_level = 0;
    for (const auto& [m, curves] : by_method) {
      Line line{m, {}};
      for (std::size_t g = 0; g < grid.size(); ++g) {
        double sum = 0, variance = 0, n = 0;
        for (const GridCurve* c : curves) {
          if (std::isnan(c->score[g])) continue;
          sum += c->score[g];
          variance += std::isnan(c->sem[g]) ? 0 : c->sem[g] * c->sem[g];
          ++n;
        }
        if (n < double(curves.size())) continue;  // means over other curves do not compare
        line.rows.push_back({grid[g], sum / n, std::sqrt(variance) / n});
      }
      if (line.rows.empty()) continue;
      for (const GridCurve* c : curves) dense.push_back(c->dense);
      const auto& last = line.rows.back();
      if (last[0] > best_level || (last[0] == best_level && last[1] > best_score)) {
        best = m;
        best_level = last[0];
        best_score = last[1];
      }
      lines.push_back(std::move(line));
    }
    if (lines.empty() || best < 0) return {};
    const double base = stats::mean(dense);
    const std::string& name = table_.tasks[std::size_t(task)].name;
    const auto reach_it = std::count_if(lines.begin(), lines.end(),
                                        [&](const Line& l) { return l.rows.back()[0] == best_level; });
    Plot plot("score_" + std::to_string(task) + "_" + slug(name),
              fmt::format("{}: {} {} sparsity {:.2f} ({:+.2f})", brief(name), brief(method(best), 20),
                          reach_it > 1 ? "is best at" : "alone reaches", best_level, best_score - base));
    plot.set("set xlabel 'measured sparsity'").set("set ylabel 'score'").set("set xrange [-0.03:1]");
    plot.draw(plot.data({{0, base}, {1, base}}) +
              " using 1:2 with lines dt 2 lc rgb '#000000' title 'dense'");
    for (const Line& line : lines) {
      plot.draw(fmt::format("{} using 1:2:3 with yerrorlines lc rgb '{}' pt {} ps 0.6 lw 1.5 {}",
                            plot.data(line.rows), color(line.method), mark_of(line.method),
                            legend(method(line.method))));
    }
    return plot.panel();
  }

  void largest() {
    FigureGroup group{"largest",
                      heading("Accuracy", "Largest sparsity that keeps accuracy"),
                      "Highest measured sparsity without a significant loss (" + describe_test(a_.options) +
                          "), mean over lengths. One panel per method, one row per task, one mark per model; "
                          "the grey line spans the models.",
                      {}};
    for (int m = 0; m < int(table_.methods.size()); ++m) {
      Panel panel = largest_panel(m);
      if (!panel.name.empty()) group.panels.push_back(std::move(panel));
    }
    groups_.push_back(std::move(group));
  }

  Panel largest_panel(int m) {
    std::map<std::pair<int, int>, std::vector<double>> values;  // task, model
    std::set<int> tasks, models;
    std::vector<double> everything;
    for (const LargestSparsity& c : a_.significance.curves) {
      if (c.method != m) continue;
      values[{c.task, c.model}].push_back(c.largest_sparsity());
      tasks.insert(c.task);
      models.insert(c.model);
      everything.push_back(c.largest_sparsity());
    }
    if (values.empty()) return {};
    Plot plot(
        "largest_" + std::to_string(m) + "_" + slug(method(m)),
        fmt::format("{}: accuracy kept to sparsity {:.2f} on average, {:.2f} at worst", brief(method(m)),
                    stats::mean(everything), *std::min_element(everything.begin(), everything.end())));
    std::string tics;
    std::map<int, std::size_t> row_of;
    for (const int t : tasks) {
      row_of[t] = row_of.size();
      tics += (tics.empty() ? "" : ", ") + gnuplot_string(brief(table_.tasks[std::size_t(t)].name, 18)) +
              " " + std::to_string(row_of[t]);
    }
    plot.set("set ytics (" + tics + ") nomirror")
        .set(fmt::format("set yrange [{}:-0.6]", double(tasks.size()) - 0.4));
    plot.set("set xrange [-0.03:1.0]").set("set xlabel 'largest sparsity (mean over lengths)'");
    std::vector<std::vector<double>> spans;
    for (const int t : tasks) {
      double low = 2, high = -1;
      for (const int k : models) {
        const auto it = values.find({t, k});
        if (it == values.end()) continue;
        low = std::min(low, stats::mean(it->second));
        high = std::max(high, stats::mean(it->second));
      }
      spans.push_back({low, double(row_of[t]), high - low, 0});
    }
    plot.draw(plot.data(spans) + " using 1:2:3:4 with vectors nohead lw 2 lc rgb '#BBBBBB' notitle");
    for (const int k : models) {
      std::vector<std::vector<double>> rows;
      for (const int t : tasks) {
        const auto it = values.find({t, k});
        if (it != values.end()) rows.push_back({stats::mean(it->second), double(row_of[t])});
      }
      plot.draw(fmt::format("{} using 1:2 with points lc rgb '{}' pt {} ps 1 {}", plot.data(rows), color(m),
                            mark_of(k), legend(model(k))));
    }
    return plot.panel();
  }

  void relative_error() {
    FigureGroup group{"error",
                      heading("Length", "Relative error against sparsity"),
                      "(dense - sparse) / dense on the paper's sparsity grid, mean over models, tasks and "
                      "methods; bars are standard errors "
                      "between those curves. One line per length, lighter for longer.",
                      {}};
    const auto& grid = paper_sparsity_grid();
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kBoth}) {
      std::vector<const GridMean*> means;
      for (const GridMean& m : a_.tolerance.by_length) {
        if (m.phase == phase && m.method < 0) means.push_back(&m);
      }
      if (means.empty()) continue;
      std::size_t top = grid.size() - 1;
      while (top > 0 &&
             !std::all_of(means.begin(), means.end(), [&](const GridMean* m) { return m->curves[top] > 0; }))
        --top;
      if (top == 0) continue;
      Plot plot(fmt::format("relative_error_{}", name_of(phase)),
                fmt::format("{}: error at sparsity {:.2f} is {:.0f} % at {}, {:.0f} % at {}", name_of(phase),
                            grid[top], 100 * means.front()->error[top], length_label(means.front()->length),
                            100 * means.back()->error[top], length_label(means.back()->length)));
      plot.set("set xlabel 'measured sparsity'")
          .set("set ylabel 'relative error (%)'")
          .set("set yrange [*<0:1<*]")  // where nothing is lost, rounding errors are not worth an axis
          .set("set xrange [-0.03:1]");
      for (std::size_t i = 0; i < means.size(); ++i) {
        std::vector<std::vector<double>> rows;
        for (std::size_t g = 0; g < grid.size(); ++g) {
          if (means[i]->curves[g] == 0 || means[i]->curves[g] < means[i]->curves[0]) continue;
          const double error = means[i]->error_sem[g];
          rows.push_back({grid[g], 100 * means[i]->error[g], std::isnan(error) ? 0 : 100 * error});
        }
        plot.draw(fmt::format("{} using 1:2:3 with yerrorlines lc rgb '{}' pt {} ps 0.7 lw 2 {}",
                              plot.data(rows), sequence_color(i, means.size()), mark_of(int(i)),
                              legend(length_label(means[i]->length) + " tokens")));
      }
      group.panels.push_back(plot.panel());
    }
    groups_.push_back(std::move(group));
  }

  void breakdown() {
    FigureGroup group{
        "breakdown",
        "Where the cost arises, dense",
        "Shares of one dense prompt by the cost model of the kernels (causal attention): FLOPs of the "
        "prefill, bytes that one "
        "decode step of one sequence reads. Sparse attention can only shrink the attention part.",
        {}};
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      Panel panel = breakdown_panel(phase);
      if (!panel.name.empty()) group.panels.push_back(std::move(panel));
    }
    if (!group.panels.empty()) group.heading = group.panels.front().title;
    groups_.push_back(std::move(group));
  }

  Panel breakdown_panel(Phase phase) {
    std::vector<std::vector<double>> rows;
    std::string tics;
    double low = 2, high = -1, position = 0;
    for (const ResultModel& m : table_.models) {
      if (!m.has_shape()) continue;
      for (const std::int64_t length : table_.lengths) {
        const double bytes = m.dtype == "float32" ? 4 : 2;
        const CostBreakdown c = phase == Phase::kPrefill
                                    ? causal_prefill_flops(m.shape, double(length), 0)
                                    : causal_decode_step(m.shape, double(length), 0, 1, bytes).bytes;
        const double total = c.total();
        rows.push_back({position, 100 * c.attention / total, 100 * c.projections / total, 100 * c.mlp / total,
                        100 * (c.head + c.embedding) / total});
        tics += (tics.empty() ? "" : ", ") + gnuplot_string(brief(m.name, 16) + " " + length_label(length)) +
                " " + number(position);
        low = std::min(low, c.attention / total);
        high = std::max(high, c.attention / total);
        ++position;
      }
      position += 0.7;
    }
    if (rows.empty()) return {};
    const char* what = phase == Phase::kPrefill ? "prefill FLOPs" : "decode bytes";
    const char* part = phase == Phase::kPrefill ? "Attention" : "The KV cache";
    Plot plot(fmt::format("breakdown_{}", name_of(phase)),
              fmt::format("{} is {:.0f} to {:.0f} % of dense {}", part, 100 * low, 100 * high, what));
    plot.set("set style data histograms")
        .set("set style histogram rowstacked")
        .set("set style fill solid 0.9 noborder");
    plot.set("set boxwidth 0.8")
        .set(fmt::format("set ylabel 'share of {} (%)'", what))
        .set("set yrange [0:100]");
    plot.set("set xtics (" + tics + ") rotate by 45 right nomirror font ',9'")
        .set(fmt::format("set xrange [-0.7:{}]", number(position)));
    const std::string block = plot.data(rows);
    // Drawn as boxes from top to bottom, so that positions can have gaps between models.
    plot.draw(block + " using 1:(100) with boxes lc rgb '#BBBBBB' title 'embedding and head'");
    plot.draw(block + " using 1:($2+$3+$4) with boxes lc rgb '#E69F00' title 'MLP'");
    plot.draw(block + " using 1:($2+$3) with boxes lc rgb '#56B4E9' title 'Q, K, V, O projections'");
    plot.draw(fmt::format("{} using 1:2 with boxes lc rgb '#0072B2' title '{}'", block,
                          phase == Phase::kPrefill ? "attention" : "KV cache"));
    return plot.panel(480, 440);
  }

  void speedup() {
    FigureGroup group{"speedup",
                      "Measured speed-up over dense",
                      "Wall time of dense divided by wall time of the strategy, per model and length, tasks "
                      "averaged. Decode times are those of "
                      "batches that strategies share, so they understate what one strategy alone would gain. "
                      "The grey line is no gain.",
                      {}};
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      Panel panel = speedup_panel(phase);
      if (!panel.name.empty()) group.panels.push_back(std::move(panel));
    }
    if (!group.panels.empty()) group.heading = "Measured: " + group.panels.front().title;
    groups_.push_back(std::move(group));
  }

  Panel speedup_panel(Phase phase) {
    const bool prefill = phase == Phase::kPrefill;
    const OutputTable& cost = a_.table("cost");
    const std::size_t gain = cost.column(prefill ? "prefill_speedup" : "decode_speedup"),
                      sparsity = cost.column("sparsity_computed"), strategy = cost.column("strategy"),
                      length = cost.column("length");
    std::map<int, std::vector<std::vector<double>>> rows;
    double best = 0, best_sparsity = 0, best_length = 0;
    for (std::size_t r = 0; r < cost.rows(); ++r) {
      for (std::size_t s = 0; s < table_.strategies.size(); ++s) {
        const bool both = table_.strategies[s].phase == Phase::kBoth;
        if (table_.strategies[s].name != cost.text(r, strategy) ||
            (table_.strategies[s].phase != phase && !both))
          continue;
        const double value = cost.number(r, gain);
        if (!std::isfinite(value) || value <= 0) continue;
        rows[table_.method_of[s]].push_back({cost.number(r, sparsity), value});
        if (value > best) {
          best = value;
          best_sparsity = cost.number(r, sparsity);
          best_length = cost.number(r, length);
        }
      }
    }
    if (rows.empty()) return {};
    Plot plot(fmt::format("speedup_{}", name_of(phase)),
              fmt::format("{} is at most {:.1f}x as fast as dense (sparsity {:.2f}, {})", name_of(phase),
                          best, best_sparsity, length_label(std::llround(best_length))));
    plot.set("set xlabel 'measured sparsity'")
        .set("set ylabel 'dense time / time'")
        .set("set xrange [-0.03:1]");
    plot.set("set yrange [0:*]").set("set format y '%gx'");
    plot.draw(plot.data({{-0.03, 1}, {1, 1}}) + " using 1:2 with lines lc rgb '#999999' notitle");
    for (const auto& [m, points] : rows) {
      plot.draw(fmt::format("{} using 1:2 with points lc rgb '{}' pt {} ps 0.6 {}", plot.data(points),
                            color(m), mark_of(m), legend(method(m))));
    }
    return plot.panel();
  }

  void fitted() {
    FigureGroup group{"fitted",
                      heading("Scaling law", "Fitted against observed score"),
                      "One point per cell; on the diagonal the law is right. Scores are means over samples, "
                      "so points scatter by their standard "
                      "error (at most 0.5 / sqrt(samples)) even under a perfect law.",
                      {}};
    for (const LawFit& law : a_.scaling.fits) {
      if (law.method != a_.options.fit) continue;
      Plot plot(fmt::format("fitted_{}", name_of(law.phase)),
                fmt::format("{} law: R² {:.2f}, mean absolute error {:.3f}", name_of(law.phase),
                            law.r_squared, law.mae));
      plot.set("set xlabel 'score by the law'")
          .set("set ylabel 'observed score'")
          .set("set xrange [0:1]")
          .set("set yrange [0:1]");
      plot.set("set size square");
      plot.draw(plot.data({{0, 0}, {1, 1}}) + " using 1:2 with lines lc rgb '#999999' notitle");
      std::map<int, std::vector<std::vector<double>>> rows;
      for (std::size_t i = 0; i < law.points.size(); ++i) {
        rows[law.points[i].method].push_back({law.fitted[i], law.points[i].score});
      }
      for (const auto& [m, points] : rows) {
        plot.draw(fmt::format("{} using 1:2 with points lc rgb '{}' pt {} ps 0.4 {}", plot.data(points),
                              color(m), m < 0 ? 7 : mark_of(m), legend(m < 0 ? "dense" : method(m))));
      }
      group.panels.push_back(plot.panel());
    }
    groups_.push_back(std::move(group));
  }

  std::string color(int m) const { return m < 0 ? kDense : method_color(table_, m); }

  const ResultTable& table_;
  const Analysis& a_;
  std::vector<FigureGroup> groups_;
};

}  // namespace

std::string gnuplot_string(std::string_view text) {
  std::string out = "'";
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t n = utf8_length(text, i);
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (n == 0) {
      out += "\xEF\xBF\xBD";  // a broken lead byte would swallow the closing quote
    } else if (c == '\'') {
      out += "\xE2\x80\x99";  // gnuplot does not read '' alike everywhere
    } else if (c < 0x20 || c == 0x7f) {
      out += ' ';
    } else {
      out += text.substr(i, n);
    }
    i += std::max<std::size_t>(n, 1);
  }
  return out + "'";
}

std::string method_color(const ResultTable& table, int method) {
  const auto known = [](const std::string& name) {
    return std::size_t(std::find(kKnown.begin(), kKnown.end(), name) - kKnown.begin());
  };
  if (table.method_phase[std::size_t(method)] == Phase::kDense) return kDense;
  const std::size_t fixed = known(table.methods[std::size_t(method)]);
  if (fixed < kKnown.size()) return kPalette[fixed];
  // Others take what the known methods of this table leave over, in order; after that colours repeat, marks
  // differ.
  std::vector<std::size_t> free;
  for (std::size_t i = kPalette.size(); i-- > 0;) {
    const bool taken = i < kKnown.size() && std::any_of(table.methods.begin(), table.methods.end(),
                                                        [&](const std::string& n) { return known(n) == i; });
    if (!taken) free.push_back(i);
  }
  std::size_t order = 0;
  for (int m = 0; m < method; ++m) {
    const bool other = known(table.methods[std::size_t(m)]) == kKnown.size() &&
                       table.method_phase[std::size_t(m)] != Phase::kDense;
    order += other ? 1 : 0;
  }
  return free.empty() ? kPalette[order % kPalette.size()] : kPalette[free[order % free.size()]];
}

std::vector<FigureGroup> make_figures(const ResultTable& table, const Analysis& analysis) {
  return Drawer(table, analysis).all();
}

void draw_figures(const std::vector<FigureGroup>& groups, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw_library("{}: cannot make the folder: {}", folder, error.message());
  std::string script = "# Redraws the figures: gnuplot figures.gnuplot\n";
  for (const FigureGroup& group : groups) {
    for (const Panel& p : group.panels) {
      const std::string common =
          "set encoding utf8\nset border 3 lc rgb '#444444'\nset tics nomirror\nset grid lc rgb '#E6E6E6' lt "
          "1\n"
          "set key below maxrows 4 samplen 2 spacing 1.1 font ',11'\nset bars small\nset title font "
          "',13'\nset xlabel offset 0,0.6\n";
      const auto draw = [&](const std::string& terminal, const char* extension) {
        script += "reset session\n" + terminal + "set output '" + p.name + extension + "'\n" + common +
                  p.script + "unset output\n\n";
      };
      draw(fmt::format(
               "set terminal svg noenhanced size {},{} font 'DejaVu Sans,12.5' background rgb 'white'\n",
               p.width, p.height),
           ".svg");
      draw(fmt::format("set terminal pdfcairo noenhanced size {:.2f}in,{:.2f}in font 'DejaVu Sans,9.5'\n",
                       p.width / 96.0, p.height / 96.0),
           ".pdf");
    }
  }
  write_file_atomically((std::filesystem::path(folder) / "figures.gnuplot").string(), script);
  run_gnuplot(folder, "figures.gnuplot");
}

}  // namespace lacuna
