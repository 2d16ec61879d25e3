// Element types of tensors, and the conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lacuna {

enum class DType : std::uint8_t { kF32, kBF16, kF16, kI32, kI64, kU8 };

/// Bytes of one element.
std::size_t size_of(DType dtype);
/// "float32", "bfloat16", "float16", "int32", "int64", "uint8".
std::string_view name_of(DType dtype);

/// bfloat16 as stored: the upper half of a float.
struct BFloat16 {
  std::uint16_t bits;
};
/// IEEE half precision as stored.
struct Float16 {
  std::uint16_t bits;
};

inline float to_float(BFloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
float to_float(Float16 x);
/// Round to nearest, ties to even; NaN stays NaN.
BFloat16 to_bfloat16(float x);
Float16 to_float16(float x);

/// Converts `count` elements of a float type to float32. dtype must be a float type.
void convert_to_float(const void* from, DType dtype, float* to, std::size_t count);
/// Converts `count` float32 elements to a float type.
void convert_from_float(const float* from, void* to, DType dtype, std::size_t count);

}  // namespace lacuna
