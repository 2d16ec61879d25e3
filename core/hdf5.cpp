#include "core/hdf5.h"

#include <hdf5_hl.h>

#include <algorithm>
#include <filesystem>

namespace lacuna::hdf5 {

namespace {

/// The innermost message of HDF5's error stack: the one that names the cause.
std::string last_error() {
  std::string text = "no details";
  const auto keep_first = [](unsigned n, const H5E_error2_t* e, void* out) -> herr_t {
    if (n == 0 && e->desc != nullptr && e->desc[0] != '\0') *static_cast<std::string*>(out) = e->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);  // upward: from the innermost
  H5Eclear2(H5E_DEFAULT);
  return text;
}

/// HDF5 prints its stack to stderr by default; our errors carry what matters.
void be_quiet() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

void check(herr_t status, const std::string& what) {
  if (status < 0) throw_library("HDF5: {}: {}", what, last_error());
}

Id string_type(std::size_t width) {
  Id type(H5Tcopy(H5T_C_S1), H5Tclose, "string type");
  check(H5Tset_size(type.get(), std::max<std::size_t>(width, 1)), "string width");
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), "string character set");
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), "string padding");
  return type;
}

Id simple_space(const std::vector<std::uint64_t>& dims) {
  if (dims.empty()) return Id(H5Screate(H5S_SCALAR), H5Sclose, "scalar space");
  const std::vector<hsize_t> extents(dims.begin(), dims.end());
  return Id(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose,
            "data space");
}

std::string from_padded(const char* data, std::size_t width) {
  return std::string(data, std::find(data, data + width, '\0'));
}

}  // namespace

Id::Id(hid_t id, Close close, const std::string& what) : id_(id), close_(close) {
  if (id < 0) throw_library("HDF5: {}: {}", what, last_error());
}

template <>
hid_t native_type<std::uint8_t>() {
  return H5T_NATIVE_UINT8;
}
template <>
hid_t native_type<std::int32_t>() {
  return H5T_NATIVE_INT32;
}
template <>
hid_t native_type<std::int64_t>() {
  return H5T_NATIVE_INT64;
}
template <>
hid_t native_type<std::uint64_t>() {
  return H5T_NATIVE_UINT64;
}
template <>
hid_t native_type<double>() {
  return H5T_NATIVE_DOUBLE;
}

File File::create(const std::string& path) {
  be_quiet();
  return File(
      Id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose, path + ": create"),
      path);
}

File File::open(const std::string& path) {
  be_quiet();
  LACUNA_REQUIRE(std::filesystem::exists(path), "{}: no such file", path);
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  if (id < 0) throw_usage("{}: cannot be opened as an HDF5 file: {}", path, last_error());
  return File(Id(id, H5Fclose, path), path);
}

File File::open_for_update(const std::string& path) {
  be_quiet();
  LACUNA_REQUIRE(std::filesystem::exists(path), "{}: no such file", path);
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  if (id < 0) throw_usage("{}: cannot be opened for writing as an HDF5 file: {}", path, last_error());
  return File(Id(id, H5Fclose, path), path);
}

void File::flush() { check(H5Fflush(id_.get(), H5F_SCOPE_GLOBAL), path_ + ": flush"); }

void File::close() {
  flush();
  id_.reset();
}

bool File::exists(const std::string& path) const {
  if (path == "/") return true;
  // H5Lexists wants every step on the way to exist.
  for (std::size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
    if (H5Lexists(id_.get(), path.substr(0, at).c_str(), H5P_DEFAULT) <= 0) return false;
    if (at == std::string::npos) return true;
  }
}

std::vector<std::string> File::list(const std::string& group) const {
  LACUNA_REQUIRE(exists(group), "{}: has no group {}", path_, group);
  const Id id(H5Gopen2(id_.get(), group.c_str(), H5P_DEFAULT), H5Gclose, path_ + ": group " + group);
  std::vector<std::string> names;
  const auto visit = [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->emplace_back(name);
    return 0;
  };
  check(H5Literate(id.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, visit, &names), path_ + ": list " + group);
  return names;
}

