#include "model/rope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

const std::array<std::string, 4> kTypeNames = {"default", "linear", "llama3", "yarn"};

RopeType parse_type(const Json& object, const std::string& where) {
  // "type" is the name of the field before transformers 4.43.
  const auto name = json_get_or<std::string>(
      object, "rope_type", json_get_or<std::string>(object, "type", "default", where), where);
  const auto it = std::find(kTypeNames.begin(), kTypeNames.end(), name);
  if (it == kTypeNames.end())
    throw_usage("{}: {}", where, unknown_name_message("rope_type", name, kTypeNames));
  return static_cast<RopeType>(it - kTypeNames.begin());
}

/// Fields that each type may carry, besides rope_type, type and rope_theta.
std::vector<std::string> fields_of(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return {};
    case RopeType::kLinear:
      return {"factor"};
    case RopeType::kLlama3:
      return {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"};
    case RopeType::kYarn:
      return {"factor",           "original_max_position_embeddings",
              "attention_factor", "beta_fast",
              "beta_slow",        "mscale",
              "mscale_all_dim",   "truncate"};
  }
  throw_internal("rope type {}", static_cast<int>(type));
}

double positive(const Json& object, const char* key, double fallback, const std::string& where) {
  const auto value = json_get_or<double>(object, key, fallback, where);
  LACUNA_REQUIRE(std::isfinite(value) && value > 0, "{}: field '{}' is {}, expected a number above 0", where,
                 key, value);
  return value;
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

void read_yarn(const Json& object, double max_positions, const std::string& where, RopeConfig& rope) {
  rope.original_max_positions = positive(object, "original_max_position_embeddings", max_positions, where);
  // A null factor means "from the model's own lengths".
  rope.factor = positive(object, "factor", max_positions / rope.original_max_positions, where);
  rope.beta_fast = positive(object, "beta_fast", 32, where);
  rope.beta_slow = positive(object, "beta_slow", 1, where);
  rope.truncate = json_get_or<bool>(object, "truncate", true, where);
  const auto mscale = json_get_or<double>(object, "mscale", 0, where);
  const auto mscale_all = json_get_or<double>(object, "mscale_all_dim", 0, where);
  const double from_factor = mscale != 0 && mscale_all != 0
                                 ? yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, mscale_all)
                                 : yarn_mscale(rope.factor, 1);
  rope.attention_factor = positive(object, "attention_factor", from_factor, where);
}

void yarn_frequencies(const RopeConfig& rope, int head_dim, std::vector<float>& frequencies) {
  const auto correction_dim = [&](double rotations) {
    return head_dim * std::log(rope.original_max_positions / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = correction_dim(rope.beta_fast), high = correction_dim(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, head_dim - 1.0);
  if (low == high) high += 0.001;  // the ramp must not divide by zero
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float position = frequencies[i];  // base ^ (2i / head_dim)
    const float extrapolated = 1.0f / position;
    const float interpolated = 1.0f / (static_cast<float>(rope.factor) * position);
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f, 1.0f);
    const float keep = 1 - ramp;
    frequencies[i] = interpolated * (1 - keep) + extrapolated * keep;
  }
}

void llama3_frequencies(const RopeConfig& rope, std::vector<float>& frequencies) {
  const double original = rope.original_max_positions;
  const auto factor = static_cast<float>(rope.factor);
  const auto low_wavelength = static_cast<float>(original / rope.low_freq_factor);
  const auto high_wavelength = static_cast<float>(original / rope.high_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength > low_wavelength) {
      frequency /= factor;
    } else if (wavelength >= high_wavelength) {
      const float smooth =
          (static_cast<float>(original) / wavelength - static_cast<float>(rope.low_freq_factor)) /
          static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
}

}  // namespace

