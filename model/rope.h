// Rotary position embeddings: the four scalings that the supported families use, and their cos/sin tables.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lacuna {

enum class RopeType : std::uint8_t { kDefault, kLinear, kLlama3, kYarn };

/// One layer type's RoPE as config.json states it. Fields that a type does not use keep their defaults.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                               ///< linear, llama3, yarn
  double original_max_positions = 0;                 ///< llama3, yarn
  double low_freq_factor = 1, high_freq_factor = 4;  ///< llama3
  double beta_fast = 32, beta_slow = 1;              ///< yarn
  bool truncate = true;                              ///< yarn: whole-numbered ends of the ramp
  double attention_factor = 1.0;  ///< yarn: multiplies cos and sin; resolved from mscale and factor
  bool operator==(const RopeConfig&) const = default;
};

/// Reads an object in config.json's syntax (`rope_scaling` of transformers 4, `rope_parameters` of
/// transformers 5). `theta` and `max_positions` stand for what the object does not say. Unknown types and
/// fields are refused by name.
RopeConfig parse_rope(const nlohmann::json& object, double theta, double max_positions,
                      const std::string& where);

/// The settings in effect, in the same syntax.
nlohmann::json to_json(const RopeConfig& rope);

/// Inverse frequencies [head_dim / 2], rounded to float at the same steps as the reference implementation:
/// YaRN (arXiv 2309.00071, NTK-by-parts), Llama 3.1's smoothed interpolation, linear interpolation.
std::vector<float> inverse_frequencies(const RopeConfig& rope, int head_dim);

/// cos and sin of position * frequency for positions [first, first + count), times the attention factor.
/// The angle is rounded to float before cos and sin, as the reference does. cos, sin: [count,
/// frequencies.size()].
void fill_rope_rows(std::span<const float> frequencies, double attention_factor, std::int64_t first,
                    std::int64_t count, float* cos, float* sin);

}  // namespace lacuna
