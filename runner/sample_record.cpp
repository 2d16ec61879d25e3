#include "runner/sample_record.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <utility>

#include "core/hash.h"
#include "core/json.h"

namespace lacuna {

namespace {

// {"cell":"0123456789abcdef","sample":12,"status":0,"attempt":0,"finished":1.5, ...
// ,"xxh3":"0123456789abcdef"} The order of the first fields is fixed, so that a head is read without a JSON
// parser; the checksum covers every byte before its own field.
constexpr std::string_view kCell = R"({"cell":")";
constexpr std::string_view kSample = R"(","sample":)";
constexpr std::string_view kStatus = R"(,"status":)";
constexpr std::string_view kAttempt = R"(,"attempt":)";
constexpr std::string_view kFinished = R"(,"finished":)";
constexpr std::string_view kChecksum = R"(,"xxh3":")";
constexpr std::string_view kEnd = R"("})";
constexpr std::size_t kTail = kChecksum.size() + 16 + kEnd.size();

void append_number(std::string& line, std::string_view name, double value) {
  // Shortest text that reads back to the same bits; JSON has no NaN.
  if (std::isfinite(value))
    fmt::format_to(std::back_inserter(line), R"(,"{}":{})", name, value);
  else
    fmt::format_to(std::back_inserter(line), R"(,"{}":null)", name);
}
template <class Integer>
void append_number(std::string& line, std::string_view name, Integer value) {
  fmt::format_to(std::back_inserter(line), R"(,"{}":{})", name, static_cast<std::int64_t>(value));
}
void append_number(std::string& line, std::string_view name, std::uint64_t value) {
  fmt::format_to(std::back_inserter(line), R"(,"{}":{})", name, value);
}

void append_text(std::string& line, std::string_view name, const std::string& text) {
  fmt::format_to(std::back_inserter(line), R"(,"{}":{})", name,
                 Json(text).dump(-1, ' ', false, Json::error_handler_t::replace));
}

bool take(std::string_view& text, std::string_view literal) {
  if (!text.starts_with(literal)) return false;
  text.remove_prefix(literal.size());
  return true;
}

template <class Number>
bool take_number(std::string_view& text, Number& value) {
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool take_hex(std::string_view& text, std::uint64_t& value) {
  if (text.size() < 16) return false;
  const auto [end, status] = std::from_chars(text.data(), text.data() + 16, value, 16);
  if (status != std::errc() || end != text.data() + 16) return false;
  text.remove_prefix(16);
  return true;
}

void get_number(const Json& value, double& out) { out = value.is_null() ? kNaN : value.get<double>(); }
template <class Integer>
void get_number(const Json& value, Integer& out) {
  if (!value.is_number_integer()) throw std::out_of_range("not an integer");
  const bool fits = value.is_number_unsigned() ? std::in_range<Integer>(value.get<std::uint64_t>())
                                               : std::in_range<Integer>(value.get<std::int64_t>());
  if (!fits) throw std::out_of_range("integer");
  out = value.get<Integer>();
}
void get_number(const Json& value, std::uint8_t& out) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 255) throw std::out_of_range("byte");
  out = static_cast<std::uint8_t>(value.get<std::uint64_t>());
}

}  // namespace

std::string to_journal_line(const SampleRecord& r) {
  std::string line;
  line.reserve(1024 + r.prediction.size() + r.gold.size());
  fmt::format_to(std::back_inserter(line), "{}{:016x}{}{}{}{}{}{}{}{}", kCell, r.cell, kSample, r.sample,
                 kStatus, static_cast<int>(r.status), kAttempt, r.attempt, kFinished, r.finished);
  for_each_number(r, [&](std::string_view name, const auto& value) {
    if (name != "finished") append_number(line, name, value);
  });
  append_text(line, "prediction", r.prediction);
  append_text(line, "gold", r.gold);
  append_text(line, "answer_or_error", r.answer_or_error);
  const std::uint64_t checksum = hash64(line);
  fmt::format_to(std::back_inserter(line), "{}{:016x}{}\n", kChecksum, checksum, kEnd);
  return line;
}

LineProblem read_head(std::string_view line, RecordHead& head) {
  if (line.size() < kTail) return LineProblem::kChecksum;
  std::string_view tail = line.substr(line.size() - kTail);
  std::uint64_t stated = 0;
  if (!take(tail, kChecksum) || !take_hex(tail, stated) || tail != kEnd) return LineProblem::kChecksum;
  if (hash64(line.substr(0, line.size() - kTail)) != stated) return LineProblem::kChecksum;
  int status = 0;
  const bool ok = take(line, kCell) && take_hex(line, head.cell) && take(line, kSample) &&
                  take_number(line, head.sample) && take(line, kStatus) && take_number(line, status) &&
                  take(line, kAttempt) && take_number(line, head.attempt) && take(line, kFinished) &&
                  take_number(line, head.finished);
  if (!ok || head.sample < SampleRecord::kWholeCell || (status != schema::kOk && status != schema::kFailed)) {
    return LineProblem::kFormat;
  }
  head.status = static_cast<std::uint8_t>(status);
  return LineProblem::kNone;
}

LineProblem read_record(std::string_view line, SampleRecord& record) {
  RecordHead head;
  if (const auto problem = read_head(line, head); problem != LineProblem::kNone) return problem;
  try {
    const Json json = Json::parse(line);
    for_each_number(record, [&](const char* name, auto& value) { get_number(json.at(name), value); });
    record.prediction = json.at("prediction").get<std::string>();
    record.gold = json.at("gold").get<std::string>();
    record.answer_or_error = json.at("answer_or_error").get<std::string>();
  } catch (const std::exception&) {
    return LineProblem::kFormat;
  }
  record.cell = head.cell;
  record.sample = head.sample;
  record.status = head.status;
  record.attempt = head.attempt;
  return LineProblem::kNone;
}

}  // namespace lacuna
