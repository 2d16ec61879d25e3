#include "runner/store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>
#include <variant>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/hdf5.h"
#include "core/json.h"
#include "core/log.h"
#include "runner/build_info.h"
#include "tasks/task.h"

namespace lacuna {

namespace {

using schema::Column;
using NumberColumn = std::variant<std::vector<std::uint8_t>, std::vector<std::int32_t>,
                                  std::vector<std::int64_t>, std::vector<std::uint64_t>, std::vector<double>>;

/// A table in the making: one vector per column of a schema list, filled by name.
class Table {
 public:
  Table(std::span<const Column> columns, std::string group) : columns_(columns), group_(std::move(group)) {
    numbers_.resize(columns.size());
    strings_.resize(columns.size());
    for (std::size_t i = 0; i < columns.size(); ++i) {
      switch (columns[i].type) {
        case schema::ColumnType::kU8:
          numbers_[i] = std::vector<std::uint8_t>();
          break;
        case schema::ColumnType::kI32:
          numbers_[i] = std::vector<std::int32_t>();
          break;
        case schema::ColumnType::kI64:
          numbers_[i] = std::vector<std::int64_t>();
          break;
        case schema::ColumnType::kU64:
          numbers_[i] = std::vector<std::uint64_t>();
          break;
        case schema::ColumnType::kF64:
          numbers_[i] = std::vector<double>();
          break;
        case schema::ColumnType::kString:
          break;
      }
    }
  }

  template <class T>
  void add(std::string_view name, T value) {
    const std::size_t i = index(name);
    auto* column = std::get_if<std::vector<T>>(&numbers_[i]);
    LACUNA_CHECK(column != nullptr && columns_[i].type != schema::ColumnType::kString, "{}: wrong type",
                 name);
    column->push_back(value);
  }
  void add(std::string_view name, std::string value) {
    const std::size_t i = index(name);
    LACUNA_CHECK(columns_[i].type == schema::ColumnType::kString, "{}: wrong type", name);
    strings_[i].push_back(std::move(value));
  }

  void write(hdf5::File& file) const {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const Column& column = columns_[i];
      const std::string path = fmt::format("{}/{}", group_, column.name);
      if (column.type == schema::ColumnType::kString)
        file.write_strings(path, strings_[i]);
      else
        std::visit([&](const auto& values) { file.write(path, values); }, numbers_[i]);
      file.write_attribute(path, schema::kAttrUnit, column.unit);
      file.write_attribute(path, schema::kAttrDescription, column.description);
    }
  }

 private:
  std::size_t index(std::string_view name) {
    // Rows are added in the schema's order, so the next column is almost always the right one.
    for (std::size_t tries = 0; tries < columns_.size(); ++tries, ++next_) {
      if (next_ >= columns_.size()) next_ = 0;
      if (columns_[next_].name == name) return next_++;
    }
    throw_internal("{} has no column {}", group_, name);
  }

  std::span<const Column> columns_;
  std::string group_;
  std::vector<NumberColumn> numbers_;
  std::vector<std::vector<std::string>> strings_;
  std::size_t next_ = 0;
};

struct Texts {
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint64_t> offset = {0};
  void add(const std::string& text) {
    bytes.insert(bytes.end(), text.begin(), text.end());
    offset.push_back(bytes.size());
  }
};

/// Mean over the values that are numbers; NaN without any.
class Mean {
 public:
  void add(double value) {
    if (std::isnan(value)) return;
    // Welford: exact enough for any number of values of any size.
    ++n_;
    const double delta = value - mean_;
    mean_ += delta / static_cast<double>(n_);
    squares_ += delta * (value - mean_);
  }
  double mean() const { return n_ > 0 ? mean_ : kNaN; }
  double sem() const {
    const auto n = static_cast<double>(n_);
    return n_ > 1 ? std::sqrt(squares_ / (n - 1) / n) : kNaN;
  }

