// lacuna export
#include <CLI/CLI.hpp>
#include <cmath>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/hdf5.h"
#include "runner/commands/commands.h"
#include "runner/run_folder.h"
#include "sweeps/results_schema.h"

namespace lacuna {

namespace {

/// RFC 4180: quoted when it has to be.
std::string csv_text(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

using CsvColumn = std::vector<std::string>;

CsvColumn read_column(const hdf5::File& file, std::string_view group, const schema::Column& column) {
  const std::string path = fmt::format("{}/{}", group, column.name);
  CsvColumn cells;
  const auto numbers = [&]<class T>(T) {
    for (const T value : file.read<T>(path)) {
      if constexpr (std::is_same_v<T, double>)
        cells.push_back(std::isfinite(value) ? fmt::format("{}", value) : "");
      else
        cells.push_back(fmt::format("{}", value));
    }
  };
  switch (column.type) {
    case schema::ColumnType::kU8:
      numbers(std::uint8_t{});
      break;
    case schema::ColumnType::kI32:
      numbers(std::int32_t{});
      break;
    case schema::ColumnType::kI64:
      numbers(std::int64_t{});
      break;
    case schema::ColumnType::kU64:
      numbers(std::uint64_t{});
      break;
    case schema::ColumnType::kF64:
      numbers(double{});
      break;
    case schema::ColumnType::kString:
      for (const auto& text : file.read_strings(path)) cells.push_back(csv_text(text));
      break;
  }
  return cells;
}

void add_table(const hdf5::File& file, std::string_view group, std::span<const schema::Column> columns,
               std::vector<std::string>& names, std::vector<CsvColumn>& table) {
  for (const auto& column : columns) {
    names.emplace_back(column.name);
    table.push_back(read_column(file, group, column));
  }
}

/// One line per sample with its cell's settings in front, so that the table stands alone.
void add_samples(const hdf5::File& file, bool texts, std::vector<std::string>& names,
                 std::vector<CsvColumn>& table) {
  add_table(file, schema::kSamples, schema::kSampleColumns, names, table);
  const auto cell = file.read<std::int32_t>(fmt::format("{}/cell", schema::kSamples));
  std::size_t position = 0;
  for (const auto& column : schema::kCellColumns) {
    if (column.name != "key" && column.name != "model" && column.name != "task" && column.name != "length" &&
        column.name != "strategy" && column.name != "sparsity") {
      continue;
    }
    const CsvColumn per_cell = read_column(file, schema::kCells, column);
    CsvColumn values;
    for (const auto index : cell) values.push_back(per_cell.at(static_cast<std::size_t>(index)));
    names.insert(names.begin() + static_cast<std::ptrdiff_t>(position),
                 column.name == "sparsity" ? "requested_sparsity" : std::string(column.name));
    table.insert(table.begin() + static_cast<std::ptrdiff_t>(position++), std::move(values));
  }
  if (!texts) return;
  const auto bytes = file.read<std::uint8_t>(std::string(schema::kTextBytes));
  const auto offset = file.read<std::uint64_t>(std::string(schema::kTextOffset));
  for (int kind = 0; kind < schema::kTextsPerSample; ++kind) {
    constexpr const char* kNames[] = {"prediction", "gold", "answer_or_error"};
    CsvColumn column;
    for (std::size_t row = 0; row < cell.size(); ++row) {
      const std::size_t i = row * schema::kTextsPerSample + static_cast<std::size_t>(kind);
      column.push_back(csv_text(std::string(bytes.begin() + static_cast<std::ptrdiff_t>(offset.at(i)),
                                            bytes.begin() + static_cast<std::ptrdiff_t>(offset.at(i + 1)))));
    }
    names.emplace_back(kNames[kind]);
    table.push_back(std::move(column));
  }
}

void export_csv(const std::string& source, const std::string& target, const std::string& what, bool texts) {
  const std::string path = std::filesystem::is_directory(source) ? RunPaths(source).results() : source;
  const hdf5::File file = hdf5::File::open(path);
  LACUNA_REQUIRE(file.read_int_attribute("/", schema::kAttrSchemaVersion) <= schema::kSchemaVersion,
                 "{}: written by a newer program (schema {})", path,
                 file.read_int_attribute("/", schema::kAttrSchemaVersion));
  std::vector<std::string> names;
  std::vector<CsvColumn> table;
  if (what == "samples")
    add_samples(file, texts, names, table);
  else
    add_table(file, schema::kCells, schema::kCellColumns, names, table);
  std::string csv;
  for (std::size_t c = 0; c < names.size(); ++c) csv += (c > 0 ? "," : "") + names[c];
  csv += "\n";
  for (std::size_t row = 0; !table.empty() && row < table[0].size(); ++row) {
    for (std::size_t c = 0; c < table.size(); ++c) csv += (c > 0 ? "," : "") + table[c][row];
    csv += "\n";
  }
  write_file_atomically(target, csv);
  fmt::print("{}: {} rows, {} columns\n", target, table.empty() ? 0 : table[0].size(), names.size());
}

}  // namespace

void add_export_command(CLI::App& app) {
  struct Given {
    std::string source, csv, what = "cells";
    bool texts = false;
  };
  const auto given = std::make_shared<Given>();
  CLI::App* verb = app.add_subcommand("export", "Write cells or samples of a results file as CSV");
  verb->footer(
      "Examples:\n  lacuna export results/demo --csv cells.csv\n  lacuna export results/demo --csv "
      "samples.csv --table samples --texts");
  verb->add_option("source", given->source, "Run folder or results.h5")->required();
  verb->add_option("--csv", given->csv, "File to write")->required();
  verb->add_option("--table", given->what, "cells or samples")
      ->check(CLI::IsMember({"cells", "samples"}))
      ->capture_default_str();
  verb->add_flag("--texts", given->texts, "With samples: predictions, golds and answers too");
  verb->callback([given] {
    LACUNA_REQUIRE(!given->texts || given->what == "samples", "--texts belongs to --table samples");
    export_csv(given->source, given->csv, given->what, given->texts);
  });
}

}  // namespace lacuna
