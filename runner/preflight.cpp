#include "runner/preflight.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"
#include "sweeps/profile.h"
#include "tasks/task.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

/// Cells of one job at most, whatever memory says: beyond that a lost job costs more than sharing saves.
constexpr int kMostCells = 128;

void check_device(const SweepModel& model, const Hardware& hardware) {
  const std::string device(name_of(hardware.device));
  LACUNA_REQUIRE(model.device == "auto" || model.device == device,
                 "model {}: wants device {}, but this run is on {}", model.name, model.device, device);
  const std::string dtype = hardware.device == Device::kCpu ? "float32" : "bfloat16";
  LACUNA_REQUIRE(model.dtype == "auto" || model.dtype == dtype, "model {}: wants dtype {}, but {} runs in {}",
                 model.name, model.dtype, device, dtype);
  LACUNA_REQUIRE(model.tp <= hardware.ranks, "model {}: needs tp={} ranks, but this run has {}", model.name,
                 model.tp, hardware.ranks);
}

ModelCheck check_model(const SweepModel& model, const ModelServices& services, const Hardware& hardware,
                       bool for_plan) {
  ModelCheck check;
  try {
    check.facts = services.read_facts(model.path);
    check.shape = shape_of(*check.facts);
    if (!for_plan) check_device(model, hardware);
  } catch (const Error& e) {
    check.problem = e.what();
  }
  if (check.facts || !for_plan) return check;
  try {
    if (model.shape.is_string()) {
      check.shape = find_published_shape(model.shape.get<std::string>());
      if (!check.shape) {
        check.problem =
            unknown_name_message("shape", model.shape.get<std::string>(), published_shape_names());
        return check;
      }
    } else if (model.shape.is_object()) {
      check.shape = parse_model_shape(model.shape, "model " + model.name + ": shape");
    } else {
      return check;
    }
    check.problem.clear();
  } catch (const Error& e) {
    check.problem = e.what();
  }
  return check;
}

/// What engine facts a shape stands for, when there is no folder.
ModelFacts facts_from(const ModelShape& s) {
  ModelFacts f;
  f.parameters = static_cast<std::int64_t>(s.parameters);
  f.layers = s.layers;
  f.q_heads = s.q_heads;
  f.kv_heads = s.kv_heads;
  f.head_dim = s.head_dim;
  f.hidden = s.hidden;
  f.mlp = s.mlp;
  f.vocab = s.vocab;
  f.sliding_layers = s.sliding_layers;
  f.sliding_window = s.sliding_window;
  return f;
}

