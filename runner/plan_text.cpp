#include "runner/plan_text.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>

#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

std::size_t at(int i) { return static_cast<std::size_t>(i); }

std::string grouped(std::int64_t value) {
  std::string digits = std::to_string(value);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<std::size_t>(i), " ");
  return digits;
}

template <class List, class Name>
std::string names(const List& list, Name&& name) {
  constexpr std::size_t kShown = 12;
  std::vector<std::string> shown;
  for (std::size_t i = 0; i < std::min(list.size(), kShown); ++i) shown.push_back(name(list[i]));
  if (list.size() > kShown) shown.push_back(fmt::format("and {} more", list.size() - kShown));
  return fmt::format("{}", fmt::join(shown, ", "));
}

void add_group(PlanPart& part, const JobGroup& group, const JobCost& cost, int samples, int tp) {
  part.jobs += samples;
  part.samples += static_cast<std::int64_t>(samples) * static_cast<std::int64_t>(group.cells.size());
  part.rank_seconds += cost.seconds * tp * samples;
  part.flops += cost.flops * samples;
  part.bytes += cost.bytes * samples;
}

/// The scheduler's view of a whole sweep on `hardware.ranks` ranks.
Simulation simulate_plan(const Sweep& sweep, const Grid& grid, const Preflight& preflight,
                         const Hardware& hardware, const PlanOptions& options) {
  std::vector<Scheduler::Rank> ranks;
  for (int r = 0; r < hardware.ranks; ++r) ranks.push_back({r / options.gpus_per_node, hardware.memory});
  std::vector<Scheduler::Model> models;
  for (const auto& load : grid.loads) {
    const int tp = sweep.models[at(load.model)].tp;
    const auto& shape = preflight.models[at(load.model)].shape;
    models.push_back(
        {tp, shape ? load_seconds(*shape, tp, element_bytes(hardware.device), hardware.profile) : 0});
  }
  std::vector<Scheduler::Group> groups;
  for (std::size_t g = 0; g < grid.groups.size(); ++g) {
    const JobGroup& group = grid.groups[g];
    std::vector<std::int32_t> samples(at(grid.cells[at(group.cells.front())].samples));
    std::iota(samples.begin(), samples.end(), 0);
    groups.push_back({group.load, preflight.costs[g].seconds, preflight.costs[g].memory, std::move(samples)});
  }
  return simulate(ranks, models, groups);
}

std::vector<MemoryLine> memory_lines(const Sweep& sweep, const Grid& grid, const Preflight& preflight,
                                     const Hardware& hardware) {
  std::map<std::pair<int, std::int64_t>, std::size_t> largest;  // (model, length) -> group
  for (std::size_t g = 0; g < grid.groups.size(); ++g) {
    const auto [it, is_new] = largest.try_emplace({grid.groups[g].model, grid.groups[g].length}, g);
    if (!is_new && preflight.costs[g].memory > preflight.costs[it->second].memory) it->second = g;
  }
  std::vector<MemoryLine> lines;
  for (const auto& [key, g] : largest) {
    const SweepModel& model = sweep.models[at(key.first)];
    MemoryLine line{model.name,         key.second, model.tp, static_cast<int>(grid.groups[g].cells.size()),
                    preflight.plans[g], true};
    line.fits = hardware.memory <= 0 || line.plan.total() <= hardware.memory;
    lines.push_back(line);
  }
  return lines;
}

}  // namespace

