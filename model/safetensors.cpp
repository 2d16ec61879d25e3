#include "model/safetensors.h"

#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"

namespace lacuna {

namespace {

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
constexpr int kMaxJsonDepth = 8;

/// Bytes of one element of a safetensors type, or nothing for a name that is no type.
std::optional<std::uint64_t> element_bytes(const std::string& dtype) {
  static const std::map<std::string, std::uint64_t> kSizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  const auto it = kSizes.find(dtype);
  return it == kSizes.end() ? std::nullopt : std::optional(it->second);
}

/// JSON with what parse_json does not refuse: repeated keys, which would hide a tensor.
Json parse_header(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    LACUNA_REQUIRE(depth <= kMaxJsonDepth, "{}: the header is nested deeper than {} levels", where,
                   kMaxJsonDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      LACUNA_REQUIRE(keys.back().insert(key).second, "{}: the header lists '{}' twice", where, key);
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& e) {
    throw_usage("{}: the header is not valid JSON: {}", where, e.what());
  }
}

/// Product of the dimensions times the element size, or an error when it does not fit.
std::uint64_t bytes_of(const SafetensorsEntry& entry, std::uint64_t element, const std::string& what) {
  std::uint64_t bytes = element;
  for (const std::int64_t dim : entry.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dim), &bytes)) {
      throw_usage("{}: shape {} is too large", what, fmt::join(entry.shape, " x "));
    }
  }
  return bytes;
}

SafetensorsEntry parse_entry(const Json& json, std::uint64_t data_begin, std::uint64_t data_bytes,
                             const std::string& what) {
  LACUNA_REQUIRE(json.is_object(), "{}: its header entry is not an object", what);
  for (const auto& [key, value] : json.items()) {
    LACUNA_REQUIRE(key == "dtype" || key == "shape" || key == "data_offsets", "{}: unknown field '{}'", what,
                   key);
  }
  SafetensorsEntry entry;
  entry.dtype = json_get<std::string>(json, "dtype", what);
  const auto element = element_bytes(entry.dtype);
  LACUNA_REQUIRE(element.has_value(), "{}: unknown dtype '{}'", what, entry.dtype);

  const auto integers = [&](const char* key) -> const Json& {
    const auto it = json.find(key);
    LACUNA_REQUIRE(it != json.end() && it->is_array(), "{}: field '{}' must be a list", what, key);
    for (const Json& value : *it) {
      LACUNA_REQUIRE(value.is_number_unsigned() &&
                         value.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max(),
                     "{}: field '{}' holds {}, expected whole numbers", what, key, value.dump());
    }
    return *it;
  };
  for (const Json& dim : integers("shape")) entry.shape.push_back(dim.get<std::int64_t>());
  const Json& offsets = integers("data_offsets");
  LACUNA_REQUIRE(offsets.size() == 2, "{}: field 'data_offsets' must hold two numbers", what);
  const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
  LACUNA_REQUIRE(begin <= end && end <= data_bytes,
                 "{}: its data_offsets [{}, {}] lie outside the file's {} bytes of data; the file is "
                 "truncated or damaged",
                 what, begin, end, data_bytes);
  const std::uint64_t expected = bytes_of(entry, *element, what);
  LACUNA_REQUIRE(end - begin == expected, "{}: {} [{}] needs {} bytes, but its data_offsets give it {}", what,
                 entry.dtype, fmt::join(entry.shape, ", "), expected, end - begin);
  entry.begin = data_begin + begin;
  entry.end = data_begin + end;
  return entry;
}

/// Tensors must tile the data: the reference refuses overlaps and holes.
void check_tiling(const std::map<std::string, SafetensorsEntry>& tensors, std::uint64_t data_begin,
                  std::uint64_t file_bytes, const std::string& where) {
  std::vector<std::pair<const SafetensorsEntry*, const std::string*>> order;
  for (const auto& [name, entry] : tensors) order.emplace_back(&entry, &name);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::tuple(a.first->begin, a.first->end, *a.second) <
           std::tuple(b.first->begin, b.first->end, *b.second);
  });
  std::uint64_t at = data_begin;
  const std::string* previous = nullptr;
  for (const auto& [entry, name] : order) {
    LACUNA_REQUIRE(entry->begin >= at, "{}: tensor '{}' overlaps tensor '{}'", where, *name,
                   previous ? *previous : "");
    LACUNA_REQUIRE(entry->begin == at, "{}: {} bytes before tensor '{}' belong to no tensor", where,
                   entry->begin - at, *name);
    at = entry->end;
    previous = name;
  }
  LACUNA_REQUIRE(at == file_bytes, "{}: {} bytes at the end belong to no tensor; the file is damaged", where,
                 file_bytes - at);
}

}  // namespace

