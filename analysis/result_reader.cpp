// results.h5 -> ResultTable, through sweeps/results_schema.h alone.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "analysis/result_table.h"
#include "core/error.h"
#include "core/hdf5.h"
#include "core/json.h"
#include "core/text.h"
#include "sweeps/results_schema.h"

namespace lacuna {

namespace {

namespace fs = std::filesystem;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Columns of one group, all of one length.
class Group {
 public:
  Group(const hdf5::File& file, std::string_view path) : file_(file), path_(path) {}

  template <class T>
  std::vector<T> numbers(std::string_view column) {
    return sized(file_.read<T>(name(column)), column);
  }
  std::vector<std::string> strings(std::string_view column) {
    return sized(file_.read_strings(name(column)), column);
  }
  std::size_t rows() const { return rows_; }

 private:
  std::string name(std::string_view column) const { return path_ + "/" + std::string(column); }
  template <class V>
  V sized(V values, std::string_view column) {
    LACUNA_REQUIRE(!known_ || values.size() == rows_, "{}: {} has {} rows, others of its group have {}",
                   file_.path(), name(column), values.size(), rows_);
    rows_ = values.size();
    known_ = true;
    return values;
  }
  const hdf5::File& file_;
  std::string path_;
  std::size_t rows_ = 0;
  bool known_ = false;
};

void read_models(const hdf5::File& file, ResultTable& table) {
  Group g(file, schema::kModels);
  const auto name = g.strings("name"), family = g.strings("family"), device = g.strings("device");
  const auto dtype = g.strings("dtype"), rope = g.strings("rope"), weights = g.strings("weights_hash");
  const auto parameters = g.numbers<double>("parameters");
  const auto layers = g.numbers<std::int32_t>("layers"), q_heads = g.numbers<std::int32_t>("q_heads");
  const auto kv_heads = g.numbers<std::int32_t>("kv_heads"), head_dim = g.numbers<std::int32_t>("head_dim");
  const auto hidden = g.numbers<std::int32_t>("hidden"), mlp = g.numbers<std::int32_t>("mlp");
  const auto vocab = g.numbers<std::int32_t>("vocab"), sliding = g.numbers<std::int32_t>("sliding_layers");
  const auto window = g.numbers<std::int32_t>("sliding_window"), tp = g.numbers<std::int32_t>("tp");
  for (std::size_t i = 0; i < g.rows(); ++i) {
    table.models.push_back({.name = name[i],
                            .family = family[i],
                            .shape = {.parameters = parameters[i],
                                      .layers = layers[i],
                                      .q_heads = q_heads[i],
                                      .kv_heads = kv_heads[i],
                                      .head_dim = head_dim[i],
                                      .hidden = hidden[i],
                                      .mlp = mlp[i],
                                      .vocab = vocab[i],
                                      .sliding_layers = sliding[i],
                                      .sliding_window = window[i]},
                            .device = device[i],
                            .dtype = dtype[i],
                            .rope = rope[i],
                            .weights_hash = weights[i],
                            .tp = tp[i]});
    if (table.models.back().has_shape())
      table.models.back().shape.check(file.path() + ": model '" + name[i] + "'");
  }
}

void read_cells(const hdf5::File& file, ResultTable& table) {
  Group g(file, schema::kCells);
  const auto model = g.numbers<std::int32_t>("model_index"), task = g.numbers<std::int32_t>("task_index");
  const auto strategy = g.numbers<std::int32_t>("strategy_index"), length = g.numbers<std::int32_t>("length");
  const auto asked = g.numbers<std::int32_t>("samples"), failed = g.numbers<std::int32_t>("failed");
  const auto nominal = g.numbers<double>("sparsity"), sparsity = g.numbers<double>("sparsity_computed");
  const auto prefill = g.numbers<double>("sparsity_prefill"), decode = g.numbers<double>("sparsity_decode");
  const auto bytes = g.numbers<double>("sparsity_bytes"), resident = g.numbers<double>("sparsity_resident");
  const auto input = g.numbers<double>("input_tokens"), output = g.numbers<double>("output_tokens");
  const auto prefill_s = g.numbers<double>("prefill_s"), decode_s = g.numbers<double>("decode_s");
  const auto flops = g.numbers<double>("flops"), kv_bytes = g.numbers<double>("kv_bytes_read");
  const auto reason = g.strings("reason");
  for (std::size_t i = 0; i < g.rows(); ++i) {
    ResultCell cell;
    cell.model = model[i];
    cell.task = task[i];
    cell.strategy = strategy[i];
    cell.length = length[i];
    cell.nominal = nominal[i];
    cell.asked = asked[i];
    cell.failed = failed[i];
    cell.reason = reason[i];
    cell.sparsity = sparsity[i];
    cell.sparsity_prefill = prefill[i];
    cell.sparsity_decode = decode[i];
    cell.sparsity_bytes = bytes[i];
    cell.sparsity_resident = resident[i];
    cell.input_tokens = input[i];
    cell.output_tokens = output[i];
    cell.prefill_s = prefill_s[i];
    cell.decode_s = decode_s[i];
    cell.flops = flops[i];
    cell.kv_bytes_read = kv_bytes[i];
    table.cells.push_back(std::move(cell));
  }
}

void read_samples(const hdf5::File& file, ResultTable& table) {
  Group g(file, schema::kSamples);
  const auto cell = g.numbers<std::int32_t>("cell"), sample = g.numbers<std::int32_t>("sample");
  const auto status = g.numbers<std::uint8_t>("status"), no_answer = g.numbers<std::uint8_t>("no_answer");
  const auto stopped = g.numbers<std::uint8_t>("stopped");
  const auto score = g.numbers<double>("score"), index_bytes = g.numbers<double>("index_bytes_read");
  const auto index_flops = g.numbers<double>("index_flops");
  for (std::size_t i = 0; i < g.rows(); ++i) {
    LACUNA_REQUIRE(cell[i] >= 0 && std::size_t(cell[i]) < table.cells.size(),
                   "{}: sample row {} belongs to cell {} of {}", file.path(), i, cell[i], table.cells.size());
    if (status[i] != schema::kOk || std::isnan(score[i])) continue;
    ResultCell& c = table.cells[std::size_t(cell[i])];
    c.sample.push_back(sample[i]);
    c.score.push_back(score[i]);
    c.no_answer += no_answer[i] != 0 ? 1 : 0;
    c.cut += stopped[i] == 0 ? 1 : 0;
    c.index_bytes_read += index_bytes[i];
    c.index_flops += index_flops[i];
  }
  for (ResultCell& c : table.cells) {
    const double n = c.score.empty() ? kNaN : double(c.score.size());
    c.index_bytes_read /= n;
    c.index_flops /= n;
  }
}

/// Text of a JSON value for people: strings without quotes, lists joined.
std::string plain(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    std::string joined;
    for (const Json& item : value) joined += (joined.empty() ? "" : ", ") + plain(item);
    return joined;
  }
  return value.dump();
}

void read_provenance(const hdf5::File& file, ResultTable& table) {
  const auto attribute = [&](std::string_view name, const char* label) {
    if (file.has_attribute("/", name))
      table.provenance.emplace_back(label, file.read_string_attribute("/", name));
  };
  attribute(schema::kAttrSweepName, "sweep");
  attribute(schema::kAttrSweepHash, "sweep hash");
  attribute(schema::kAttrProgramVersion, "program version");
  attribute(schema::kAttrGitCommit, "commit");
  attribute(schema::kAttrCreated, "results written");
  if (file.has_attribute("/", schema::kAttrSeed)) {
    table.provenance.emplace_back("seed", std::to_string(file.read_int_attribute("/", schema::kAttrSeed)));
  }
  if (file.has_attribute("/", schema::kAttrComplete)) {
    table.complete = file.read_int_attribute("/", schema::kAttrComplete) != 0;
  }
  const std::string launches(schema::kProvenanceLaunches);
  if (file.exists(launches)) {
    const Json list = parse_json(file.read_text(launches), file.path() + ": " + launches);
    int number = 0;
    for (const Json& launch : list.is_array() ? list : Json::array()) {
      ++number;
      for (const char* key : {"started", "hosts", "devices", "ranks", "versions", "command"}) {
        if (launch.contains(key))
          table.provenance.emplace_back(fmt::format("launch {}: {}", number, key), plain(launch[key]));
      }
    }
  }
  const std::string sweep(schema::kProvenanceSweep);
  if (file.exists(sweep)) table.provenance.emplace_back("resolved sweep", file.read_text(sweep));
}

}  // namespace