PlanReport make_plan(const Sweep& sweep, const Hardware& hardware, const ModelServices& services,
                     const PlanOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  PlanReport report;
  report.sweep = sweep;
  report.hardware = hardware;
  report.answer_tokens = options.answer_tokens;
  Grid grid = expand(sweep, {.share_prefills = options.share_prefills});
  const Preflight preflight = check_sweep(sweep, grid, services, hardware, true, options.answer_tokens);
  std::map<std::string, int> reasons;
  for (std::size_t i = 0; i < grid.cells.size(); ++i) {
    if (!preflight.cell_problem[i].empty()) ++reasons[preflight.cell_problem[i]];
  }
  report.notes = preflight.notes;
  report.problems.assign(reasons.begin(), reasons.end());

  for (const auto& model : sweep.models) report.models.push_back({.name = model.name});
  for (const auto length : sweep.lengths) report.lengths.push_back({.name = std::to_string(length)});
  report.total.name = "all";
  for (const auto& cell : grid.cells) {
    for (PlanPart* part :
         {&report.total, &report.models[at(cell.model)], &report.lengths[at(cell.length_index)]})
      ++part->cells;
  }
  for (std::size_t g = 0; g < grid.groups.size(); ++g) {
    const JobGroup& group = grid.groups[g];
    const int samples = grid.cells[at(group.cells.front())].samples;
    for (PlanPart* part :
         {&report.total, &report.models[at(group.model)], &report.lengths[at(group.length_index)]}) {
      add_group(*part, group, preflight.costs[g], samples, sweep.models[at(group.model)].tp);
    }
    if (static_cast<std::int64_t>(group.cells.size()) > report.most_shared) {
      report.most_shared = static_cast<std::int64_t>(group.cells.size());
      report.most_shared_by = grid.specs[at(group.prefill_spec)].prefill.method;
    }
  }
  report.prefills_alone = report.total.samples;
  report.memory = memory_lines(sweep, grid, preflight, hardware);
  report.plan_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (options.simulate) report.simulation = simulate_plan(sweep, grid, preflight, hardware, options);
  return report;
}

std::string to_text(const PlanReport& r) {
  std::string text = fmt::format("{}\n", r.sweep.name);
  if (!r.sweep.description.empty()) text += r.sweep.description + "\n";
  text += fmt::format("\n  {:>3} models      {}\n", r.sweep.models.size(),
                      names(r.sweep.models, [](const auto& m) {
                        return m.tp > 1 ? fmt::format("{} (tp {})", m.name, m.tp) : m.name;
                      }));
  text += fmt::format("  {:>3} tasks       {}\n", r.sweep.tasks.size(),
                      names(r.sweep.tasks, [](const auto& t) { return t.name; }));
  text += fmt::format("  {:>3} lengths     {}\n", r.sweep.lengths.size(),
                      names(r.sweep.lengths, [](auto l) { return std::to_string(l); }));
  text += fmt::format("  {:>3} strategies  {}\n", r.sweep.strategies.size(),
                      names(r.sweep.strategies, [](const auto& s) {
                        return s.levels.size() > 1 ? fmt::format("{} x{}", s.name, s.levels.size()) : s.name;
                      }));
  text += fmt::format("\n  {} cells, {} samples, {} jobs\n", grouped(r.total.cells), grouped(r.total.samples),
                      grouped(r.total.jobs));
  if (r.total.jobs > 0) {
    text += fmt::format("  {} prefills instead of {}: cells that differ only after the prefill share it\n",
                        grouped(r.total.jobs), grouped(r.prefills_alone));
    text += fmt::format("  (one {} prefill serves up to {} cells, which then decode as one batch)\n",
                        r.most_shared_by, r.most_shared);
  }
  const auto row = [&](const PlanPart& p) {
    return fmt::format("  {:<22} {:>8} {:>11} {:>10} {:>9} {:>9} {:>12.4g}\n", p.name, grouped(p.cells),
                       grouped(p.samples), grouped(p.jobs), format_count(p.flops), format_bytes(p.bytes),
                       p.rank_seconds / 3600);
  };
  const std::string device = r.hardware.device == Device::kCuda ? "GPU" : "rank";
  text += fmt::format("\n  {:<22} {:>8} {:>11} {:>10} {:>9} {:>9} {:>12}\n", "", "cells", "samples", "jobs",
                      "FLOP", "KV+W read", device + "-hours");
  for (const auto& part : r.models) text += row(part);
  text += "\n";
  for (const auto& part : r.lengths) text += row(part);
  text += "\n" + row(r.total);
  text += fmt::format("  Hours by the profile '{}', every answer {} long{}.\n", r.hardware.profile.name,
                      r.answer_tokens > 0 ? fmt::format("{:g} tokens", r.answer_tokens) : "max_new_tokens",
                      r.hardware.profile.name.ends_with("-peak") ? "; a data sheet's peak, so a lower bound"
                      : !r.hardware.profile.measured.empty()
                          ? "; measured " + r.hardware.profile.measured
                          : "; a guess: `lacuna bench --profile FILE` measures");

  if (!r.memory.empty()) {
    text += fmt::format("\n  memory per rank {:>14} {:>3} {:>6} {:>10} {:>10} {:>12} {:>10} {:>10}\n",
                        "length", "tp", "cells", "weights", "cache", "activations", "workspace", "total");
    for (const auto& m : r.memory) {
      text += fmt::format("  {:<21} {:>8} {:>3} {:>6} {:>10} {:>10} {:>12} {:>10} {:>10}\n", m.model,
                          m.length, m.tp, m.cells, format_bytes(static_cast<double>(m.plan.weights)),
                          format_bytes(static_cast<double>(m.plan.kv_cache)),
                          format_bytes(static_cast<double>(m.plan.activations)),
                          format_bytes(static_cast<double>(m.plan.workspace)),
                          format_bytes(static_cast<double>(m.plan.total())));
    }
    if (r.hardware.memory > 0)
      text += fmt::format("  a rank has {}\n", format_bytes(static_cast<double>(r.hardware.memory)));
  }
  if (!r.notes.empty()) text += "\n  not on this machine, needed by the run\n";
  for (const auto& note : r.notes) text += fmt::format("  {}\n", note);
  if (!r.problems.empty()) text += "\n  cannot run\n";
  for (const auto& [reason, cells] : r.problems) text += fmt::format("  {:>6} cells  {}\n", cells, reason);
  if (r.simulation) {
    const Simulation& s = *r.simulation;
    text += fmt::format(
        "\n  simulated on {} {}s: {} of wall clock, utilisation {:.1f} %, {:.2f} x the lower bound ({})\n",
        r.hardware.ranks, device, format_seconds(s.makespan), 100 * s.utilisation,
        s.lower_bound > 0 ? s.makespan / s.lower_bound : 1, format_seconds(s.lower_bound));
    text += fmt::format(
        "  {} jobs, {} teams formed, {} {}-hours loading models, {} jobs without a place; the scheduler took "
        "{:.2f} s\n",
        grouped(s.jobs), s.teams_formed, fmt::format("{:.2f}", s.loading / 3600), device, s.dropped,
        s.scheduler_seconds);
  }
  return text;
}

