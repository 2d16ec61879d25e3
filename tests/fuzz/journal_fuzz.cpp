// libFuzzer target: no line crashes the journal's reader, and what it accepts as a record is written back as
// a line that it accepts again.
#include <string_view>

#include "runner/sample_record.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  lacuna::RecordHead head;
  lacuna::SampleRecord record;
  const bool has_head = lacuna::read_head(line, head) == lacuna::LineProblem::kNone;
  const bool is_record = lacuna::read_record(line, record) == lacuna::LineProblem::kNone;
  if (is_record && !has_head) __builtin_trap();
  if (!is_record) return 0;
  std::string again = lacuna::to_journal_line(record);
  again.pop_back();
  if (lacuna::read_record(again, record) != lacuna::LineProblem::kNone) __builtin_trap();
  return 0;
}