Id File::open_object(const std::string& path) const {
  LACUNA_REQUIRE(exists(path), "{}: has no {}", path_, path);
  return Id(H5Oopen(id_.get(), path.c_str(), H5P_DEFAULT), H5Oclose, path_ + ": open " + path);
}

Id File::open_dataset(const std::string& path) const {
  LACUNA_REQUIRE(exists(path), "{}: has no dataset {}", path_, path);
  const hid_t id = H5Dopen2(id_.get(), path.c_str(), H5P_DEFAULT);
  if (id < 0) throw_usage("{}: {} is not a dataset", path_, path);
  return Id(id, H5Dclose, path);
}

std::vector<std::uint64_t> File::shape(const std::string& dataset) const {
  const Id id = open_dataset(dataset);
  const Id space(H5Dget_space(id.get()), H5Sclose, dataset);
  const int rank = H5Sget_simple_extent_ndims(space.get());
  check(rank, path_ + ": shape of " + dataset);
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  if (rank > 0)
    check(H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr), path_ + ": shape of " + dataset);
  return {dims.begin(), dims.end()};
}

void File::create_group(const std::string& path) {
  if (exists(path)) return;
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "link properties");
  check(H5Pset_create_intermediate_group(links.get(), 1), "link properties");
  const Id group(H5Gcreate2(id_.get(), path.c_str(), links.get(), H5P_DEFAULT, H5P_DEFAULT), H5Gclose,
                 path_ + ": create group " + path);
}

void File::remove(const std::string& path) {
  if (exists(path)) check(H5Ldelete(id_.get(), path.c_str(), H5P_DEFAULT), path_ + ": remove " + path);
}

void File::check_size(const std::string& path, std::size_t values,
                      const std::vector<std::uint64_t>& dims) const {
  std::uint64_t product = 1;
  for (const auto dim : dims) product *= dim;
  LACUNA_CHECK(product == values, "{}: {} values for an extent of {}", path, values, product);
}

void File::write_raw(const std::string& path, hid_t type, const void* data,
                     const std::vector<std::uint64_t>& dims) {
  remove(path);
  const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose, "link properties");
  check(H5Pset_create_intermediate_group(links.get(), 1), "link properties");
  const Id space = simple_space(dims);
  const Id set(H5Dcreate2(id_.get(), path.c_str(), type, space.get(), links.get(), H5P_DEFAULT, H5P_DEFAULT),
               H5Dclose, path_ + ": create " + path);
  if (std::ranges::find(dims, 0U) != dims.end()) return;
  check(H5Dwrite(set.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), path_ + ": write " + path);
}

void File::write_strings(const std::string& path, std::span<const std::string> values) {
  std::size_t width = 1;
  for (const auto& value : values) width = std::max(width, value.size());
  std::string padded(width * values.size(), '\0');
  for (std::size_t i = 0; i < values.size(); ++i) values[i].copy(padded.data() + i * width, width);
  write_raw(path, string_type(width).get(), padded.data(), {values.size()});
}

void File::write_text(const std::string& path, std::string_view text) {
  const std::string data = text.empty() ? std::string(1, '\0') : std::string(text);
  write_raw(path, string_type(data.size()).get(), data.data(), {});
}

std::size_t File::number_count(const std::string& path) const {
  const Id set = open_dataset(path);
  const Id type(H5Dget_type(set.get()), H5Tclose, path);
  const H5T_class_t kind = H5Tget_class(type.get());
  LACUNA_REQUIRE(kind == H5T_INTEGER || kind == H5T_FLOAT, "{}: {} does not hold numbers", path_, path);
  const Id space(H5Dget_space(set.get()), H5Sclose, path);
  return static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.get()));
}

void File::read_raw(const std::string& path, hid_t type, void* data) const {
  const Id set = open_dataset(path);
  check(H5Dread(set.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), path_ + ": read " + path);
}

std::vector<std::string> File::read_strings(const std::string& path) const {
  const Id set = open_dataset(path);
  const Id type(H5Dget_type(set.get()), H5Tclose, path);
  LACUNA_REQUIRE(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) <= 0,
                 "{}: {} does not hold fixed-width strings", path_, path);
  const Id space(H5Dget_space(set.get()), H5Sclose, path);
  const auto count = static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.get()));
  const std::size_t width = H5Tget_size(type.get());
  std::string padded(width * count, '\0');
  if (count > 0)
    check(H5Dread(set.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()),
          path_ + ": read " + path);
  std::vector<std::string> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = from_padded(padded.data() + i * width, width);
  return values;
}