Json to_json(const PlanReport& r) {
  const auto part = [](const PlanPart& p) {
    return Json{{"cells", p.cells}, {"samples", p.samples},
                {"jobs", p.jobs},   {"rank_hours", p.rank_seconds / 3600},
                {"flops", p.flops}, {"bytes", p.bytes}};
  };
  Json json = {
      {"sweep", r.sweep.name},
      {"total", part(r.total)},
      {"prefills",
       {{"shared", r.total.jobs}, {"alone", r.prefills_alone}, {"most_cells_per_prefill", r.most_shared}}},
      {"hardware",
       {{"profile", r.hardware.profile.name},
        {"measured", r.hardware.profile.measured},
        {"answer_tokens", r.answer_tokens},
        {"ranks", r.hardware.ranks},
        {"memory", r.hardware.memory},
        {"device", name_of(r.hardware.device)}}},
      {"plan_seconds", r.plan_seconds},
      {"memory", Json::array()},
      {"problems", Json::array()}};
  for (const auto& p : r.models) json["models"][p.name] = part(p);
  for (const auto& p : r.lengths) json["lengths"][p.name] = part(p);
  for (const auto& m : r.memory) {
    json["memory"].push_back({{"model", m.model},
                              {"length", m.length},
                              {"tp", m.tp},
                              {"cells", m.cells},
                              {"weights", m.plan.weights},
                              {"kv_cache", m.plan.kv_cache},
                              {"activations", m.plan.activations},
                              {"workspace", m.plan.workspace},
                              {"total", m.plan.total()},
                              {"fits", m.fits}});
  }
  for (const auto& [reason, cells] : r.problems)
    json["problems"].push_back({{"reason", reason}, {"cells", cells}});
  if (r.simulation) {
    const Simulation& s = *r.simulation;
    json["simulation"] = {{"makespan_s", s.makespan},       {"utilisation", s.utilisation},
                          {"lower_bound_s", s.lower_bound}, {"jobs", s.jobs},
                          {"teams_formed", s.teams_formed}, {"dropped", s.dropped},
                          {"loading_rank_s", s.loading},    {"scheduler_s", s.scheduler_seconds}};
  }
  return json;
}

}  // namespace lacuna
