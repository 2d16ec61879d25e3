#include "core/npy.h"

#include <charconv>
#include <cstring>
#include <regex>

#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

namespace lacuna {

namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct Header {
  DType dtype;
  Shape shape;
  std::size_t data_offset;
};

DType parse_descr(const std::string& descr, const std::string& path) {
  if (descr == "<f4") return DType::kF32;
  if (descr == "<f2") return DType::kF16;
  if (descr == "<i4") return DType::kI32;
  if (descr == "<i8") return DType::kI64;
  if (descr == "|u1") return DType::kU8;
  throw_usage("{}: element type '{}' is not supported; save it as float32 or float16 (array.astype('float32'))", path,
              descr);
}

Header parse_header(std::span<const std::byte> bytes, const std::string& path) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  LACUNA_REQUIRE(text.size() >= 12 && text.starts_with(kMagic), "{}: is not a .npy file", path);
  const int version = static_cast<unsigned char>(text[6]);
  LACUNA_REQUIRE(version >= 1 && version <= 3, "{}: .npy format version {} is not supported", path, version);
  std::size_t length = 0;
  const std::size_t length_bytes = version == 1 ? 2 : 4;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= static_cast<std::size_t>(static_cast<unsigned char>(text[8 + i])) << (8 * i);
  }
  const std::size_t start = 8 + length_bytes;
  LACUNA_REQUIRE(length <= text.size() - start && length < 65536, "{}: the .npy header is truncated", path);
  const std::string header(text.substr(start, length));

  std::smatch match;
  static const std::regex kDescr("'descr'\\s*:\\s*'([^']*)'");
  static const std::regex kOrder("'fortran_order'\\s*:\\s*(True|False)");
  static const std::regex kShape("'shape'\\s*:\\s*\\(([0-9, ]*)\\)");
  LACUNA_REQUIRE(std::regex_search(header, match, kDescr), "{}: the .npy header has no 'descr'", path);
  const DType dtype = parse_descr(match[1], path);
  LACUNA_REQUIRE(std::regex_search(header, match, kOrder), "{}: the .npy header has no 'fortran_order'", path);
  LACUNA_REQUIRE(match[1] == "False", "{}: Fortran order is not supported; save numpy.ascontiguousarray(x)", path);
  LACUNA_REQUIRE(std::regex_search(header, match, kShape), "{}: the .npy header has no 'shape'", path);

  std::vector<std::int64_t> dims;
  std::int64_t elements = 1;
  for (const auto& part : split(match[1].str(), ',')) {
    const std::string_view digits = trim(part);
    if (digits.empty()) continue;
    std::int64_t dim = -1;
    const auto status = std::from_chars(digits.data(), digits.data() + digits.size(), dim);
    LACUNA_REQUIRE(status.ec == std::errc() && dim >= 0 && (dim == 0 || elements <= INT64_MAX / 16 / dim),
                   "{}: dimension '{}' is not valid", path, digits);
    elements *= dim;
    dims.push_back(dim);
  }
  LACUNA_REQUIRE(dims.size() <= Shape::kMaxRank, "{}: has {} dimensions, at most {} are supported", path, dims.size(),
                 Shape::kMaxRank);
  return {dtype, Shape(dims), start + length};
}

std::string_view descr_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kBF16: return "<f4";
    case DType::kF16: return "<f2";
    case DType::kI32: return "<i4";
    case DType::kI64: return "<i8";
    case DType::kU8: return "|u1";
  }
  return "";
}

}  // namespace

Tensor read_npy(const std::string& path) {
  const MappedFile file(path);
  const Header header = parse_header(file.bytes(), path);
  const std::size_t bytes = static_cast<std::size_t>(header.shape.elements()) * size_of(header.dtype);
  LACUNA_REQUIRE(file.bytes().size() - header.data_offset == bytes, "{}: shape {} of {} needs {} bytes of data, the file has {}",
                 path, header.shape.to_string(), name_of(header.dtype), bytes, file.bytes().size() - header.data_offset);
  Tensor tensor(header.shape, header.dtype);
  if (bytes > 0) std::memcpy(tensor.data(), file.bytes().data() + header.data_offset, bytes);
  return tensor;
}

void write_npy(const std::string& path, const TensorView& tensor) {
  LACUNA_CHECK(tensor.device == Device::kCpu, "write_npy takes host tensors");
  std::string dims;
  for (int i = 0; i < tensor.shape.rank(); ++i) dims += fmt::format("{},", tensor.shape[i]);
  std::string header =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr_of(tensor.dtype), dims);
  header.append(63 - (10 + header.size()) % 64, ' ');  // the data starts at a multiple of 64
  header += '\n';
  std::string content(kMagic);
  content += {1, 0, static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  content += header;
  const auto elements = static_cast<std::size_t>(tensor.shape.elements());
  if (tensor.dtype == DType::kBF16) {
    std::vector<float> values(elements);
    convert_to_float(tensor.data, DType::kBF16, values.data(), elements);
    content.append(reinterpret_cast<const char*>(values.data()), elements * sizeof(float));
  } else {
    content.append(static_cast<const char*>(tensor.data), tensor.bytes());
  }
  write_file_atomically(path, content);
}

}  // namespace lacuna
