#include "core/dtype.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace lacuna {

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kI64: return 8;
    case DType::kU8: return 1;
  }
  throw_internal("unknown dtype {}", static_cast<int>(dtype));
}

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "float32";
    case DType::kBF16: return "bfloat16";
    case DType::kF16: return "float16";
    case DType::kI32: return "int32";
    case DType::kI64: return "int64";
    case DType::kU8: return "uint8";
  }
  return "unknown";
}

float to_float(Float16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal: exact in float
  return sign != 0 ? -magnitude : magnitude;
}

BFloat16 to_bfloat16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

Float16 to_float16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 lets the float unit round to a multiple of 2^-24.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

void convert_to_float(const void* from, DType dtype, float* to, std::size_t count) {
  switch (dtype) {
    case DType::kF32: std::memcpy(to, from, count * sizeof(float)); return;
    case DType::kBF16: {
      const auto* source = static_cast<const BFloat16*>(from);
      std::transform(source, source + count, to, [](BFloat16 x) { return to_float(x); });
      return;
    }
    case DType::kF16: {
      const auto* source = static_cast<const Float16*>(from);
      std::transform(source, source + count, to, [](Float16 x) { return to_float(x); });
      return;
    }
    default: throw_internal("convert_to_float: {} is not a float type", name_of(dtype));
  }
}

void convert_from_float(const float* from, void* to, DType dtype, std::size_t count) {
  switch (dtype) {
    case DType::kF32: std::memcpy(to, from, count * sizeof(float)); return;
    case DType::kBF16: std::transform(from, from + count, static_cast<BFloat16*>(to), to_bfloat16); return;
    case DType::kF16: std::transform(from, from + count, static_cast<Float16*>(to), to_float16); return;
    default: throw_internal("convert_from_float: {} is not a float type", name_of(dtype));
  }
}

}  // namespace lacuna