RopeConfig parse_rope(const Json& object, double theta, double max_positions, const std::string& where) {
  RopeConfig rope;
  rope.theta = theta;
  if (object.is_null()) return rope;
  LACUNA_REQUIRE(object.is_object(), "{}: expected an object", where);
  rope.type = parse_type(object, where);
  const auto known = fields_of(rope.type);
  for (const auto& [key, value] : object.items()) {
    if (key == "rope_type" || key == "type" || key == "rope_theta" || value.is_null()) continue;
    if (key == "partial_rotary_factor" && value.is_number() && value.get<double>() == 1.0) continue;
    LACUNA_REQUIRE(std::find(known.begin(), known.end(), key) != known.end(),
                   "{}: field '{}' is not supported for rope_type '{}'", where, key,
                   kTypeNames[static_cast<std::size_t>(rope.type)]);
  }
  rope.theta = positive(object, "rope_theta", theta, where);
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      json_get<double>(object, "factor", where);
      rope.factor = positive(object, "factor", 1, where);
      break;
    case RopeType::kLlama3:
      for (const char* key : {"factor", "low_freq_factor", "high_freq_factor"})
        json_get<double>(object, key, where);
      rope.factor = positive(object, "factor", 1, where);
      rope.low_freq_factor = positive(object, "low_freq_factor", 1, where);
      rope.high_freq_factor = positive(object, "high_freq_factor", 4, where);
      rope.original_max_positions =
          positive(object, "original_max_position_embeddings", max_positions, where);
      LACUNA_REQUIRE(rope.high_freq_factor > rope.low_freq_factor,
                     "{}: high_freq_factor ({}) must be above low_freq_factor ({})", where,
                     rope.high_freq_factor, rope.low_freq_factor);
      break;
    case RopeType::kYarn:
      read_yarn(object, max_positions, where, rope);
      break;
  }
  return rope;
}

Json to_json(const RopeConfig& rope) {
  Json json = {{"rope_type", kTypeNames[static_cast<std::size_t>(rope.type)]}, {"rope_theta", rope.theta}};
  if (rope.type != RopeType::kDefault) json["factor"] = rope.factor;
  if (rope.type == RopeType::kLlama3 || rope.type == RopeType::kYarn) {
    json["original_max_position_embeddings"] = rope.original_max_positions;
  }
  if (rope.type == RopeType::kLlama3) {
    json["low_freq_factor"] = rope.low_freq_factor;
    json["high_freq_factor"] = rope.high_freq_factor;
  }
  if (rope.type == RopeType::kYarn) {
    json["beta_fast"] = rope.beta_fast;
    json["beta_slow"] = rope.beta_slow;
    json["truncate"] = rope.truncate;
    json["attention_factor"] = rope.attention_factor;
  }
  return json;
}

std::vector<float> inverse_frequencies(const RopeConfig& rope, int head_dim) {
  std::vector<float> frequencies(static_cast<std::size_t>(head_dim) / 2);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    frequencies[i] = static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
  }
  if (rope.type == RopeType::kYarn) {
    yarn_frequencies(rope, head_dim, frequencies);
    return frequencies;
  }
  for (float& f : frequencies) f = 1.0f / f;
  if (rope.type == RopeType::kLinear) {
    for (float& f : frequencies) f /= static_cast<float>(rope.factor);
  } else if (rope.type == RopeType::kLlama3) {
    llama3_frequencies(rope, frequencies);
  }
  return frequencies;
}

void fill_rope_rows(std::span<const float> frequencies, double attention_factor, std::int64_t first,
                    std::int64_t count, float* cos, float* sin) {
  const auto scale = static_cast<float>(attention_factor);
  for (std::int64_t t = 0; t < count; ++t) {
    const auto position = static_cast<float>(first + t);
    for (const float frequency : frequencies) {
      const auto angle = static_cast<double>(position * frequency);
      *cos++ = static_cast<float>(std::cos(angle)) * scale;
      *sin++ = static_cast<float>(std::sin(angle)) * scale;
    }
  }
}

}  // namespace lacuna
