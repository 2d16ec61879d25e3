// A sweep: what to run. The parsed form of a sweep file; docs/sweeps.md is its manual.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/budget.h"
#include "attention/strategy.h"
#include "core/params.h"
#include "sweeps/document.h"

namespace lacuna {

/// One model of the sweep. Which of a cell's settings it decides is said in docs/sweeps.md.
struct SweepModel {
  std::string name;
  std::string path;             ///< Folder, absolute or relative to the working directory.
  int tp = 1;                   ///< Ranks per team.
  std::string dtype = "auto";   ///< auto (float32 on the CPU, bfloat16 on CUDA), float32 or bfloat16
  std::string device = "auto";  ///< auto (CUDA where there is a device), cpu or cuda
  std::string chat = "auto";    ///< auto (the folder's own template), chatml, llama3, gemma or none
  nlohmann::json rope;          ///< RoPE override, or null; see rope_for().
  nlohmann::json shape;  ///< For planning without the folder: a published name, or the numbers; or null.
  std::vector<std::int64_t> lengths;  ///< Only these of the sweep's lengths; empty: all.
  std::optional<int> samples;         ///< Instead of the sweep's.
};

/// One task of the sweep.
struct SweepTask {
  std::string name;  ///< In the sweep; the registered name unless given.
  std::string task;  ///< Registered name.
  Params params;     ///< As the sweep gives them: this is hashed.
  std::string
      data;  ///< The data file with its folder, or empty; replaces params' `data` when the task is made.
  std::vector<std::int64_t> lengths;
  std::optional<int> samples, max_new_tokens;
};

/// One method or combination, at one or more levels.
struct SweepStrategy {
  std::string name;  ///< Without the level: what the cube's strategy axis shows.
  StrategySpec base;
  std::vector<Budget> levels;
  std::vector<std::string> models, tasks;  ///< Only these; empty: all.
  std::vector<std::int64_t> lengths;
};

struct Sweep {
  std::string name, description;
  std::vector<SweepModel> models;
  std::vector<SweepTask> tasks;
  std::vector<std::int64_t> lengths;  ///< Ascending.
  std::vector<SweepStrategy> strategies;
  int samples = 1;
  std::uint64_t seed = 0;
  int max_new_tokens = 128;
  nlohmann::json calibration;  ///< Content of the calibration file; null: the paper's values.

  /// Canonical form, itself a sweep file (JSON is YAML): parse(to_json()) gives the same sweep.
  nlohmann::json to_json() const;
  /// 16 hex digits over to_json().
  std::string hash() const;
};

/// Reads a sweep file and applies "key=value" overrides. Throws kUsage "FILE:LINE:COLUMN: what; what to do".
Sweep load_sweep(const std::string& path, std::span<const std::string> overrides = {});
/// From a document that was read already.
Sweep parse_sweep(const Document& document);

/// The RoPE override of a model at one length, in config.json's syntax as JSON text; empty for none. In the
/// sweep, `above: N` limits the override to lengths greater than N, and `factor: auto` means (length +
/// max_new_tokens) / original_max_position_embeddings.
std::string rope_for(const SweepModel& model, std::int64_t length, int max_new_tokens);

/// "dense", "prefill", "decode" (eviction included) or "both": where a strategy leaves something out.
std::string_view phase_of(const StrategySpec& spec);

}  // namespace lacuna
