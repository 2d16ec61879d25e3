#include "core/cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "core/error.h"

namespace lacuna {

void throw_cuda(int status, const char* expression, SourceLocation where) {
  const auto error = static_cast<cudaError_t>(status);
  (void)cudaGetLastError();
  if (error == cudaErrorMemoryAllocation)
    throw Error(ErrorKind::kResource, fmt::format("CUDA: {}: out of device memory", expression), where);
  throw Error(
      ErrorKind::kLibrary,
      fmt::format("CUDA: {}: {} ({})", expression, cudaGetErrorString(error), cudaGetErrorName(error)),
      where);
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return count;
}

const CudaDevice& current_cuda_device() {
  constexpr int kMaxDevices = 64;
  static std::array<CudaDevice, kMaxDevices> devices;
  static std::array<std::once_flag, kMaxDevices> known;
  int ordinal = 0;
  LACUNA_CUDA(cudaGetDevice(&ordinal));
  LACUNA_CHECK(ordinal >= 0 && ordinal < kMaxDevices, "device number {}", ordinal);
  const auto index = static_cast<std::size_t>(ordinal);
  std::call_once(known[index], [&] {
    CudaDevice device;
    device.ordinal = ordinal;
    int major = 0, minor = 0;
    LACUNA_CUDA(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, ordinal));
    LACUNA_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal));
    LACUNA_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal));
    LACUNA_CUDA(
        cudaDeviceGetAttribute(&device.max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal));
    device.capability = major * 10 + minor;
    devices[index] = device;
  });
  return devices[index];
}

CudaStream::CudaStream() { LACUNA_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
CudaStream::~CudaStream() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}
void CudaStream::synchronize() const { LACUNA_CUDA(cudaStreamSynchronize(stream_)); }

CudaEvent::CudaEvent() { LACUNA_CUDA(cudaEventCreate(&event_)); }
CudaEvent::~CudaEvent() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}
void CudaEvent::record(cudaStream_t stream) { LACUNA_CUDA(cudaEventRecord(event_, stream)); }
void CudaEvent::synchronize() const { LACUNA_CUDA(cudaEventSynchronize(event_)); }
float CudaEvent::since(const CudaEvent& start) const {
  float milliseconds = 0.0f;
  LACUNA_CUDA(cudaEventElapsedTime(&milliseconds, start.event_, event_));
  return milliseconds;
}

void* DeviceArena::take(std::size_t bytes) {
  constexpr std::size_t kAlign = 256;
  const std::size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  if (rounded > capacity() - used_)
    throw_resource("device arena: {} bytes asked, {} of {} left; give it more memory or work on less at once",
                   bytes, capacity() - used_, capacity());
  void* piece = static_cast<std::byte*>(buffer_.data()) + used_;
  used_ += rounded;
  if (used_ > peak_) peak_ = used_;
  return piece;
}

void* DeviceScratch::take(std::size_t bytes) {
  constexpr std::size_t kAlign = 256;
  const std::size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
  if (blocks_.empty() || blocks_.back().bytes() - used_ < rounded) {
    blocks_.emplace_back(rounded, Buffer::Kind::kDevice);
    capacity_ += rounded;
    used_ = 0;
  }
  void* piece = static_cast<std::byte*>(blocks_.back().data()) + used_;
  used_ += rounded;
  taken_ += rounded;
  peak_ = std::max(peak_, taken_);
  return piece;
}

void DeviceScratch::clear() {
  used_ = taken_ = 0;
  if (blocks_.size() > 1) reserve(capacity_);
}

void DeviceScratch::reserve(std::size_t bytes) {
  used_ = taken_ = 0;
  if (blocks_.size() <= 1 && capacity_ >= bytes) return;
  const std::size_t wanted = std::max(bytes, capacity_);
  LACUNA_CUDA(cudaStreamSynchronize(stream_));
  blocks_.clear();
  capacity_ = 0;
  blocks_.emplace_back(wanted, Buffer::Kind::kDevice);
  capacity_ = wanted;
}

}  // namespace lacuna