std::string File::read_text(const std::string& path) const {
  auto values = read_strings(path);
  LACUNA_REQUIRE(values.size() == 1, "{}: {} is not one text", path_, path);
  return std::move(values[0]);
}

void File::write_attribute_raw(const std::string& object, std::string_view name, hid_t type,
                               const void* data) {
  const Id id = open_object(object);
  const std::string key(name);
  if (H5Aexists(id.get(), key.c_str()) > 0)
    check(H5Adelete(id.get(), key.c_str()), path_ + ": replace attribute " + key);
  const Id space(H5Screate(H5S_SCALAR), H5Sclose, "scalar space");
  const Id attribute(H5Acreate2(id.get(), key.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                     path_ + ": create attribute " + key + " of " + object);
  check(H5Awrite(attribute.get(), type, data), path_ + ": write attribute " + key);
}

void File::write_attribute(const std::string& object, std::string_view name, std::string_view value) {
  const std::string data = value.empty() ? std::string(1, '\0') : std::string(value);
  write_attribute_raw(object, name, string_type(data.size()).get(), data.data());
}
void File::write_attribute(const std::string& object, std::string_view name, std::int64_t value) {
  write_attribute_raw(object, name, H5T_NATIVE_INT64, &value);
}
void File::write_attribute(const std::string& object, std::string_view name, double value) {
  write_attribute_raw(object, name, H5T_NATIVE_DOUBLE, &value);
}

bool File::has_attribute(const std::string& object, std::string_view name) const {
  const Id id = open_object(object);
  return H5Aexists(id.get(), std::string(name).c_str()) > 0;
}

Id File::open_attribute(const std::string& object, std::string_view name) const {
  LACUNA_REQUIRE(has_attribute(object, name), "{}: {} has no attribute '{}'", path_, object, name);
  const Id id = open_object(object);
  return Id(H5Aopen(id.get(), std::string(name).c_str(), H5P_DEFAULT), H5Aclose,
            path_ + ": attribute " + std::string(name));
}

std::string File::read_string_attribute(const std::string& object, std::string_view name) const {
  const Id attribute = open_attribute(object, name);
  const Id type(H5Aget_type(attribute.get()), H5Tclose, "attribute type");
  LACUNA_REQUIRE(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) <= 0,
                 "{}: attribute '{}' of {} is not a fixed-width string", path_, name, object);
  std::string data(H5Tget_size(type.get()), '\0');
  check(H5Aread(attribute.get(), type.get(), data.data()), path_ + ": read attribute " + std::string(name));
  return from_padded(data.data(), data.size());
}

std::int64_t File::read_int_attribute(const std::string& object, std::string_view name) const {
  const Id attribute = open_attribute(object, name);
  std::int64_t value = 0;
  check(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), path_ + ": read attribute " + std::string(name));
  return value;
}

double File::read_double_attribute(const std::string& object, std::string_view name) const {
  const Id attribute = open_attribute(object, name);
  double value = 0;
  check(H5Aread(attribute.get(), H5T_NATIVE_DOUBLE, &value), path_ + ": read attribute " + std::string(name));
  return value;
}

void File::make_scale(const std::string& dataset, const std::string& name) {
  const Id id = open_dataset(dataset);
  check(H5DSset_scale(id.get(), name.c_str()), path_ + ": make a scale of " + dataset);
}

void File::attach_scale(const std::string& dataset, unsigned dim, const std::string& scale,
                        const std::string& label) {
  const Id set = open_dataset(dataset);
  const Id axis = open_dataset(scale);
  check(H5DSattach_scale(set.get(), axis.get(), dim), path_ + ": attach " + scale + " to " + dataset);
  check(H5DSset_label(set.get(), dim, label.c_str()), path_ + ": label " + dataset);
}

std::string library_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace lacuna::hdf5
