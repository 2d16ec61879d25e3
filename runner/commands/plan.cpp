// lacuna plan
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "core/error.h"
#include "core/json.h"
#include "runner/commands/commands.h"
#include "runner/launch.h"
#include "runner/plan_text.h"

namespace lacuna {

namespace {

struct Given {
  std::string sweep;
  std::vector<std::string> overrides;
  std::string device = "auto", profile;
  int gpus = 0, gpus_per_node = 8;
  double memory_gib = 0, answer_tokens = 0;
  bool simulate = false, json = false, one_by_one = false;
};

/// What was asked for, else what the profile was measured on, else GPUs unless the sweep's models are all
/// here and this machine has none.
Device planned_device(const Given& given, const Sweep& sweep) {
  std::string wanted = given.device;
  if (wanted == "auto" && !given.profile.empty()) {
    const std::string measured_on = find_profile(given.profile).device;
    if (!measured_on.empty()) wanted = measured_on;
  }
  if (wanted == "cuda") return Device::kCuda;
  if (wanted == "cpu") return Device::kCpu;
  for (const auto& model : sweep.models) {
    if (model.device == "cuda" || !std::filesystem::exists(model.path + "/config.json")) return Device::kCuda;
  }
  return claim_device("auto", 0, 1).device;
}

Hardware planned_hardware(const Given& given, const Sweep& sweep) {
  Hardware hardware;
  hardware.device = planned_device(given, sweep);
  int widest = 1;
  for (const auto& model : sweep.models) widest = std::max(widest, model.tp);
  hardware.ranks = given.gpus > 0 ? given.gpus : widest;
  hardware.profile = choose_profile(given.profile, hardware.device);
  constexpr double kGib = 1024.0 * 1024 * 1024;
  if (given.memory_gib > 0)
    hardware.memory = static_cast<std::int64_t>(given.memory_gib * kGib);
  else if (hardware.profile.memory_bytes > 0)
    hardware.memory = hardware.profile.memory_bytes;
  else if (hardware.device == Device::kCuda)
    hardware.memory = static_cast<std::int64_t>(0.95 * 80 * 1e9);
  else
    hardware.memory = claim_device("cpu", 0, hardware.ranks).memory;
  return hardware;
}

}  // namespace

void add_plan_command(CLI::App& app) {
  const auto given = std::make_shared<Given>();
  CLI::App* verb =
      app.add_subcommand("plan", "What a sweep will cost before it runs: cells, jobs, memory, hours");
  verb->footer(
      "Examples:\n  lacuna plan sweeps/demo.yaml\n  lacuna plan sweeps/paper-v1.yaml --simulate --gpus 32");
  verb->add_option("sweep", given->sweep, "Sweep file (docs/sweeps.md)")->required();
  verb->add_option("overrides", given->overrides, "key=value, for instance samples=10");
  verb->add_option("--gpus", given->gpus, "Ranks to plan for; default: the largest tp")
      ->check(CLI::Range(1, 1'000'000));
  verb->add_option("--gpus-per-node", given->gpus_per_node, "Ranks per host")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  verb->add_flag("--simulate", given->simulate, "Run the scheduler under a simulated clock");
  verb->add_option("--profile", given->profile,
                   "How fast a rank is: a file that `lacuna bench --profile` wrote, or h100-peak, h200-peak, "
                   "a100-peak");
  verb->add_option(
      "--memory", given->memory_gib,
      "GiB per rank; default: the profile's, else 95 % of 80 GB on GPUs, what this machine has free on "
      "the CPU");
  verb->add_option("--device", given->device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--answer-tokens", given->answer_tokens,
                   "Length of an answer in estimates of time; default: as long as it may be")
      ->check(CLI::PositiveNumber);
  verb->add_flag("--one-by-one", given->one_by_one, "As if no prefill were shared");
  verb->add_flag("--json", given->json, "As JSON");
  verb->callback([given] {
    const Sweep sweep = load_sweep(given->sweep, given->overrides);
    const PlanReport report = make_plan(sweep, planned_hardware(*given, sweep), real_model_services(),
                                        {.simulate = given->simulate,
                                         .gpus_per_node = given->gpus_per_node,
                                         .share_prefills = !given->one_by_one,
                                         .answer_tokens = given->answer_tokens});
    const std::string text = given->json ? to_json(report).dump(1) + "\n" : to_text(report);
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace lacuna
