// Shapes, tensor views and owning memory, on host and device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace lacuna {

enum class Device : std::uint8_t { kCpu, kCuda };
std::string_view name_of(Device device);

/// Up to four dimensions, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);
  explicit Shape(std::span<const std::int64_t> dims);

  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[static_cast<std::size_t>(i)]; }
  /// Product of the dimensions; 1 for rank 0.
  std::int64_t elements() const;
  /// "[2, 3]"
  std::string to_string() const;
  bool operator==(const Shape&) const = default;

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

/// A contiguous, row-major tensor that somebody else owns.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  Shape shape;

  std::size_t bytes() const { return static_cast<std::size_t>(shape.elements()) * size_of(dtype); }
  /// Typed access; throws kInternal when T is not the element type.
  template <class T>
  T* as() const {
    check_type(sizeof(T));
    return static_cast<T*>(data);
  }

 private:
  void check_type(std::size_t element_bytes) const;
};

/// Owns memory on one device: host memory is aligned to 64 bytes, device memory comes from cudaMalloc,
/// pinned host memory from cudaMallocHost. Move-only. Throws kResource when memory runs out. Contents start undefined.
class Buffer {
 public:
  enum class Kind : std::uint8_t { kHost, kPinned, kDevice };

  Buffer() = default;
  Buffer(std::size_t bytes, Kind kind);
  ~Buffer() { reset(); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Kind kind() const { return kind_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void reset();

 private:
  void swap(Buffer& other) noexcept;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Kind kind_ = Kind::kHost;
};

/// A tensor with its own memory. Contents start undefined.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Shape shape, DType dtype, Device device = Device::kCpu);

  const TensorView& view() const { return view_; }
  const Shape& shape() const { return view_.shape; }
  DType dtype() const { return view_.dtype; }
  Device device() const { return view_.device; }
  void* data() const { return view_.data; }
  template <class T>
  T* as() const {
    return view_.as<T>();
  }

 private:
  Buffer buffer_;
  TensorView view_;
};

}  // namespace lacuna
