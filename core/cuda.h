// CUDA runtime objects that clean up after themselves, and the error check for .cu files. No CUDA headers
// needed here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/source_location.h"
#include "core/tensor.h"

struct CUstream_st;
struct CUevent_st;
using cudaStream_t = CUstream_st*;
using cudaEvent_t = CUevent_st*;

namespace lacuna {

/// Throws what LACUNA_CUDA of core/error.h throws. For .cu files, where that macro's format strings do not
/// compile (nvcc 13.0 with fmt 9's consteval check).
[[noreturn]] void throw_cuda(int status, const char* expression,
                             SourceLocation where = SourceLocation::current());

/// Number of usable CUDA devices; 0 when there is no driver.
int cuda_device_count();

/// What kernels need to know of the current device, read once per device.
struct CudaDevice {
  int ordinal = 0;
  int multiprocessors = 0;
  int capability = 0;        ///< 90 for compute capability 9.0
  int max_shared_bytes = 0;  ///< dynamic shared memory one block may ask for
};
const CudaDevice& current_cuda_device();

/// Move-only owner of a stream.
class CudaStream {
 public:
  CudaStream();
  ~CudaStream();
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: used wherever a stream is
  void synchronize() const;

 private:
  cudaStream_t stream_ = nullptr;
};

/// Move-only owner of an event with timing.
class CudaEvent {
 public:
  CudaEvent();
  ~CudaEvent();
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  void record(cudaStream_t stream);
  void synchronize() const;
  /// Milliseconds from `start` to this event; both must have happened.
  float since(const CudaEvent& start) const;

 private:
  cudaEvent_t event_ = nullptr;
};

/// One block of device memory handed out piece by piece and taken back all at once, so that steady work never
/// calls cudaMalloc. Pieces are aligned to 256 bytes.
class DeviceArena {
 public:
  DeviceArena() = default;
  explicit DeviceArena(std::size_t bytes) : buffer_(bytes, Buffer::Kind::kDevice) {}
  /// Throws kResource when the arena is full, with what was asked and what was left.
  void* take(std::size_t bytes);
  template <class T>
  T* take_array(std::size_t count) {
    return static_cast<T*>(take(count * sizeof(T)));
  }
  void clear() { used_ = 0; }
  std::size_t used() const { return used_; }
  std::size_t peak() const { return peak_; }
  std::size_t capacity() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
};

/// Device memory for the pieces of one operation: take() what is needed, clear() when the next operation
/// starts. Grows by itself; once it has seen the largest operation it never calls cudaMalloc again. Pieces
/// are aligned to 256 bytes and used on one stream, so that memory may be handed out again while earlier
/// kernels still run.
class DeviceScratch {
 public:
  explicit DeviceScratch(cudaStream_t stream) : stream_(stream) {}
  /// Throws kResource when the device has no memory left.
  void* take(std::size_t bytes);
  template <class T>
  T* take_array(std::size_t count) {
    return static_cast<T*>(take(count * sizeof(T)));
  }
  /// All pieces are given back. When more than one block was needed since the last time, waits for the stream
  /// and makes one block of them.
  void clear();
  /// Grows ahead of use; like clear() otherwise.
  void reserve(std::size_t bytes);
  std::size_t capacity() const { return capacity_; }
  /// Most bytes in use between two clear().
  std::size_t peak() const { return peak_; }

 private:
  cudaStream_t stream_;
  std::vector<Buffer> blocks_;  // the last one is in use
  std::size_t used_ = 0;        // of the last block
  std::size_t taken_ = 0;       // since clear(), all blocks
  std::size_t capacity_ = 0, peak_ = 0;
};

}  // namespace lacuna

/// LACUNA_CUDA of core/error.h for .cu files.
#define LACUNA_CUDA_TRY(expr)                                           \
  do {                                                                  \
    const int lacuna_status = static_cast<int>(expr);                   \
    if (lacuna_status != 0) ::lacuna::throw_cuda(lacuna_status, #expr); \
  } while (false)
