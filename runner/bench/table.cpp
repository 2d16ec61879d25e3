// Rows as text and as JSON.
#include <fmt/format.h>

#include "core/json.h"
#include "core/text.h"
#include "runner/bench/bench.h"

namespace lacuna::bench {

namespace {

/// Four digits and a unit: "12.68 ms", "85.5 us".
std::string time_text(double seconds) {
  if (seconds <= 0) return "-";
  for (const auto& [unit, scale] : {std::pair("s", 1.0), {"ms", 1e3}, {"us", 1e6}}) {
    if (seconds * scale >= 1 || scale == 1e6) return fmt::format("{:.4g} {}", seconds * scale, unit);
  }
  return {};
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

std::string memory_text(const Row& row) {
  if (row.peak_bytes <= 0 || row.planned_bytes <= 0) return "-";
  const auto peak = static_cast<double>(row.peak_bytes);
  return fmt::format("{} ({:.3f})", format_bytes(peak), peak / static_cast<double>(row.planned_bytes));
}

/// Visited work per second, in the unit that a device is talked about in.
std::string rate_text(const Row& row, Device device) {
  const bool gpu = device == Device::kCuda;
  const double attending = row.part == "attention" ? row.seconds - row.index_seconds : row.seconds;
  if (row.flops > 0 && attending > 0)
    return fmt::format("{:.1f} {}FLOP/s", row.flops / attending * (gpu ? 1e-12 : 1e-9), gpu ? "T" : "G");
  if (row.bytes > 0 && attending > 0) return fmt::format("{:.1f} GB/s", row.bytes / row.seconds * 1e-9);
  return "-";
}

}  // namespace

Json to_json(const Row& r) {
  Json json = {{"part", r.part},     {"key", r.key},     {"what", r.what},
               {"tokens", r.tokens}, {"batch", r.batch}, {"seconds", r.seconds}};
  const auto put = [&](const char* name, double value) {
    if (value > 0) json[name] = value;
  };
  put("index_seconds", r.index_seconds);
  put("flops", r.flops);
  put("bytes", r.bytes);
  put("floor_seconds", r.floor_seconds);
  put("dense_seconds", r.dense_seconds);
  put("peak_bytes", static_cast<double>(r.peak_bytes));
  put("planned_bytes", static_cast<double>(r.planned_bytes));
  if (r.sparsity >= 0) json["sparsity"] = r.sparsity;
  if (!r.note.empty()) json["note"] = r.note;
  return json;
}

std::string table_head(const std::string& part, Device) {
  return fmt::format("\n{}\n  {:<44} {:>8} {:>5} {:>10} {:>14} {:>8} {:>8} {:>9} {:>10} {:>17}\n", part, "",
                     "tokens", "batch", "time", "visited", "floor", "speed-up", "sparsity", "index",
                     "memory (of plan)");
}

std::string table_line(const Row& r, Device device) {
  std::string line =
      fmt::format("  {:<44} {:>8} {:>5} {:>10} {:>14} {:>8} {:>8} {:>9} {:>10} {:>17}", r.what, r.tokens,
                  r.batch, time_text(r.seconds), rate_text(r, device),
                  r.floor_seconds > 0 ? percent(r.floor_seconds / r.seconds) : "-",
                  r.dense_seconds > 0 ? fmt::format("{:.2f}x", r.dense_seconds / r.seconds) : "-",
                  r.sparsity >= 0 ? percent(r.sparsity) : "-", time_text(r.index_seconds), memory_text(r));
  if (!r.note.empty()) line += "  " + r.note;
  return line + "\n";
}

}  // namespace lacuna::bench
