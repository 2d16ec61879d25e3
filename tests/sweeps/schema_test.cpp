// docs/results-format.md says what results_schema.h says, column by column.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

#include "core/file.h"
#include "sweeps/results_schema.h"

namespace lacuna::schema {
namespace {

std::string_view type_name(ColumnType type) {
  switch (type) {
    case ColumnType::kU8:
      return "uint8";
    case ColumnType::kI32:
      return "int32";
    case ColumnType::kI64:
      return "int64";
    case ColumnType::kU64:
      return "uint64";
    case ColumnType::kF64:
      return "float64";
    case ColumnType::kString:
      return "S*";
  }
  return "";
}

TEST(ResultsSchema, ThePageListsEveryColumnWithItsTypeUnitAndMeaning) {
  const std::string page = read_file("docs/results-format.md");
  const auto expect_rows = [&](const auto& columns) {
    for (const Column& column : columns) {
      const std::string row = fmt::format("| `{}` | {} | {} | {} |", column.name, type_name(column.type),
                                          column.unit.empty() ? "-" : column.unit, column.description);
      EXPECT_NE(page.find(row), std::string::npos) << "docs/results-format.md lacks the row\n" << row;
    }
  };
  expect_rows(kSampleColumns);
  expect_rows(kCellColumns);
  expect_rows(kModelColumns);
  expect_rows(kTaskColumns);
  expect_rows(kStrategyColumns);
}

}  // namespace
}  // namespace lacuna::schema