 private:
  std::int64_t n_ = 0;
  double mean_ = 0, squares_ = 0;
};

struct CellMeans {
  Mean score, sparsity_computed, sparsity_prefill, sparsity_decode, sparsity_bytes, sparsity_resident,
      input_tokens, output_tokens, prefill_s, decode_s, flops, kv_bytes_read;
  std::int32_t n = 0, failed = 0;
  std::string reason;

  void add(const SampleRecord& r) {
    if (r.status != schema::kOk) {
      if (failed++ == 0) reason = r.answer_or_error;
      return;
    }
    ++n;
    score.add(r.score);
    sparsity_computed.add(r.sparsity_computed);
    sparsity_prefill.add(r.sparsity_prefill);
    sparsity_decode.add(r.sparsity_decode);
    sparsity_bytes.add(r.sparsity_bytes);
    sparsity_resident.add(r.sparsity_resident);
    input_tokens.add(r.input_tokens);
    output_tokens.add(r.output_tokens);
    prefill_s.add(r.prefill_s);
    decode_s.add(r.decode_s);
    flops.add(r.flops);
    kv_bytes_read.add(r.kv_bytes_read);
  }
  const char* state(const Cell& cell) const {
    if (n + failed < cell.samples) return n + failed == 0 ? "pending" : "partial";
    return n == 0 ? "failed" : "done";
  }
};

/// At most `limit` bytes, cut between UTF-8 characters.
std::string shortened(const std::string& text, std::size_t limit) {
  if (text.size() <= limit) return text;
  std::size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

std::vector<CellMeans> write_samples(const StoreContext& c, hdf5::File& file) {
  Table table(schema::kSampleColumns, std::string(schema::kSamples));
  Texts texts;
  std::vector<CellMeans> means(c.grid->cells.size());
  for (std::size_t cell = 0; cell < means.size(); ++cell) {
    c.state->read_cell(static_cast<int>(cell), [&](int sample, const SampleRecord& r) {
      table.add("cell", static_cast<std::int32_t>(cell));
      table.add("sample", static_cast<std::int32_t>(sample));
      table.add("status", r.status);
      for_each_number(r, [&](std::string_view name, const auto& value) { table.add(name, value); });
      texts.add(r.prediction);
      texts.add(r.gold);
      texts.add(r.answer_or_error);
      means[cell].add(r);
    });
  }
  table.write(file);
  file.write(std::string(schema::kTextBytes), texts.bytes);
  file.write_attribute(std::string(schema::kTextBytes), schema::kAttrUnit, "B");
  file.write_attribute(std::string(schema::kTextBytes), schema::kAttrDescription,
                       "UTF-8 texts, one after the other");
  file.write(std::string(schema::kTextOffset), texts.offset);
  file.write_attribute(std::string(schema::kTextOffset), schema::kAttrUnit, "B");
  file.write_attribute(std::string(schema::kTextOffset), schema::kAttrDescription,
                       "3 per row of /samples (prediction, gold, answer or error) and the end");
  return means;
}

void write_cells(const StoreContext& c, const std::vector<CellMeans>& means, hdf5::File& file) {
  Table t(schema::kCellColumns, std::string(schema::kCells));
  for (std::size_t i = 0; i < means.size(); ++i) {
    const Cell& cell = c.grid->cells[i];
    const CellMeans& m = means[i];
    const auto& strategy = c.grid->strategies[static_cast<std::size_t>(cell.strategy)];
    t.add("key", to_hex(cell.key));
    t.add("model", c.sweep->models[static_cast<std::size_t>(cell.model)].name);
    t.add("task", c.sweep->tasks[static_cast<std::size_t>(cell.task)].name);
    t.add("strategy", strategy.name);
    t.add("phase", strategy.phase);
    t.add("prefill", strategy.prefill);
    t.add("evict", strategy.evict);
    t.add("decode", strategy.decode);
    t.add("settings", to_json(c.grid->specs[static_cast<std::size_t>(cell.spec)]).dump());
    t.add("length", static_cast<std::int32_t>(cell.length));
    t.add("sparsity", c.grid->sparsities[static_cast<std::size_t>(cell.sparsity_index)]);
    t.add("model_index", static_cast<std::int32_t>(cell.model));
    t.add("task_index", static_cast<std::int32_t>(cell.task));
    t.add("length_index", static_cast<std::int32_t>(cell.length_index));
    t.add("strategy_index", static_cast<std::int32_t>(cell.strategy));
    t.add("sparsity_index", static_cast<std::int32_t>(cell.sparsity_index));
    t.add("samples", static_cast<std::int32_t>(cell.samples));
    t.add("n", m.n);
    t.add("failed", m.failed);
    t.add("state", std::string(m.state(cell)));
    t.add("reason", shortened(m.reason, 400));
    t.add("score_mean", m.score.mean());
    t.add("score_sem", m.score.sem());
    t.add("sparsity_computed", m.sparsity_computed.mean());
    t.add("sparsity_prefill", m.sparsity_prefill.mean());
    t.add("sparsity_decode", m.sparsity_decode.mean());
    t.add("sparsity_bytes", m.sparsity_bytes.mean());
    t.add("sparsity_resident", m.sparsity_resident.mean());
    t.add("input_tokens", m.input_tokens.mean());
    t.add("output_tokens", m.output_tokens.mean());
    t.add("prefill_s", m.prefill_s.mean());
    t.add("decode_s", m.decode_s.mean());
    t.add("flops", m.flops.mean());
    t.add("kv_bytes_read", m.kv_bytes_read.mean());
  }
  t.write(file);
}

/// What the newest launch that loaded a model says about it; an empty object when none did.
Json facts_of(const Json& launches, const std::string& model) {
  Json facts = Json::object();
  for (const auto& launch : launches) {
    const auto models = launch.find("models");
    if (models != launch.end() && models->contains(model)) facts = (*models)[model];
  }
  return facts;
}

void write_models(const StoreContext& c, hdf5::File& file) {
  Table t(schema::kModelColumns, std::string(schema::kModels));
  for (const auto& model : c.sweep->models) {
    const Json facts = facts_of(c.launches, model.name);
    const auto text = [&](const char* key, const std::string& fallback) {
      return json_get_or<std::string>(facts, key, fallback, "launch");
    };
    const auto integer = [&](const char* key) { return json_get_or<std::int32_t>(facts, key, 0, "launch"); };
    t.add("name", model.name);
    t.add("path", text("path", model.path));
    t.add("family", text("family", ""));
    t.add("parameters", json_get_or<std::int64_t>(facts, "parameters", 0, "launch"));
    for (const char* key : {"layers", "q_heads", "kv_heads", "head_dim", "hidden", "mlp", "vocab",
                            "sliding_layers", "sliding_window"}) {
      t.add(key, integer(key));
    }
    t.add("tp", static_cast<std::int32_t>(model.tp));
    t.add("dtype", text("dtype", model.dtype));
    t.add("device", text("device", model.device));
    t.add("chat", text("chat", model.chat));
    t.add("rope", text("rope", model.rope.is_null() ? "" : model.rope.dump()));
    t.add("config_hash", text("config_hash", ""));
    t.add("tokenizer_hash", text("tokenizer_hash", ""));
    t.add("weights_hash", text("weights_hash", ""));
  }
  t.write(file);
}

void write_tasks_and_strategies(const StoreContext& c, hdf5::File& file) {
  Table t(schema::kTaskColumns, std::string(schema::kTasks));
  for (const auto& task : c.sweep->tasks) {
    const TaskInfo& info = find_task(task.task, task.name);
    t.add("name", task.name);
    t.add("task", task.task);
    t.add("group", std::string(name_of(info.group)));
    t.add("metric", info.metric);
    t.add("params", task.params.to_json().dump());
  }
  t.write(file);
  Table s(schema::kStrategyColumns, std::string(schema::kStrategies));
  for (const auto& strategy : c.grid->strategies) {
    s.add("name", strategy.name);
    s.add("phase", strategy.phase);
    s.add("prefill", strategy.prefill);
    s.add("evict", strategy.evict);
    s.add("decode", strategy.decode);
  }
  s.write(file);
}

double cube_value(std::string_view name, const CellMeans& m) {
  if (name == "score") return m.score.mean();
  if (name == "score_sem") return m.score.sem();
  if (name == "n") return m.n;
  if (name == "sparsity_computed") return m.sparsity_computed.mean();
  if (name == "sparsity_prefill") return m.sparsity_prefill.mean();
  if (name == "sparsity_decode") return m.sparsity_decode.mean();
  if (name == "sparsity_bytes") return m.sparsity_bytes.mean();
  if (name == "sparsity_resident") return m.sparsity_resident.mean();
  if (name == "prefill_s") return m.prefill_s.mean();
  if (name == "decode_s") return m.decode_s.mean();
  if (name == "flops") return m.flops.mean();
  throw_internal("no cube {}", name);
}

std::string cube_unit(std::string_view name) {
  if (name.ends_with("_s")) return "s";
  return name == "flops" ? "FLOP" : "1";
}

void write_cube(const StoreContext& c, const std::vector<CellMeans>& means, hdf5::File& file) {
  const std::string group(schema::kCube);
  const auto axis = [&](std::string_view name) { return fmt::format("{}/{}", group, name); };
  std::vector<std::string> models, tasks, strategies;
  for (const auto& m : c.sweep->models) models.push_back(m.name);
  for (const auto& t : c.sweep->tasks) tasks.push_back(t.name);
  for (const auto& s : c.grid->strategies) strategies.push_back(s.name);
  std::vector<std::int32_t> lengths;
  for (const auto length : c.sweep->lengths) lengths.push_back(static_cast<std::int32_t>(length));
  file.write_strings(axis("model"), models);
  file.write_strings(axis("task"), tasks);
  file.write(axis("length"), lengths);
  file.write_strings(axis("strategy"), strategies);
  file.write(axis("sparsity"), c.grid->sparsities);
  const std::vector<std::uint64_t> dims = {models.size(), tasks.size(), lengths.size(), strategies.size(),
                                           c.grid->sparsities.size()};
  for (const auto name : schema::kCubeAxes) {
    file.make_scale(axis(name), std::string(name));
    file.write_attribute(axis(name), schema::kAttrUnit,
                         name == "length"     ? "tokens"
                         : name == "sparsity" ? "1"
                                              : "");
    file.write_attribute(axis(name), schema::kAttrDescription, fmt::format("The cube's {} axis", name));
  }
  std::uint64_t size = 1;
  for (const auto dim : dims) size *= dim;
  for (const auto name : schema::kCubes) {
    std::vector<double> values(size, kNaN);
    for (std::size_t i = 0; i < means.size(); ++i) {
      const Cell& cell = c.grid->cells[i];
      const auto at = [](int index) { return static_cast<std::uint64_t>(index); };
      std::uint64_t place = at(cell.model);
      place = place * dims[1] + at(cell.task);
      place = place * dims[2] + at(cell.length_index);
      place = place * dims[3] + at(cell.strategy);
      place = place * dims[4] + at(cell.sparsity_index);
      values[place] = cube_value(name, means[i]);
    }
    file.write<double>(axis(name), values, dims);
    file.write_attribute(axis(name), schema::kAttrUnit, cube_unit(name));
    file.write_attribute(axis(name), schema::kAttrDescription, "As the column of /cells; NaN where not run");
    for (unsigned d = 0; d < dims.size(); ++d) {
      file.attach_scale(axis(name), d, axis(schema::kCubeAxes[d]), std::string(schema::kCubeAxes[d]));
    }
  }
}

std::string now_iso() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc));
}