std::map<std::string, SafetensorsEntry> parse_safetensors(std::span<const std::byte> file,
                                                          const std::string& where) {
  LACUNA_REQUIRE(file.size() >= kLengthBytes, "{}: {} bytes are too few for a safetensors file", where,
                 file.size());
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    header_bytes |= std::to_integer<std::uint64_t>(file[i]) << (8 * i);
  LACUNA_REQUIRE(
      header_bytes <= kMaxHeaderBytes,
      "{}: it claims a header of {} bytes, more than the {} that the format allows; not a safetensors file?",
      where, header_bytes, kMaxHeaderBytes);
  LACUNA_REQUIRE(header_bytes <= file.size() - kLengthBytes,
                 "{}: it claims a header of {} bytes but has only {}; the file is truncated", where,
                 header_bytes, file.size() - kLengthBytes);
  const auto* text = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
  LACUNA_REQUIRE(header_bytes > 0 && text[0] == '{',
                 "{}: its header does not start with '{{'; not a safetensors file?", where);
  const Json header = parse_header(std::string_view(text, header_bytes), where);

  const std::uint64_t data_begin = kLengthBytes + header_bytes, data_bytes = file.size() - data_begin;
  std::map<std::string, SafetensorsEntry> tensors;
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") continue;
    tensors.emplace(name, parse_entry(json, data_begin, data_bytes, where + ": tensor '" + name + "'"));
  }
  check_tiling(tensors, data_begin, file.size(), where);
  return tensors;
}

void Weights::add_file(const std::string& path) {
  files_.emplace_back(path);
  const std::size_t file = files_.size() - 1;
  std::size_t data_begin = files_.back().bytes().size();
  for (auto& [name, entry] : parse_safetensors(files_.back().bytes(), path)) {
    data_begin = std::min(data_begin, entry.begin);
    const auto [it, added] = tensors_.emplace(name, Located{file, entry});
    LACUNA_REQUIRE(added, "{}: tensor '{}' is also in {}", path, name, files_[it->second.file].path());
  }
  header_bytes_.push_back(data_begin);
}

bool Weights::present(const std::string& folder) {
  return std::filesystem::exists(folder + "/model.safetensors") ||
         std::filesystem::exists(folder + "/model.safetensors.index.json");
}

Weights Weights::open(const std::string& folder) {
  Weights weights;
  weights.folder_ = folder;
  const std::string single = folder + "/model.safetensors", index = folder + "/model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    weights.add_file(single);
    return weights;
  }
  LACUNA_REQUIRE(std::filesystem::exists(index),
                 "{}: it has neither model.safetensors nor model.safetensors.index.json; other weight "
                 "formats are not read",
                 folder);
  const Json json = read_json_file(index);
  const auto it = json.is_object() ? json.find("weight_map") : json.end();
  LACUNA_REQUIRE(json.is_object() && it != json.end() && it->is_object(),
                 "{}: field 'weight_map' must be an object", index);
  std::map<std::string, std::string> file_of;  // tensor -> file
  std::set<std::string> files;
  for (const auto& [name, file] : it->items()) {
    LACUNA_REQUIRE(file.is_string(), "{}: weight_map: '{}' must name a file", index, name);
    const auto text = file.get<std::string>();
    // A name with a slash could lead out of the folder.
    LACUNA_REQUIRE(!text.empty() && text.find('/') == std::string::npos && text != "." && text != "..",
                   "{}: weight_map: '{}' names '{}', expected a file of this folder", index, name, text);
    file_of[name] = text;
    files.insert(text);
  }
  for (const auto& file : files) {
    LACUNA_REQUIRE(std::filesystem::exists(folder + "/" + file), "{}: the index names {}, which is not there",
                   index, file);
    weights.add_file(folder + "/" + file);
  }
  for (const auto& [name, file] : file_of) {
    const auto found = weights.tensors_.find(name);
    LACUNA_REQUIRE(
        found != weights.tensors_.end() && weights.files_[found->second.file].path() == folder + "/" + file,
        "{}: the index says that tensor '{}' is in {}, but it is not", index, name, file);
  }
  for (const auto& [name, located] : weights.tensors_) {
    LACUNA_REQUIRE(file_of.contains(name), "{}: tensor '{}' is not in the index {}",
                   weights.files_[located.file].path(), name, index);
  }
  return weights;
}