ResultTable read_results(const std::string& path) {
  const std::string file_path = fs::is_directory(path) ? (fs::path(path) / "results.h5").string() : path;
  LACUNA_REQUIRE(
      fs::exists(file_path),
      "{}: no such file. `lacuna run SWEEP --out DIR` makes results, `lacuna merge DIR` rebuilds them",
      file_path);
  const hdf5::File file = hdf5::File::open(file_path);
  LACUNA_REQUIRE(file.has_attribute("/", schema::kAttrSchemaVersion),
                 "{}: not a results file of Lacuna (no schema_version)", file_path);
  const std::int64_t version = file.read_int_attribute("/", schema::kAttrSchemaVersion);
  LACUNA_REQUIRE(version <= schema::kSchemaVersion,
                 "{}: schema version {}, this program reads up to {}; use a newer one", file_path, version,
                 schema::kSchemaVersion);
  ResultTable table;
  read_models(file, table);
  Group tasks(file, schema::kTasks);
  const auto task = tasks.strings("name"), registered = tasks.strings("task");
  const auto group = tasks.strings("group"), metric = tasks.strings("metric");
  for (std::size_t i = 0; i < tasks.rows(); ++i)
    table.tasks.push_back({task[i], registered[i], group[i], metric[i]});
  Group strategies(file, schema::kStrategies);
  const auto name = strategies.strings("name"), phase = strategies.strings("phase");
  const auto prefill = strategies.strings("prefill"), evict = strategies.strings("evict");
  const auto decode = strategies.strings("decode");
  for (std::size_t i = 0; i < strategies.rows(); ++i) {
    table.strategies.push_back({name[i], parse_phase(phase[i], file_path + ": strategy '" + name[i] + "'"),
                                prefill[i], evict[i], decode[i]});
  }
  read_cells(file, table);
  read_samples(file, table);
  read_provenance(file, table);
  table.index();
  return table;
}

}  // namespace lacuna