void write_root(const StoreContext& c, hdf5::File& file) {
  file.write_attribute("/", schema::kAttrSchemaVersion, std::int64_t{schema::kSchemaVersion});
  file.write_attribute("/", schema::kAttrProgramVersion, std::string_view(LACUNA_VERSION));
  file.write_attribute("/", schema::kAttrGitCommit, git_commit());
  file.write_attribute("/", schema::kAttrSweepName, c.sweep->name);
  file.write_attribute("/", schema::kAttrSweepHash, c.sweep->hash());
  file.write_attribute("/", schema::kAttrSeed, static_cast<std::int64_t>(c.sweep->seed));
  file.write_attribute("/", schema::kAttrCreated, now_iso());
  file.write_attribute("/", schema::kAttrComplete, std::int64_t{c.state->counts().pending() == 0});
  const auto text = [&](std::string_view path, const std::string& value, std::string_view what) {
    file.write_text(std::string(path), value);
    file.write_attribute(std::string(path), schema::kAttrUnit, "");
    file.write_attribute(std::string(path), schema::kAttrDescription, what);
  };
  text(schema::kProvenanceSweep, c.sweep->to_json().dump(1), "The resolved sweep, JSON");
  text(schema::kProvenanceLaunches, c.launches.dump(1), "One object per launch, JSON array");
}

