#include "core/tensor.h"

#include <fmt/ranges.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <utility>

#include "core/error.h"
#include "core/memory_use.h"
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
  LACUNA_CHECK(element_bytes == size_of(dtype), "a {} tensor was read as elements of {} bytes",
               name_of(dtype), element_bytes);
}

namespace {

/// What the buffers of one kind hold: the process has one memory of each kind, like malloc.
struct Account {
  std::atomic<std::size_t> in_use{0}, peak{0}, limit{0};

  void take(std::size_t bytes) {
    const std::size_t now = in_use.fetch_add(bytes) + bytes;
    std::size_t most = peak.load();
    while (now > most && !peak.compare_exchange_weak(most, now)) {
    }
  }
  void give_back(std::size_t bytes) { in_use -= bytes; }
};

Account& account_of(Buffer::Kind kind) {
  static std::array<Account, 3> accounts;
  return accounts[static_cast<std::size_t>(kind)];
}

void* allocate(std::size_t bytes, Buffer::Kind kind) {
  void* data = nullptr;
  if (kind == Buffer::Kind::kHost) {
    constexpr std::size_t kAlignment = 64;  // one cache line, one AVX-512 vector
    data = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (data == nullptr) throw_resource("out of host memory: {} bytes were asked for", bytes);
    return data;
  }
#if LACUNA_HAS_CUDA
  if (kind == Buffer::Kind::kPinned) {
    LACUNA_CUDA(cudaMallocHost(&data, bytes));
  } else {
    LACUNA_CUDA(cudaMalloc(&data, bytes));
  }
  return data;
#else
  throw_resource("device memory was asked for, but this build has no CUDA");
#endif
}

}  // namespace

std::size_t buffer_bytes(Buffer::Kind kind) { return account_of(kind).in_use; }
std::size_t buffer_peak(Buffer::Kind kind) { return account_of(kind).peak; }
void forget_buffer_peak(Buffer::Kind kind) { account_of(kind).peak = account_of(kind).in_use.load(); }
void limit_buffers(Buffer::Kind kind, std::size_t bytes) { account_of(kind).limit = bytes; }

Buffer::Buffer(std::size_t bytes, Kind kind) : bytes_(bytes), kind_(kind) {
  if (bytes == 0) return;
  Account& account = account_of(kind);
  const std::size_t limit = account.limit;
  if (limit > 0 && account.in_use + bytes > limit)
    throw_resource("out of memory: {} bytes were asked for, {} of {} are in use", bytes,
                   account.in_use.load(), limit);
  data_ = allocate(bytes, kind);
  account.take(bytes);
}

void Buffer::reset() {
  if (data_ == nullptr) return;
  account_of(kind_).give_back(bytes_);
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
