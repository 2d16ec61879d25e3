#include "tests/analysis/synthetic.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/hdf5.h"
#include "sweeps/results_schema.h"

namespace lacuna::synthetic {

namespace {

/// Fills costs that fit the cell's sparsity, so that every cost axis has numbers.
void fill_costs(const ResultTable& table, ResultCell& cell) {
  const ModelShape& shape = table.models[std::size_t(cell.model)].shape;
  const Phase phase = table.phase(cell);
  cell.sparsity_prefill = phase == Phase::kPrefill ? cell.sparsity : 0;
  cell.sparsity_decode = phase == Phase::kDecode ? cell.sparsity : 0;
  cell.sparsity_bytes = cell.sparsity_decode;
  cell.sparsity_resident = 0;
  cell.input_tokens = 0.98 * double(cell.length);
  cell.output_tokens = 64;
  const CostBreakdown prefill = causal_prefill_flops(shape, cell.input_tokens, cell.sparsity_prefill);
  const DecodeCost step = causal_decode_step(shape, cell.input_tokens, cell.sparsity_decode);
  const HardwareProfile hw{"synthetic", 400e12, 300e12, 2.5e12, 0, 1e-3};
  cell.flops = prefill.total() + cell.output_tokens * step.flops.attention;
  cell.kv_bytes_read = cell.output_tokens * step.bytes.attention;
  cell.prefill_s = prefill_seconds(shape, cell.input_tokens, prefill, hw);
  cell.decode_s = cell.output_tokens * decode_step_seconds(shape, step, hw);
}

}  // namespace

double Law::logit(double parameters, double length, double compression, int task) const {
  return eps + delta[std::size_t(task)] + alpha * std::log(parameters) + beta * std::log(length) +
         gamma * std::log(compression);
}

std::vector<ResultTask> paper_tasks() {
  return {{"qa_quality", "qa_quality", "single_qa", "exact_match"},
          {"qa_squad", "qa_squad", "single_qa", "token_f1"},
          {"qa_toefl", "qa_toefl", "single_qa", "exact_match"},
          {"ruler_cwe", "ruler_cwe", "high_scope", "iou"},
          {"ruler_niah", "ruler_niah", "multiple_qa", "exact_match"},
          {"ruler_vt", "ruler_vt", "high_dispersion", "iou"},
          {"story_filtering", "story_filtering", "high_scope", "iou"},
          {"story_multihop", "story_multihop", "high_dispersion", "exact_match"},
          {"story_retrieval", "story_retrieval", "multiple_qa", "exact_match"}};
}

ResultTable make_table(const Spec& spec) {
  ResultTable table;
  for (const std::string& name : spec.models) {
    ResultModel model;
    model.name = name;
    model.family = "qwen2";
    model.dtype = "bfloat16";
    model.device = "cuda";
    model.shape = find_published_shape(name).value();
    table.models.push_back(model);
  }
  table.tasks = paper_tasks();
  table.strategies.push_back({"dense", Phase::kDense, "dense", "none", "dense"});
  for (const auto& [name, phase] : spec.methods) {
    table.strategies.push_back({name, phase, phase == Phase::kPrefill ? name : "dense", "none",
                                phase == Phase::kDecode ? name : "dense"});
  }
  const Law law;
  const auto expected = [&](const ResultModel& model, int task, std::int64_t length,
                            const std::string& method, double s) {
    if (spec.score) return spec.score(model, task, length, method, s);
    return 1 / (1 + std::exp(-law.logit(model.shape.parameters, double(length), 1 / (1 - s), task)));
  };
  for (int m = 0; m < int(table.models.size()); ++m) {
    for (int t = 0; t < int(table.tasks.size()); ++t) {
      for (const std::int64_t length : spec.lengths) {
        for (int s = 0; s < int(table.strategies.size()); ++s) {
          const bool dense = s == 0;
          for (const double level : dense ? std::vector<double>{0.0} : spec.levels) {
            ResultCell cell;
            cell.model = m;
            cell.task = t;
            cell.strategy = s;
            cell.length = length;
            cell.nominal = level;
            cell.sparsity = level;
            cell.asked = spec.exact ? 1 : spec.samples;
            const double p = expected(table.models[std::size_t(m)], t, length,
                                      table.strategies[std::size_t(s)].name, level);
            for (int i = 0; i < cell.asked; ++i) {
              cell.sample.push_back(i);
              if (spec.exact) {
                cell.score.push_back(p);
                continue;
              }
              Rng rng(spec.seed, stream_id("synthetic", std::uint64_t(m * 64 + t),
                                           std::uint64_t(length) * 1000 + std::uint64_t(i)));
              // A coin shared with the other strategies for three answers of four, one of its own for the
              // last.
              int right = 0;
              for (int q = 0; q < 3; ++q) right += rng.uniform() < p ? 1 : 0;
              Rng own(spec.seed, stream_id("own", std::uint64_t(table.cells.size()), std::uint64_t(i)));
              right += own.uniform() < p ? 1 : 0;
              cell.score.push_back(right / 4.0);
              cell.no_answer += right == 0 && own.uniform() < 0.1 ? 1 : 0;
            }
            table.cells.push_back(std::move(cell));
          }
        }
      }
    }
  }
  table.provenance = {{"sweep", "synthetic"}};
  table.index();
  for (ResultCell& cell : table.cells) fill_costs(table, cell);
  return table;
}

void write_results(const ResultTable& table, const std::string& path) {
  hdf5::File file = hdf5::File::create(path);
  file.write_attribute("/", schema::kAttrSchemaVersion, std::int64_t{schema::kSchemaVersion});
  file.write_attribute("/", schema::kAttrProgramVersion, LACUNA_VERSION);
  file.write_attribute("/", schema::kAttrSweepName, "synthetic");
  file.write_attribute("/", schema::kAttrSeed, std::int64_t{1});
  file.write_attribute("/", schema::kAttrComplete, std::int64_t{1});

  const auto strings = [&](std::string_view group, const char* column, std::size_t n, auto&& value) {
    std::vector<std::string> values;
    for (std::size_t i = 0; i < n; ++i) values.push_back(std::string(value(i)));
    file.write_strings(std::string(group) + "/" + column, values);
  };
  const auto ints = [&](std::string_view group, const char* column, std::size_t n, auto&& value) {
    std::vector<std::int32_t> values;
    for (std::size_t i = 0; i < n; ++i) values.push_back(std::int32_t(value(i)));
    file.write(std::string(group) + "/" + column, values);
  };
  const auto doubles = [&](std::string_view group, const char* column, std::size_t n, auto&& value) {
    std::vector<double> values;
    for (std::size_t i = 0; i < n; ++i) values.push_back(double(value(i)));
    file.write(std::string(group) + "/" + column, values);
  };

  const auto& m = table.models;
  strings(schema::kModels, "name", m.size(), [&](auto i) { return m[i].name; });
  strings(schema::kModels, "family", m.size(), [&](auto i) { return m[i].family; });
  strings(schema::kModels, "device", m.size(), [&](auto i) { return m[i].device; });
  strings(schema::kModels, "dtype", m.size(), [&](auto i) { return m[i].dtype; });
  strings(schema::kModels, "rope", m.size(), [&](auto i) { return m[i].rope; });
  strings(schema::kModels, "weights_hash", m.size(), [&](auto i) { return m[i].weights_hash; });
  std::vector<std::int64_t> parameters;
  for (const ResultModel& model : m) parameters.push_back(std::int64_t(model.shape.parameters));
  file.write(std::string(schema::kModels) + "/parameters", parameters);
  const std::pair<const char*, int ModelShape::*> shape[] = {{"layers", &ModelShape::layers},
                                                             {"q_heads", &ModelShape::q_heads},
                                                             {"kv_heads", &ModelShape::kv_heads},
                                                             {"head_dim", &ModelShape::head_dim},
                                                             {"hidden", &ModelShape::hidden},
                                                             {"mlp", &ModelShape::mlp},
                                                             {"vocab", &ModelShape::vocab},
                                                             {"sliding_layers", &ModelShape::sliding_layers},
                                                             {"sliding_window", &ModelShape::sliding_window}};
  for (const auto& [name, member] : shape)
    ints(schema::kModels, name, m.size(), [&](auto i) { return m[i].shape.*member; });
  ints(schema::kModels, "tp", m.size(), [&](auto i) { return m[i].tp; });

  const auto& t = table.tasks;
  strings(schema::kTasks, "name", t.size(), [&](auto i) { return t[i].name; });
  strings(schema::kTasks, "task", t.size(), [&](auto i) { return t[i].task; });
  strings(schema::kTasks, "group", t.size(), [&](auto i) { return t[i].group; });
  strings(schema::kTasks, "metric", t.size(), [&](auto i) { return t[i].metric; });
  const auto& s = table.strategies;
  strings(schema::kStrategies, "name", s.size(), [&](auto i) { return s[i].name; });
  strings(schema::kStrategies, "phase", s.size(), [&](auto i) { return name_of(s[i].phase); });
  strings(schema::kStrategies, "prefill", s.size(), [&](auto i) { return s[i].prefill; });
  strings(schema::kStrategies, "evict", s.size(), [&](auto i) { return s[i].evict; });
  strings(schema::kStrategies, "decode", s.size(), [&](auto i) { return s[i].decode; });

  const auto& c = table.cells;
  const auto g = schema::kCells;
  ints(g, "model_index", c.size(), [&](auto i) { return c[i].model; });
  ints(g, "task_index", c.size(), [&](auto i) { return c[i].task; });
  ints(g, "strategy_index", c.size(), [&](auto i) { return c[i].strategy; });
  ints(g, "length", c.size(), [&](auto i) { return c[i].length; });
  ints(g, "samples", c.size(), [&](auto i) { return c[i].asked; });
  ints(g, "failed", c.size(), [&](auto i) { return c[i].failed; });
  strings(g, "reason", c.size(), [&](auto i) { return c[i].reason; });
  const std::pair<const char*, double ResultCell::*> numbers[] = {
      {"sparsity", &ResultCell::nominal},
      {"sparsity_computed", &ResultCell::sparsity},
      {"sparsity_prefill", &ResultCell::sparsity_prefill},
      {"sparsity_decode", &ResultCell::sparsity_decode},
      {"sparsity_bytes", &ResultCell::sparsity_bytes},
      {"sparsity_resident", &ResultCell::sparsity_resident},
      {"input_tokens", &ResultCell::input_tokens},
      {"output_tokens", &ResultCell::output_tokens},
      {"prefill_s", &ResultCell::prefill_s},
      {"decode_s", &ResultCell::decode_s},
      {"flops", &ResultCell::flops},
      {"kv_bytes_read", &ResultCell::kv_bytes_read}};
  for (const auto& [name, member] : numbers) doubles(g, name, c.size(), [&](auto i) { return c[i].*member; });

  std::vector<std::int32_t> cell, sample;
  std::vector<std::uint8_t> status, no_answer, stopped;
  std::vector<double> score, index_bytes, index_flops;
  for (std::size_t i = 0; i < c.size(); ++i) {
    for (int k = 0; k < c[i].ok + c[i].failed; ++k) {
      const bool ok = k < c[i].ok;
      cell.push_back(std::int32_t(i));
      sample.push_back(ok ? c[i].sample[std::size_t(k)] : c[i].asked - 1 - (k - c[i].ok));
      status.push_back(ok ? schema::kOk : schema::kFailed);
      score.push_back(ok ? c[i].score[std::size_t(k)] : std::numeric_limits<double>::quiet_NaN());
      no_answer.push_back(ok && k < c[i].no_answer ? 1 : 0);
      stopped.push_back(ok && k < c[i].cut ? 0 : 1);
      index_bytes.push_back(0);
      index_flops.push_back(0);
    }
  }
  const std::string samples(schema::kSamples);
  file.write(samples + "/cell", cell);
  file.write(samples + "/sample", sample);
  file.write(samples + "/status", status);
  file.write(samples + "/no_answer", no_answer);
  file.write(samples + "/stopped", stopped);
  file.write(samples + "/score", score);
  file.write(samples + "/index_bytes_read", index_bytes);
  file.write(samples + "/index_flops", index_flops);
  file.close();
}

}  // namespace lacuna::synthetic
