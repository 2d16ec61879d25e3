// A table that an analysis made: columns with units and meanings, written as CSV, HDF5 or HTML from one
// place.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace lacuna {

struct OutputColumn {
  std::string name;         ///< snake_case, unique in its table
  std::string unit;         ///< "1", "tokens", "FLOP", ...; "" for names
  std::string description;  ///< One sentence
  bool text = false;
};

using OutputValue = std::variant<double, std::string>;

class OutputTable {
 public:
  OutputTable() = default;
  OutputTable(std::string name, std::string description, std::vector<OutputColumn> columns)
      : name_(std::move(name)), description_(std::move(description)), columns_(std::move(columns)) {}

  /// One value per column, of the column's type (kInternal otherwise).
  void add(std::vector<OutputValue> row);

  const std::string& name() const { return name_; }
  const std::string& description() const { return description_; }
  const std::vector<OutputColumn>& columns() const { return columns_; }
  std::size_t rows() const { return rows_.size(); }
  double number(std::size_t row, std::size_t column) const { return std::get<double>(rows_[row][column]); }
  const std::string& text(std::size_t row, std::size_t column) const {
    return std::get<std::string>(rows_[row][column]);
  }
  /// Index of a column by name (kInternal when there is none).
  std::size_t column(const std::string& name) const;

  /// RFC 4180 with a header line; numbers in the shortest form that reads back as the same, NaN as an empty
  /// field.
  std::string csv() const;

 private:
  std::string name_, description_;
  std::vector<OutputColumn> columns_;
  std::vector<std::vector<OutputValue>> rows_;
};

}  // namespace lacuna
