#include "core/tensor.h"

#include <fmt/ranges.h>

#include <cstdlib>
#include <utility>

#include "core/error.h"
#if LACUNA_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace lacuna {

std::string_view name_of(Device device) { return device == Device::kCpu ? "cpu" : "cuda"; }

Shape::Shape(std::initializer_list<std::int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const std::int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  LACUNA_CHECK(dims.size() <= kMaxRank, "a shape has at most {} dimensions, not {}", kMaxRank, dims.size());
  std::copy(dims.begin(), dims.end(), dims_.begin());
}

std::int64_t Shape::elements() const {
  std::int64_t product = 1;
  for (int i = 0; i < rank_; ++i) product *= dims_[static_cast<std::size_t>(i)];
  return product;
}

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(dims_.begin(), dims_.begin() + rank_, ", "));
}

void TensorView::check_type(std::size_t element_bytes) const {
  LACUNA_CHECK(element_bytes == size_of(dtype), "a {} tensor was read as elements of {} bytes", name_of(dtype),
               element_bytes);
}

Buffer::Buffer(std::size_t bytes, Kind kind) : bytes_(bytes), kind_(kind) {
  if (bytes == 0) return;
  if (kind == Kind::kHost) {
    constexpr std::size_t kAlignment = 64;  // one cache line, one AVX-512 vector
    data_ = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (data_ == nullptr) throw_resource("out of host memory: {} bytes were asked for", bytes);
    return;
  }
#if LACUNA_HAS_CUDA
  if (kind == Kind::kPinned) {
    LACUNA_CUDA(cudaMallocHost(&data_, bytes));
  } else {
    LACUNA_CUDA(cudaMalloc(&data_, bytes));
  }
#else
  throw_resource("device memory was asked for, but this build has no CUDA");
#endif
}

void Buffer::reset() {
  if (data_ == nullptr) return;
  if (kind_ == Kind::kHost) std::free(data_);
#if LACUNA_HAS_CUDA
  // A destructor cannot throw; a failing free means the context is gone, and the next call says so.
  if (kind_ == Kind::kPinned) (void)cudaFreeHost(data_);
  if (kind_ == Kind::kDevice) (void)cudaFree(data_);
#endif
  data_ = nullptr;
  bytes_ = 0;
}

void Buffer::swap(Buffer& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(kind_, other.kind_);
}

Tensor::Tensor(Shape shape, DType dtype, Device device)
    : buffer_(static_cast<std::size_t>(shape.elements()) * size_of(dtype),
              device == Device::kCpu ? Buffer::Kind::kHost : Buffer::Kind::kDevice),
      view_{buffer_.data(), dtype, device, shape} {}

}  // namespace lacuna
