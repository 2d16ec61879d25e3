// What one finished (or failed) sample leaves: a row of /samples, a line of the journal.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "sweeps/results_schema.h"

namespace lacuna {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Column meanings and units: sweeps/results_schema.h.
struct SampleRecord {
  std::uint64_t cell = 0;   ///< The cell's key.
  std::int32_t sample = 0;  ///< kWholeCell: the record fails the whole cell.
  std::uint8_t status = schema::kOk;
  std::int32_t attempt =
      0;  ///< Number of retries of the folder when it ran; a failure of an older attempt is void.
  double finished = 0;

  double score = kNaN;
  std::uint8_t no_answer = 0, stopped = 0;
  std::int32_t input_tokens = 0, output_tokens = 0;
  double sparsity_computed = kNaN, sparsity_prefill = kNaN, sparsity_decode = kNaN, sparsity_bytes = kNaN,
         sparsity_resident = kNaN, tile_efficiency = kNaN;
  double prefill_s = kNaN, evict_s = kNaN, decode_s = kNaN, index_s = kNaN;
  std::int32_t shared = 1;
  double flops = kNaN, attention_flops = kNaN, index_flops = kNaN, kv_bytes_read = kNaN,
         index_bytes_read = kNaN;
  std::int64_t kv_bytes_resident = 0, peak_bytes = 0;
  std::int32_t team = 0;
  std::uint64_t seed = 0;

  std::string prediction, gold;
  std::string answer_or_error;

  static constexpr std::int32_t kWholeCell = -1;
};

/// Calls visit(name, field) for every number that is both a journal field and a column of /samples (all of
/// them but cell, sample and status): the one list that the journal and the store are made from.
template <class Record, class Visit>
void for_each_number(Record& r, Visit&& visit) {
  visit("score", r.score);
  visit("no_answer", r.no_answer);
  visit("stopped", r.stopped);
  visit("input_tokens", r.input_tokens);
  visit("output_tokens", r.output_tokens);
  visit("sparsity_computed", r.sparsity_computed);
  visit("sparsity_prefill", r.sparsity_prefill);
  visit("sparsity_decode", r.sparsity_decode);
  visit("sparsity_bytes", r.sparsity_bytes);
  visit("sparsity_resident", r.sparsity_resident);
  visit("tile_efficiency", r.tile_efficiency);
  visit("prefill_s", r.prefill_s);
  visit("evict_s", r.evict_s);
  visit("decode_s", r.decode_s);
  visit("index_s", r.index_s);
  visit("shared", r.shared);
  visit("flops", r.flops);
  visit("attention_flops", r.attention_flops);
  visit("index_flops", r.index_flops);
  visit("kv_bytes_read", r.kv_bytes_read);
  visit("index_bytes_read", r.index_bytes_read);
  visit("kv_bytes_resident", r.kv_bytes_resident);
  visit("peak_bytes", r.peak_bytes);
  visit("team", r.team);
  visit("seed", r.seed);
  visit("finished", r.finished);
}

/// What status and resume need of a line, read without parsing the rest.
struct RecordHead {
  std::uint64_t cell = 0;
  std::int32_t sample = 0;
  std::uint8_t status = 0;
  std::int32_t attempt = 0;
  double finished = 0;
};

/// One journal line with checksum and newline. Text that is not UTF-8 is repaired with U+FFFD.
std::string to_journal_line(const SampleRecord& record);

enum class LineProblem { kNone, kChecksum, kFormat };
/// Verifies the checksum and reads the head. `line` without its newline.
LineProblem read_head(std::string_view line, RecordHead& head);
/// The whole record of a line whose head could be read. kFormat when a field is missing or of a wrong type.
LineProblem read_record(std::string_view line, SampleRecord& record);

}  // namespace lacuna