std::string task_problem(const SweepTask& task) {
  try {
    make_task(task.task, task.params);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

class MemoryCheck {
 public:
  MemoryCheck(const Sweep& sweep, const Grid& grid, const ModelServices& services, const Hardware& hardware,
              const std::vector<ModelCheck>& models)
      : sweep_(sweep), grid_(grid), services_(services), hardware_(hardware), models_(models) {}

  /// Of the `cells` cells that need most, so that any choice of so many fits.
  MemoryPlan plan(const JobGroup& group, int cells, int tp) const {
    const ModelCheck& model = models_[at(group.model)];
    if (!model.shape) return {};
    const ModelFacts facts = model.facts ? *model.facts : facts_from(*model.shape);
    JobShape job{
        .tokens = group.length, .prefill = grid_.specs[at(group.prefill_spec)].prefill, .variants = {}};
    std::vector<std::pair<std::int64_t, int>> need;  // of a cell alone
    for (const int c : group.cells) {
      const auto [it, is_new] = alone_.try_emplace(
          {group.model, tp, group.length, grid_.cells[at(c)].spec, group.max_new_tokens}, 0);
      if (is_new) {
        job.variants = {variant(c, group)};
        it->second = services_.plan_memory(facts, hardware_.device, tp, job).total();
      }
      need.emplace_back(it->second, c);
    }
    std::ranges::stable_sort(need, std::greater<>(), &std::pair<std::int64_t, int>::first);
    job.variants.clear();
    for (std::size_t i = 0; i < std::min(need.size(), at(cells)); ++i)
      job.variants.push_back(variant(need[i].second, group));
    return services_.plan_memory(facts, hardware_.device, tp, job);
  }
  std::int64_t bytes(const JobGroup& group, int cells, int tp) const {
    return plan(group, cells, tp).total();
  }

  /// Most cells of a group that fit into one job; 0 when not even one does.
  int most(const JobGroup& group) const {
    const int wanted = std::min(static_cast<int>(group.cells.size()), kMostCells);
    if (hardware_.memory <= 0) return wanted;
    const int tp = sweep_.models[at(group.model)].tp;
    const auto fits = [&](int cells) { return bytes(group, cells, tp) <= hardware_.memory; };
    if (fits(wanted)) return wanted;
    int low = 0, high = wanted;  // low fits (or is 0), high does not
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return low;
  }

  std::string reason(const JobGroup& group) const {
    const SweepModel& model = sweep_.models[at(group.model)];
    const double need = static_cast<double>(bytes(group, 1, model.tp));
    std::string text = fmt::format("{} at {} tokens needs {} per rank with tp={}, but a rank has {}",
                                   model.name, group.length, format_bytes(need), model.tp,
                                   format_bytes(static_cast<double>(hardware_.memory)));
    const int kv_heads = models_[at(group.model)].shape->kv_heads;
    const int q_heads = models_[at(group.model)].shape->q_heads;
    for (int tp = model.tp * 2; tp <= 64 && q_heads % tp == 0 && (kv_heads % tp == 0 || tp % kv_heads == 0);
         tp *= 2) {
      if (bytes(group, 1, tp) <= hardware_.memory) return text + fmt::format("; tp={} would fit", tp);
    }
    return text + "; no tensor-parallel degree of this model would fit";
  }

 private:
  Variant variant(int cell, const JobGroup& group) const {
    const StrategySpec& spec = grid_.specs[at(grid_.cells[at(cell)].spec)];
    return {.evict = spec.evict, .decode = spec.decode, .sampling = {.max_new_tokens = group.max_new_tokens}};
  }

  /// Bytes of a job of one cell: model, tp, length, spec, new tokens.
  using Alone = std::tuple<int, int, std::int64_t, int, int>;
  mutable std::map<Alone, std::int64_t> alone_;

  const Sweep& sweep_;
  const Grid& grid_;
  const ModelServices& services_;
  const Hardware& hardware_;
  const std::vector<ModelCheck>& models_;
};

/// What a method's own parameters say about the cost of choosing.
IndexParams index_params(const MethodSpec& spec, double bytes) {
  IndexParams params{.element_bytes = bytes};
  const Json given = spec.params.to_json();
  for (const char* name : {"chunk_size", "block"}) params.block = given.value(name, params.block);
  params.window = given.value("window", params.window);
  return params;
}

JobCost estimate(const Grid& grid, const JobGroup& group, const ModelShape& shape, int tp,
                 const Hardware& hardware, double answer_tokens) {
  JobCost cost;
  const double bytes = element_bytes(hardware.device);
  const auto tokens = static_cast<double>(group.length);
  const StrategySpec& first = grid.specs[at(group.prefill_spec)];
  const Budget& level = grid.cells[at(group.cells.front())].level;
  const std::string& method = first.prefill.method;
  const auto prefill = causal_prefill_flops(
      shape, tokens, intended_sparsity(first, level, group.length).prefill,
      index_cost(method, shape, tokens, index_params(first.prefill, bytes)).prefill_flops);
  cost.prefill_seconds = prefill_seconds(shape, tokens, prefill, hardware.profile, tp, bytes, method);
  // Equal evictors choose once per job; every sequence chooses its own pages at each step.
  double left_out = 0, evict_seconds = 0, choose_seconds = 0, evict_flops = 0;
  IndexCost choosing;
  std::vector<const MethodSpec*> evictors;
  for (const int c : group.cells) {
    const Cell& cell = grid.cells[at(c)];
    const StrategySpec& spec = grid.specs[at(cell.spec)];
    left_out += intended_sparsity(spec, cell.level, group.length).decode;
    const IndexCost own = index_cost(spec.decode.method, shape, tokens, index_params(spec.decode, bytes));
    choose_seconds += decode_index_seconds(own, spec.decode.method, hardware.profile, tp);
    choosing.decode_flops += own.decode_flops;
    choosing.decode_bytes += own.decode_bytes;
    if (std::ranges::any_of(evictors, [&](const MethodSpec* e) { return *e == spec.evict; })) continue;
    evictors.push_back(&spec.evict);
    const double flops =
        index_cost(spec.evict.method, shape, tokens, index_params(spec.evict, bytes)).prefill_flops;
    evict_flops += flops;
    evict_seconds += flops / hardware.profile.index_rate(spec.evict.method) / tp;
  }
  const auto batch = static_cast<double>(group.cells.size());
  const auto step = causal_decode_step(shape, tokens, left_out / batch, batch, bytes);
  const double steps =
      answer_tokens > 0 ? std::min<double>(answer_tokens, group.max_new_tokens) : group.max_new_tokens;
  const double step_seconds =
      decode_step_seconds(shape, step, hardware.profile, tp, batch, bytes) + choose_seconds;
  cost.seconds = cost.prefill_seconds + evict_seconds + steps * step_seconds;
  cost.flops = prefill.total() + evict_flops + steps * (step.flops.total() + choosing.decode_flops);
  cost.bytes = steps * (step.bytes.total() + choosing.decode_bytes);
  return cost;
}

}  // namespace

IntendedSparsity intended_sparsity(const StrategySpec& spec, const Budget& level, std::int64_t length) {
  IntendedSparsity s;
  double value = level.kind == Budget::Kind::kSparsity ? level.value : 0;
  if (level.kind == Budget::Kind::kTokens) value = 1 - level.value / static_cast<double>(length);
  if (spec.prefill.method != "dense") s.prefill = value;
  for (const auto& [slot, method] :
       {std::pair(Slot::kEvict, &spec.evict), std::pair(Slot::kDecode, &spec.decode)}) {
    if (method->method == "none" || method->method == "dense") continue;
    const double own =
        level.kind == Budget::Kind::kOwn ? nominal_sparsity(slot, *method, length).value_or(0) : value;
    s.decode = std::max(s.decode, std::clamp(own, 0.0, 1.0));
  }
  return s;
}

HardwareProfile cpu_profile_guess() {
  return {.name = "cpu-guess",
          .linear_flops_per_s = 5e10,
          .attention_flops_per_s = 2e10,
          .bytes_per_s = 1e10,
          .link_bytes_per_s = 5e9,
          .step_overhead_s = 1e-4};
}

HardwareProfile find_profile(const std::string& file_or_name) {
  if (file_or_name.find_first_of("./") != std::string::npos) return load_profile(file_or_name);
  return find_hardware_profile(file_or_name, "--profile (files have a dot or a slash in their names)");
}

HardwareProfile choose_profile(const std::string& file_or_name, Device device) {
  if (file_or_name.empty()) return device == Device::kCuda ? datasheet_profiles()[0] : cpu_profile_guess();
  HardwareProfile profile = find_profile(file_or_name);
  LACUNA_REQUIRE(profile.device.empty() || profile.device == name_of(device),
                 "{}: this profile was measured on {}, but the ranks here are of device {}", file_or_name,
                 profile.device, name_of(device));
  return profile;
}

double load_seconds(const ModelShape& shape, int tp, double bytes_per_element,
                    const HardwareProfile& profile) {
  const double elements = shape.parameters > 0 ? shape.parameters : shape.weight_elements();
  const double rate = profile.load_bytes_per_s > 0 ? profile.load_bytes_per_s : kLoadBytesPerSecond;
  return elements * bytes_per_element / tp / rate;
}

Preflight check_sweep(const Sweep& sweep, Grid& grid, const ModelServices& services, const Hardware& hardware,
                      bool for_plan, double answer_tokens) {
  Preflight result;
  for (const auto& model : sweep.models)
    result.models.push_back(check_model(model, services, hardware, for_plan));
  std::vector<std::string> tasks;
  for (const auto& task : sweep.tasks) tasks.push_back(task_problem(task));
  for (const auto& problem : tasks) {
    if (!problem.empty()) result.notes.push_back(problem);
  }
  for (const auto& cell : grid.cells) {
    std::string problem = cell.problem;
    if (problem.empty()) problem = result.models[at(cell.model)].problem;
    // A plan is made where the data need not be.
    if (problem.empty() && !for_plan) problem = tasks[at(cell.task)];
    result.cell_problem.push_back(std::move(problem));
  }
  // Cells that cannot run leave their jobs before memory is looked at.
  for (auto& group : grid.groups) std::erase_if(group.cells, [&](int c) { return !result.can_run(c); });
  std::erase_if(grid.groups, [](const JobGroup& group) { return group.cells.empty(); });
  const MemoryCheck memory(sweep, grid, services, hardware, result.models);
  for (auto& group : grid.groups) {
    if (memory.most(group) > 0) continue;
    const std::string reason = memory.reason(group);
    for (const int c : group.cells) result.cell_problem[at(c)] = reason;
    group.cells.clear();
  }
  std::erase_if(grid.groups, [](const JobGroup& group) { return group.cells.empty(); });
  split_groups(grid, [&](const JobGroup& group) { return memory.most(group); });
  for (const auto& group : grid.groups) {
    JobCost cost;
    if (const auto& shape = result.models[at(group.model)].shape) {
      cost = estimate(grid, group, *shape, sweep.models[at(group.model)].tp, hardware, answer_tokens);
    }
    result.plans.push_back(
        memory.plan(group, static_cast<int>(group.cells.size()), sweep.models[at(group.model)].tp));
    cost.memory = result.plans.back().total();
    result.costs.push_back(cost);
  }
  return result;
}

}  // namespace lacuna
