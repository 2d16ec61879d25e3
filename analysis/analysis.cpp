#include "analysis/analysis.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/hdf5.h"
#include "core/json.h"
#include "core/text.h"
#include "sweeps/results_schema.h"

namespace lacuna {

namespace {

namespace fs = std::filesystem;

/// Breaks at spaces; continuation lines are indented. Counts code points, not bytes.
std::string wrap(const std::string& text, std::size_t indent, std::size_t width = 100) {
  std::string out(indent, ' ');
  std::size_t column = indent;
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = text.find(' ', begin);
    if (end == std::string::npos) end = text.size();
    const std::string word = text.substr(begin, end - begin);
    std::size_t length = 0;
    for (const char c : word) length += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
    if (column > indent && column + 1 + length > width) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += length;
    begin = end + 1;
  }
  return out + "\n";
}

void add(std::vector<std::string>& to, const std::vector<std::string>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void check_methods(const ResultTable& table, const AnalysisOptions& options) {
  for (const std::string& name : options.methods) {
    const bool known = std::find(table.methods.begin(), table.methods.end(), name) != table.methods.end();
    LACUNA_REQUIRE(known, "--method: {}",
                   unknown_name_message("method of these results", name, table.methods));
  }
}

struct FileState {
  ino_t inode = 0;
  timespec modified{};
  off_t size = 0;
  bool operator==(const FileState& o) const {
    return inode == o.inode && size == o.size && modified.tv_sec == o.modified.tv_sec &&
           modified.tv_nsec == o.modified.tv_nsec;
  }
};
FileState state_of(const std::string& path) {
  struct stat s {};
  LACUNA_REQUIRE(::stat(path.c_str(), &s) == 0, "{}: cannot be read any more", path);
  return {s.st_ino, s.st_mtim, s.st_size};
}

void sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  if (fd < 0) return;
  (void)::fsync(fd);
  ::close(fd);
}

void write_tables(const Analysis& analysis, hdf5::File& file) {
  const std::string root(schema::kAnalysis);
  const std::string unit(schema::kAttrUnit), description(schema::kAttrDescription);
  file.create_group(root);
  file.write_attribute(root, "options", to_json(analysis.options).dump());
  file.write_attribute(root, schema::kAttrProgramVersion, LACUNA_VERSION);
  for (const OutputTable& table : analysis.tables) {
    const std::string group = root + "/" + table.name();
    file.create_group(group);
    file.write_attribute(group, description, table.description());
    for (std::size_t c = 0; c < table.columns().size(); ++c) {
      const OutputColumn& column = table.columns()[c];
      const std::string path = group + "/" + column.name;
      if (column.text) {
        std::vector<std::string> values;
        for (std::size_t r = 0; r < table.rows(); ++r) values.push_back(table.text(r, c));
        file.write_strings(path, values);
      } else {
        std::vector<double> values;
        for (std::size_t r = 0; r < table.rows(); ++r) values.push_back(table.number(r, c));
        file.write(path, values);
      }
      file.write_attribute(path, unit, column.unit);
      file.write_attribute(path, description, column.description);
    }
  }
  const auto write_lines = [&](const char* name, const char* what, const std::vector<std::string>& lines) {
    const std::string path = root + "/" + name;
    file.write_strings(path, lines);
    file.write_attribute(path, unit, "");
    file.write_attribute(path, description, what);
  };
  std::vector<std::string> findings;
  for (const Finding& f : analysis.findings)
    findings.push_back(f.topic + ": " + f.headline + ". " + f.detail);
  write_lines("findings", "What was found, in words", findings);
  write_lines("warnings", "What makes the results suspicious", analysis.warnings);
  write_lines("notes", "What could not be analysed, and why", analysis.notes);
}

}  // namespace

const OutputTable& Analysis::table(const std::string& name) const {
  for (const OutputTable& t : tables) {
    if (t.name() == name) return t;
  }
  throw_internal("no table {}", name);
}

Analysis analyze(const ResultTable& table, const AnalysisOptions& options, ThreadPool& threads) {
  options.check();
  check_methods(table, options);
  Analysis a;
  a.options = options;
  a.frontier = analyze_frontier(table, options, threads);
  a.significance = analyze_significance(table, options, threads);
  a.scaling = analyze_scaling(table, options);
  a.tolerance = analyze_tolerance(table, options);
  a.warnings = a.significance.warnings;
  if (!table.complete)
    a.warnings.insert(a.warnings.begin(),
                      "The sweep is not finished: cells are missing or hold fewer samples");
  add(a.notes, a.frontier.notes);
  add(a.notes, a.significance.notes);
  add(a.notes, a.scaling.notes);
  add(a.notes, a.tolerance.notes);
  a.tables = make_tables(table, a);
  a.findings = make_findings(table, a);
  return a;
}

std::string summary_text(const ResultTable& table, const Analysis& a) {
  std::string out;
  for (const Finding& f : a.findings) {
    out += wrap(f.topic + ": " + f.headline + ".", 0);
    if (!f.detail.empty()) out += wrap(f.detail, 4);
  }
  if (!a.warnings.empty()) {
    out += "\nWarnings\n";
    for (const std::string& w : a.warnings) out += wrap(w + ".", 4);
  }
  if (!a.notes.empty()) {
    out += "\nNot done, or to be read with care\n";
    for (const std::string& n : a.notes) out += wrap(n + ".", 4);
  }
  out +=
      "\n" + wrap(fmt::format("Settings: cost {}; {}; link {}, fit {}, clip {}; confidence {}; {} resamples, "
                              "seed {}; {} cells.",
                              name_of(a.options.cost), describe_test(a.options), name_of(a.options.link),
                              name_of(a.options.fit),
                              a.options.clip > 0 ? fmt::format("{}", a.options.clip) : std::string("1/(2n)"),
                              a.options.confidence, a.options.resamples, a.options.seed, table.cells.size()),
                  0);
  return out;
}

void write_csv_files(const ResultTable& table, const Analysis& a, const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_library("{}: cannot make the folder: {}", folder, error.message());
  for (const OutputTable& t : a.tables)
    write_file_atomically((fs::path(folder) / (t.name() + ".csv")).string(), t.csv());
  write_file_atomically((fs::path(folder) / "summary.txt").string(), summary_text(table, a));
}

void write_analysis_hdf5(const Analysis& analysis, const std::string& results_path) {
  const FileState before = state_of(results_path);
  const std::string temporary = temporary_name(results_path + ".analysis");
  const auto cleanup = [&] {
    std::error_code ignored;
    fs::remove(temporary, ignored);
  };
  try {
    fs::copy_file(results_path, temporary, fs::copy_options::overwrite_existing);
    hdf5::File file = hdf5::File::open_for_update(temporary);
    file.remove(std::string(schema::kAnalysis));
    write_tables(analysis, file);
    file.close();
    sync_path(temporary);
    LACUNA_REQUIRE(
        state_of(results_path) == before,
        "{}: was rebuilt while it was analysed (is the sweep still running?); run `lacuna analyze` again",
        results_path);
    fs::rename(temporary, results_path);
    sync_path(fs::path(results_path).parent_path().empty() ? "."
                                                           : fs::path(results_path).parent_path().string());
  } catch (const fs::filesystem_error& e) {
    cleanup();
    throw_library("{}: cannot write /analysis: {}", results_path, e.what());
  } catch (...) {
    cleanup();
    throw;
  }
}

}  // namespace lacuna