void sync_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool ok = fd >= 0 && ::fsync(fd) == 0;
  const std::string why = ok ? "" : std::strerror(errno);
  if (fd >= 0) ::close(fd);
  if (!ok) throw_library("{}: cannot sync: {}", path, why);
}

}  // namespace

Json read_launches(const FileSystem& files, const std::vector<std::string>& folders) {
  Json launches = Json::array();
  for (const auto& folder : folders) {
    const std::string launch_folder = RunPaths(folder).launches();
    for (const auto& name : files.list(launch_folder)) {
      if (!name.ends_with(".json")) continue;
      try {
        launches.push_back(read_json_file(launch_folder + "/" + name));
      } catch (const Error& e) {
        log::warning("{}; the launch is left out of the provenance", e.what());
      }
    }
  }
  std::stable_sort(launches.begin(), launches.end(), [](const Json& a, const Json& b) {
    return json_get_or<double>(a, "started", 0, "launch") < json_get_or<double>(b, "started", 0, "launch");
  });
  return launches;
}

void write_results(const StoreContext& context, const std::string& path) {
  const std::string temporary = temporary_name(path);
  try {
    hdf5::File file = hdf5::File::create(temporary);
    write_root(context, file);
    const auto means = write_samples(context, file);
    write_cells(context, means, file);
    write_models(context, file);
    write_tasks_and_strategies(context, file);
    write_cube(context, means, file);
    file.close();
    sync_file(temporary);
    std::filesystem::rename(temporary, path);
  } catch (const std::exception& e) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw_library("{}: cannot be written: {}", path, e.what());
  }
}

std::string results_digest(const std::string& path) {
  static const std::set<std::string_view> kVaries = {"prefill_s",  "evict_s", "decode_s", "index_s",
                                                     "peak_bytes", "team",    "finished", "shared"};
  const hdf5::File file = hdf5::File::open(path);
  Hasher hasher;
  for (const auto& column : schema::kSampleColumns) {
    if (kVaries.contains(column.name)) continue;
    const auto values = file.read<double>(fmt::format("{}/{}", schema::kSamples, column.name));
    hasher.add(column.name).add_bytes(values.data(), values.size() * sizeof(double));
  }
  const auto bytes = file.read<std::uint8_t>(std::string(schema::kTextBytes));
  const auto offsets = file.read<std::uint64_t>(std::string(schema::kTextOffset));
  hasher.add_bytes(bytes.data(), bytes.size())
      .add_bytes(offsets.data(), offsets.size() * sizeof(std::uint64_t));
  return hasher.digest_hex();
}

}  // namespace lacuna
