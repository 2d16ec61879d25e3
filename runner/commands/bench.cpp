// lacuna bench
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "core/text.h"
#include "runner/bench/bench.h"
#include "runner/build_info.h"
#include "runner/commands/commands.h"
#include "runner/launch.h"
#include "runner/signals.h"
#include "sweeps/document.h"
#include "sweeps/profile.h"

namespace lacuna {

namespace {

const std::vector<std::string> kParts{"attention", "prefill", "decode"};

struct Given {
  bench::Options options;
  std::vector<std::string> tokens, strategies;
  std::string device = "auto", json, profile, shared_tokens;
};

bool measures(const bench::Options& options, const char* part) {
  return std::ranges::find(options.parts, part) != options.parts.end();
}

void choose_shape(bench::Options& options) {
  LACUNA_REQUIRE(options.model.empty() || options.shape_name.empty(), "give --model or --shape, not both");
  LACUNA_REQUIRE(options.model.empty() || options.layers == 0,
                 "--layers cuts a random model; a model folder is measured as it is");
  if (!options.model.empty()) {
    options.shape = shape_of(read_model_facts(options.model));
    return;
  }
  if (options.shape_name.empty())
    options.shape_name = options.device == Device::kCuda ? "Qwen2.5-7B" : "small";
  options.shape = bench::find_shape(options.shape_name);
  if (options.layers == 0) return;
  LACUNA_REQUIRE(options.layers <= options.shape.layers, "--layers {}: {} has {}", options.layers,
                 options.shape_name, options.shape.layers);
  options.shape.layers = options.layers;
  options.shape.sliding_layers = std::min(options.shape.sliding_layers, options.layers);
  options.shape.parameters = 0;
}

void read_lists(Given& given) {
  bench::Options& options = given.options;
  for (const std::string& list : given.tokens) {
    for (const std::string& text : split(list, ',')) {
      const std::int64_t tokens = parse_count(text, "--tokens");
      LACUNA_REQUIRE(tokens >= 256 && tokens <= (1 << 20), "--tokens {}: expected 256 to {}", tokens,
                     1 << 20);
      options.tokens.push_back(tokens);
    }
  }
  std::ranges::sort(options.tokens);
  if (!given.shared_tokens.empty()) {
    options.shared_tokens = parse_count(given.shared_tokens, "--shared-tokens");
    LACUNA_REQUIRE(options.shared_tokens >= 256 && options.shared_tokens <= (1 << 20),
                   "--shared-tokens {}: expected 256 to {}", options.shared_tokens, 1 << 20);
  }
  for (const std::string& text : given.strategies) {
    options.strategies.push_back(parse_strategy(Document::parse(text, "--strategy").root(), "--strategy"));
    check_combination(options.strategies.back(), "--strategy");
    options.strategy_names.push_back(text);
  }
  if (options.parts.empty()) options.parts = kParts;
}

/// An option that none of the parts asked for looks at is a mistake.
void refuse_idle_options(const Given& given) {
  const bench::Options& options = given.options;
  const bool decodes = measures(options, "decode"), loads = decodes || measures(options, "prefill");
  const auto need = [](bool is_given, const char* option, bool used, const char* part) {
    LACUNA_REQUIRE(!is_given || used, "{} says nothing about the parts asked for; it is for {}", option,
                   part);
  };
  need(!options.batches.empty(), "--batch", decodes, "decode");
  need(!given.shared_tokens.empty(), "--shared-tokens", decodes, "decode");
  need(options.new_tokens > 0, "--new-tokens", decodes, "decode");
  need(options.layers > 0, "--layers", loads, "prefill and decode");
  need(!options.scratch.empty(), "--scratch", loads && options.model.empty(),
       "prefill and decode with random weights");
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[16];
  return {text, std::strftime(text, sizeof(text), "%Y-%m-%d", &utc)};
}

/// The profile to be completed: what an earlier call wrote, unless that was another device.
HardwareProfile start_profile(const Given& given, const RankFacts& facts) {
  HardwareProfile profile;
  const std::string device(name_of(facts.device));
  if (std::filesystem::exists(given.profile)) {
    profile = load_profile(given.profile, ProfileCheck::kPartial);
    LACUNA_REQUIRE(profile.device.empty() || (profile.device == device && profile.name == facts.device_name),
                   "{}: this profile is of {} ({}), but this is {} ({}); give another file", given.profile,
                   profile.name, profile.device, facts.device_name, device);
  }
  const bench::Options& options = given.options;
  LACUNA_REQUIRE(
      measures(options, "attention") || profile.attention_flops_per_s > 0,
      "--profile: the rates of attention come first; run `lacuna bench attention --profile {}`, or all "
      "parts at once",
      given.profile);
  profile.device = device;
  profile.name = facts.device_name;
  profile.memory_bytes = facts.memory;
  profile.measured = fmt::format("{} by Lacuna {}, {}", today(), LACUNA_VERSION,
                                 options.model.empty() ? options.shape_name : options.model);
  return profile;
}

void run_bench(Given& given) {
  bench::Options& options = given.options;
  const SignalGuard signals;  // 15 GB of random weights do not outlive an interruption
  RankFacts facts = claim_device(given.device, 0, 1);
  options.device = facts.device;
  if (options.cpu_time) facts.device_name = "1 thread, processor time";
#if !LACUNA_HAS_CUDA_ENGINE
  LACUNA_REQUIRE(options.device == Device::kCpu, "this build has no CUDA engine; use --device cpu");
#endif
  LACUNA_REQUIRE(!options.cpu_time || options.device == Device::kCpu, "--cpu-time is for --device cpu");
  read_lists(given);
  refuse_idle_options(given);
  choose_shape(options);
  ThreadPool threads(options.cpu_time ? 1 : facts.threads);
  bench::Session session{.options = options,
                         .threads = threads,
                         .ceilings = {},
                         .profile = {},
                         .wants_profile = !given.profile.empty(),
                         .on_row = {}};
  if (session.wants_profile) session.profile = start_profile(given, facts);
  session.ceilings = bench::measure_ceilings(session);
  const bool gpu = options.device == Device::kCuda;
  std::printf("Lacuna %s, %s, %s, %s\n", LACUNA_VERSION, facts.device_name.c_str(),
              gpu ? "bfloat16" : "float32",
              (options.model.empty() ? "random weights of " + options.shape_name +
                                           fmt::format(", {} layers{}", options.shape.layers,
                                                       options.layers > 0 ? " (cut by --layers)" : "")
                                     : options.model)
                  .c_str());
  std::printf("Floors of this run: matrix products at %.1f %sFLOP/s, memory at %.1f GB/s (y += x)\n",
              session.ceilings.flops_per_s * (gpu ? 1e-12 : 1e-9), gpu ? "T" : "G",
              session.ceilings.bytes_per_s * 1e-9);
  Json rows = Json::array();
  // After every row, so that whatever ends a long run early costs no more than the row it was at.
  const auto save_rows = [&] {
    if (given.json.empty()) return;
    write_file_atomically(given.json, Json{{"device", facts.device_name},
                                           {"shape", to_json(options.shape)},
                                           {"floor_flops_per_s", session.ceilings.flops_per_s},
                                           {"floor_bytes_per_s", session.ceilings.bytes_per_s},
                                           {"git_commit", git_commit()},
                                           {"rows", rows}}
                                              .dump(1) +
                                          "\n");
  };
  const auto save = [&] {
    if (session.wants_profile) write_file_atomically(given.profile, profile_text(session.profile));
  };
  session.on_row = [&](const bench::Row& row) {
    rows.push_back(to_json(row));
    std::fputs(bench::table_line(row, options.device).c_str(), stdout);
    std::fflush(stdout);
    save_rows();
    if (bench::interrupted()) throw_resource("interrupted; {} rows were measured", rows.size());
  };
  const auto head = [&](const char* part) {
    std::fputs(bench::table_head(part, options.device).c_str(), stdout);
  };
  // What cannot be written is said before anything long is measured.
  save();
  save_rows();
  if (measures(options, "attention")) {
    head("attention of one layer");
    bench::bench_attention(session);
    save();
  }
  if (measures(options, "prefill") || measures(options, "decode")) {
    bench::Model model(session, options.shape);
    std::printf(
        "\nmodel loaded in %.2f s%s\n", model.load_seconds(),
        options.model.empty() ? fmt::format(", written in {:.2f} s", model.write_seconds()).c_str() : "");
    if (measures(options, "prefill")) {
      head("prefill, whole model");
      bench::bench_prefill(session, model);
      save();
    }
    if (measures(options, "decode")) {
      head("decode, whole model: one step of the batch");
      bench::bench_decode(session, model);
      save();
    }
  }
  if (session.wants_profile) std::printf("\nprofile in %s\n", given.profile.c_str());
}

}  // namespace

void add_bench_command(CLI::App& app) {
  const auto given = std::make_shared<Given>();
  bench::Options& options = given->options;
  CLI::App* verb =
      app.add_subcommand("bench", "What this machine reaches: attention, prefill, decode; writes profiles");
  verb->footer(
      "Examples:\n  lacuna bench --quick\n  lacuna bench attention --tokens 32K,128K\n"
      "  lacuna bench --model assets/mini/tiny --profile here.yaml && lacuna plan sweeps/demo.yaml --profile "
      "here.yaml");
  // Lists take one argument each time, so that a part may follow them.
  verb->add_option("parts", options.parts, "attention, prefill, decode; default: all")
      ->check(CLI::IsMember(kParts));
  verb->add_option("--device", given->device, "auto (GPU where there is one), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  verb->add_option("--model", options.model, "Model folder; default: random weights of --shape");
  verb->add_option(
      "--shape", options.shape_name,
      "A published model (qwen2.5-7b, llama-3.1-8b, ...) or small; default: qwen2.5-7b on a GPU, small "
      "on the CPU");
  verb->add_option("--layers", options.layers, "Only so many layers of the shape")
      ->check(CLI::Range(1, 1000));
  verb->add_option("--tokens", given->tokens, "Lengths, for instance 16K,128K")->allow_extra_args(false);
  verb->add_option("--batch", options.batches, "Sequences per decode step, for instance 1,32")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::Range(1, 1024));
  verb->add_option(
          "--strategy", given->strategies,
          "Strategy to measure beside dense, as YAML; may be repeated; default: a set of its own per part")
      ->allow_extra_args(false);
  verb->add_option("--shared-tokens", given->shared_tokens, "Prompt of the row with 31 variants");
  verb->add_option("--new-tokens", options.new_tokens, "Tokens per variant of that row")
      ->check(CLI::Range(2, 65536));
  verb->add_flag("--quick", options.quick, "Shorter lengths");
  verb->add_flag("--cpu-time", options.cpu_time,
                 "Processor time on one thread, for machines shared with others");
  verb->add_option("--scratch", options.scratch, "Folder for the random weights; default: the temporary one")
      ->check(CLI::ExistingDirectory);
  verb->add_option("--json", given->json, "Write the rows to this file");
  verb->add_option("--profile", given->profile,
                   "Write, or complete, a profile for `lacuna plan` and `lacuna run`");
  verb->callback([given] { run_bench(*given); });
}

}  // namespace lacuna
