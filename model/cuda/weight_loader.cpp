#include "model/cuda/weight_loader.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace lacuna {

namespace {

/// Elements that one task converts.
constexpr std::int64_t kTaskElements = std::int64_t{1} << 17;
constexpr std::int64_t kBlock = 1024;

/// Branch-free forms of to_bfloat16 and to_float(Float16), so that loops over them become vector code.
inline std::uint16_t round_to_bfloat16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet_nan : rounded);
}
inline float half_to_float(std::uint16_t half) {
  // Exponent and mantissa move up; times 2^112 corrects the exponent's bias, of subnormals too.
  const std::uint32_t magnitude = (half & 0x7FFFu) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const std::uint32_t special = magnitude | 0x7F800000u;  // infinities and NaN keep their mantissa
  const std::uint32_t bits = (half & 0x7C00u) == 0x7C00u ? special : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(bits | static_cast<std::uint32_t>(half & 0x8000u) << 16);
}

/// `count` neighbouring elements as float32. memcpy: mapped files are not aligned.
void read_floats(const std::byte* from, DType dtype, std::int64_t count, float* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  std::array<std::uint16_t, kBlock> raw;
  for (std::int64_t at = 0; at < count; at += kBlock) {
    const std::int64_t n = std::min(kBlock, count - at);
    std::memcpy(raw.data(), from + at * 2, static_cast<std::size_t>(n) * 2);
    if (dtype == DType::kBF16) {
      for (std::int64_t i = 0; i < n; ++i) to[at + i] = to_float(BFloat16{raw[static_cast<std::size_t>(i)]});
    } else {
      for (std::int64_t i = 0; i < n; ++i) to[at + i] = half_to_float(raw[static_cast<std::size_t>(i)]);
    }
  }
}

void read_bfloat16(const std::byte* from, DType dtype, std::int64_t count, std::uint16_t* to) {
  if (dtype == DType::kBF16) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * 2);
    return;
  }
  std::array<float, kBlock> floats;
  const auto bytes = static_cast<std::int64_t>(size_of(dtype));
  for (std::int64_t at = 0; at < count; at += kBlock) {
    const std::int64_t n = std::min(kBlock, count - at);
    read_floats(from + at * bytes, dtype, n, floats.data());
    for (std::int64_t i = 0; i < n; ++i) to[at + i] = round_to_bfloat16(floats[static_cast<std::size_t>(i)]);
  }
}

const std::byte* address(const MatrixSlice& slice, std::int64_t row, std::int64_t col) {
  return static_cast<const std::byte*>(slice.data) +
         static_cast<std::size_t>(row * slice.row_stride + col) * size_of(slice.dtype);
}

/// Elements [begin, end) of the slice, counted row by row.
void read_range(const MatrixSlice& slice, std::int64_t begin, std::int64_t end, std::uint16_t* to) {
  if (slice.row_stride == slice.cols)
    return read_bfloat16(address(slice, 0, begin), slice.dtype, end - begin, to);
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t row = at / slice.cols, col = at % slice.cols;
    const std::int64_t count = std::min(slice.cols - col, end - at);
    read_bfloat16(address(slice, row, col), slice.dtype, count, to + (at - begin));
    at += count;
  }
}

void check_type(const MatrixSlice& slice) {
  LACUNA_CHECK(slice.dtype == DType::kF32 || slice.dtype == DType::kBF16 || slice.dtype == DType::kF16,
               "a weight of type {}", name_of(slice.dtype));
}

}  // namespace

void WeightLoader::load(const MatrixSlice& slice, __nv_bfloat16* device) {
  check_type(slice);
  constexpr auto kPiece = static_cast<std::int64_t>(PinnedRing::kPieceBytes / 2);
  const std::int64_t total = slice.rows * slice.cols;
  for (std::int64_t first = 0; first < total; first += kPiece) {
    const std::int64_t count = std::min(kPiece, total - first);
    const auto bytes = static_cast<std::size_t>(count) * 2;
    auto* to = reinterpret_cast<std::uint16_t*>(ring_.next(bytes));
    const auto convert = [&](std::int64_t task) {
      const std::int64_t begin = task * kTaskElements, end = std::min(count, begin + kTaskElements);
      read_range(slice, first + begin, first + end, to + begin);
    };
    pool_.parallel_for((count + kTaskElements - 1) / kTaskElements, std::cref(convert));
    ring_.send(device + first, bytes);
  }
}

void WeightLoader::load_floats(const MatrixSlice& slice, float offset, float* device) {
  check_type(slice);
  constexpr auto kPiece = static_cast<std::int64_t>(PinnedRing::kPieceBytes / sizeof(float));
  for (std::int64_t first = 0; first < slice.cols; first += kPiece) {
    const std::int64_t count = std::min(kPiece, slice.cols - first);
    const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
    auto* to = reinterpret_cast<float*>(ring_.next(bytes));
    read_floats(address(slice, 0, first), slice.dtype, count, to);
    for (std::int64_t i = 0; i < count; ++i) to[i] += offset;
    ring_.send(device + first, bytes);
  }
}

}  // namespace lacuna
