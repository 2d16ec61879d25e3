// HDF5 without the ceremony: files, 1-D columns, small N-d arrays, fixed-width strings, attributes, dimension
// scales. Serial library, C API; one thread at a time. Link lacuna_hdf5_io.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"

namespace lacuna::hdf5 {

/// Owns one HDF5 identifier. Move-only; closing never throws.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  /// Throws kLibrary with HDF5's own words when `id` is negative; `what` names the call and its object.
  Id(hid_t id, Close close, const std::string& what);
  ~Id() { reset(); }
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;

  hid_t get() const { return id_; }
  void reset() {
    if (id_ >= 0) close_(id_);
    id_ = -1;
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

/// Memory types: std::uint8_t, std::int32_t, std::int64_t, std::uint64_t, double.
template <class T>
hid_t native_type();
template <>
hid_t native_type<std::uint8_t>();
template <>
hid_t native_type<std::int32_t>();
template <>
hid_t native_type<std::int64_t>();
template <>
hid_t native_type<std::uint64_t>();
template <>
hid_t native_type<double>();

/// One open file. Paths are absolute ("/samples/score"); writing makes the groups on the way. Every call
/// throws: kUsage when a file or dataset that was asked for is missing or of another type, kLibrary when HDF5
/// fails.
class File {
 public:
  /// A new, empty file; an old one of that name is truncated. Write beside the target and rename.
  static File create(const std::string& path);
  static File open(const std::string& path);
  /// For adding to a file of ours. Work on a copy and rename it, so that a crash leaves the old one.
  static File open_for_update(const std::string& path);

  const std::string& path() const { return path_; }
  hid_t id() const { return id_.get(); }
  void flush();
  /// Closes now, so that errors while writing the last bytes are seen (a destructor cannot throw).
  void close();

  bool exists(const std::string& path) const;
  /// Names in a group, sorted.
  std::vector<std::string> list(const std::string& group) const;
  /// Extents; empty for a scalar.
  std::vector<std::uint64_t> shape(const std::string& dataset) const;
  void create_group(const std::string& path);
  /// Removes a group or dataset when it is there.
  void remove(const std::string& path);

  // --- Datasets ---
  template <class T>
  void write(const std::string& path, std::span<const T> values) {
    write_raw(path, native_type<T>(), values.data(), {values.size()});
  }
  template <class T>
  void write(const std::string& path, const std::vector<T>& values) {
    write(path, std::span<const T>(values));
  }
  /// Row-major; the product of `dims` must be values.size().
  template <class T>
  void write(const std::string& path, std::span<const T> values, const std::vector<std::uint64_t>& dims) {
    check_size(path, values.size(), dims);
    write_raw(path, native_type<T>(), values.data(), dims);
  }
  /// Fixed-width UTF-8, NUL-padded, as wide as the longest (at least 1).
  void write_strings(const std::string& path, std::span<const std::string> values);
  /// A scalar string dataset, for long texts.
  void write_text(const std::string& path, std::string_view text);

  /// All elements, row-major, converted to T by HDF5 where the file holds another number type.
  template <class T>
  std::vector<T> read(const std::string& path) const {
    std::vector<T> values(number_count(path));
    read_raw(path, native_type<T>(), values.data());
    return values;
  }
  std::vector<std::string> read_strings(const std::string& path) const;
  std::string read_text(const std::string& path) const;

  // --- Attributes of a group ("/" is the root) or dataset; an old one of that name is replaced ---
  void write_attribute(const std::string& object, std::string_view name, std::string_view value);
  void write_attribute(const std::string& object, std::string_view name, std::int64_t value);
  void write_attribute(const std::string& object, std::string_view name, double value);
  bool has_attribute(const std::string& object, std::string_view name) const;
  std::string read_string_attribute(const std::string& object, std::string_view name) const;
  std::int64_t read_int_attribute(const std::string& object, std::string_view name) const;
  double read_double_attribute(const std::string& object, std::string_view name) const;

  // --- Dimension scales (what xarray calls coordinates) ---
  /// Makes `dataset` a scale called `name`.
  void make_scale(const std::string& dataset, const std::string& name);
  /// Attaches `scale` to dimension `dim` of `dataset` and labels the dimension with `label`.
  void attach_scale(const std::string& dataset, unsigned dim, const std::string& scale,
                    const std::string& label);

 private:
  File(Id id, std::string path) : id_(std::move(id)), path_(std::move(path)) {}
  Id open_object(const std::string& path) const;
  Id open_dataset(const std::string& path) const;
  Id open_attribute(const std::string& object, std::string_view name) const;
  std::size_t number_count(const std::string& path) const;
  void check_size(const std::string& path, std::size_t values, const std::vector<std::uint64_t>& dims) const;
  void write_raw(const std::string& path, hid_t type, const void* data,
                 const std::vector<std::uint64_t>& dims);
  void read_raw(const std::string& path, hid_t type, void* data) const;
  void write_attribute_raw(const std::string& object, std::string_view name, hid_t type, const void* data);

  Id id_;
  std::string path_;
};

/// "1.10.8"
std::string library_version();

}  // namespace lacuna::hdf5
