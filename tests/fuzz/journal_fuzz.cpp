// Fuzz target: no line crashes the journal's reader, and what it accepts as a record is written back as a
// line that it accepts again. Every input is tried as it is and with its checksum made right, so that damage
// gets past it.
#include <fmt/format.h>

#include <string>
#include <string_view>

#include "core/hash.h"
#include "runner/sample_record.h"

namespace {

void check(std::string_view line) {
  lacuna::RecordHead head;
  lacuna::SampleRecord record;
  const bool has_head = lacuna::read_head(line, head) == lacuna::LineProblem::kNone;
  const bool is_record = lacuna::read_record(line, record) == lacuna::LineProblem::kNone;
  if (is_record && !has_head) __builtin_trap();
  if (!is_record) return;
  std::string again = lacuna::to_journal_line(record);
  again.pop_back();
  if (lacuna::read_record(again, record) != lacuna::LineProblem::kNone) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  check(line);
  const std::string_view body = line.substr(0, line.rfind(R"(,"xxh3":")"));
  check(fmt::format(R"({},"xxh3":"{:016x}"}})", body, lacuna::hash64(body)));
  return 0;
}