std::vector<std::string> Weights::names() const {
  std::vector<std::string> names;
  for (const auto& [name, located] : tensors_) names.push_back(name);
  return names;
}

const Weights::Located& Weights::find(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    throw_usage("{}: tensor '{}' is missing; config.json says the model has it",
                files_.size() == 1 ? files_[0].path() : folder_ + "/model.safetensors.index.json", name);
  }
  return it->second;
}

std::string Weights::file_of(const std::string& name) const { return files_[find(name).file].path(); }

MatrixSlice Weights::slice(const std::string& name, std::span<const std::int64_t> shape) const {
  const Located& located = find(name);
  const SafetensorsEntry& entry = located.entry;
  const std::string& path = files_[located.file].path();
  LACUNA_REQUIRE(std::equal(shape.begin(), shape.end(), entry.shape.begin(), entry.shape.end()),
                 "{}: tensor '{}' has shape [{}], but config.json asks for [{}]", path, name,
                 fmt::join(entry.shape, ", "), fmt::join(shape, ", "));
  MatrixSlice slice;
  if (entry.dtype == "F32")
    slice.dtype = DType::kF32;
  else if (entry.dtype == "BF16")
    slice.dtype = DType::kBF16;
  else if (entry.dtype == "F16")
    slice.dtype = DType::kF16;
  else
    throw_usage("{}: tensor '{}' has dtype {}; supported are BF16, F16 and F32", path, name, entry.dtype);
  slice.data = files_[located.file].bytes().data() + entry.begin;
  slice.cols = slice.row_stride = shape.back();
  slice.rows = shape.size() == 2 ? shape[0] : 1;
  return slice;
}

MatrixSlice Weights::matrix(const std::string& name, std::int64_t rows, std::int64_t cols) const {
  return slice(name, std::array{rows, cols});
}

MatrixSlice Weights::vector(const std::string& name, std::int64_t n) const {
  return slice(name, std::array{n});
}

std::int64_t Weights::bytes() const {
  std::int64_t bytes = 0;
  for (const auto& file : files_) bytes += static_cast<std::int64_t>(file.bytes().size());
  return bytes;
}

std::string Weights::fingerprint() const {
  constexpr std::size_t kBlock = 64 << 10, kBudget = 64 << 20;
  const bool whole = static_cast<std::size_t>(bytes()) <= kBudget;
  Hasher hasher;
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const auto data = files_[i].bytes();
    hasher.add(std::filesystem::path(files_[i].path()).filename().string()).add(data.size());
    if (whole) {
      hasher.add_bytes(data.data(), data.size());
      continue;
    }
    hasher.add_bytes(data.data(), header_bytes_[i]);
    const std::size_t blocks = std::max<std::size_t>(2, kBudget / kBlock / files_.size());
    const std::size_t last = data.size() < kBlock ? 0 : data.size() - kBlock;
    for (std::size_t b = 0; b < blocks; ++b) {
      const std::size_t at = static_cast<std::size_t>(static_cast<double>(last) * static_cast<double>(b) /
                                                      static_cast<double>(blocks - 1));
      hasher.add_bytes(data.data() + at, std::min(kBlock, data.size() - at));
    }
  }
  return hasher.digest_hex();
}

void Weights::release_pages() const {
  for (const auto& file : files_) {
    const auto data = file.bytes();
    // Best effort: the pages are clean and can be read again.
    if (!data.empty()) (void)madvise(const_cast<std::byte*>(data.data()), data.size(), MADV_DONTNEED);
  }
}

}  // namespace lacuna
