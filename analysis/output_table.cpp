#include "analysis/output_table.h"

#include <cmath>

#include "core/error.h"

namespace lacuna {

namespace {
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}
}  // namespace

void OutputTable::add(std::vector<OutputValue> row) {
  LACUNA_CHECK(row.size() == columns_.size(), "table {}: {} values for {} columns", name_, row.size(),
               columns_.size());
  for (std::size_t i = 0; i < row.size(); ++i) {
    LACUNA_CHECK(std::holds_alternative<std::string>(row[i]) == columns_[i].text,
                 "table {}: column {} has the wrong type", name_, columns_[i].name);
  }
  rows_.push_back(std::move(row));
}

std::size_t OutputTable::column(const std::string& name) const {
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (columns_[i].name == name) return i;
  }
  throw_internal("table {} has no column {}", name_, name);
}

std::string OutputTable::csv() const {
  std::string out;
  for (std::size_t i = 0; i < columns_.size(); ++i) out += (i == 0 ? "" : ",") + columns_[i].name;
  out += "\n";
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i > 0) out += ',';
      if (columns_[i].text) {
        out += csv_field(std::get<std::string>(row[i]));
      } else if (const double value = std::get<double>(row[i]); !std::isnan(value)) {
        out += fmt::format("{}", value);
      }
    }
    out += "\n";
  }
  return out;
}

}  // namespace lacuna
