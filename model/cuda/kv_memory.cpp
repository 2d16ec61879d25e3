// CUDA's virtual memory functions, found at run time so that the program starts without a driver.
#include "model/cuda/kv_memory.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "core/text.h"
#include "model/cuda/sizes.h"

namespace lacuna {

namespace {

template <class Function>
Function driver_function(const char* name, unsigned version) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  LACUNA_CUDA(cudaGetDriverEntryPointByVersion(name, &entry, version, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || entry == nullptr)
    throw_library("CUDA: the driver has no {} (a driver for CUDA 10.2 or later is needed)", name);
  return reinterpret_cast<Function>(entry);
}

struct Driver {
#define LACUNA_DRIVER(name, version) \
  decltype(&cu##name) name = driver_function<decltype(&cu##name)>("cu" #name, version)
  LACUNA_DRIVER(MemAddressReserve, 10020);
  LACUNA_DRIVER(MemAddressFree, 10020);
  LACUNA_DRIVER(MemCreate, 10020);
  LACUNA_DRIVER(MemMap, 10020);
  LACUNA_DRIVER(MemSetAccess, 10020);
  LACUNA_DRIVER(MemUnmap, 10020);
  LACUNA_DRIVER(MemRelease, 10020);
  LACUNA_DRIVER(MemGetAllocationGranularity, 10020);
  LACUNA_DRIVER(GetErrorName, 6000);
#undef LACUNA_DRIVER

  void check(CUresult status, const char* what) const {
    if (status == CUDA_SUCCESS) return;
    const char* name = nullptr;
    if (GetErrorName(status, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown error";
    throw_library("CUDA: {}: {} ({})", what, name, static_cast<int>(status));
  }
};

class CudaKvMemory final : public KvMemory {
 public:
  explicit CudaKvMemory(std::size_t bytes) : bytes_(bytes) {
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = current_cuda_device().ordinal};
    std::size_t granularity = 0;
    driver_.check(
        driver_.MemGetAllocationGranularity(&granularity, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
        "cuMemGetAllocationGranularity");
    piece_ = (static_cast<std::size_t>(kKvPieceBytes) + granularity - 1) / granularity * granularity;
    mapped_.resize(std::max<std::size_t>(1, (bytes + piece_ - 1) / piece_));
    const CUresult status = driver_.MemAddressReserve(&base_, mapped_.size() * piece_, 0, 0, 0);
    if (status != CUDA_SUCCESS)
      throw_resource("the device grants no addresses for a KV cache of {} (CUDA error {})",
                     format_bytes(static_cast<double>(bytes)), static_cast<int>(status));
  }
  ~CudaKvMemory() override {
    (void)cudaDeviceSynchronize();
    for (std::size_t i = 0; i < mapped_.size(); ++i)
      if (mapped_[i]) (void)driver_.MemUnmap(at(i), piece_);
    (void)driver_.MemAddressFree(base_, mapped_.size() * piece_);
  }
  CudaKvMemory(const CudaKvMemory&) = delete;
  CudaKvMemory& operator=(const CudaKvMemory&) = delete;

  void* base() const override { return reinterpret_cast<void*>(base_); }  // NOLINT: CUdeviceptr is an integer
  std::size_t bytes() const override { return bytes_; }
  std::size_t committed() const override {
    return static_cast<std::size_t>(std::count(mapped_.begin(), mapped_.end(), true)) * piece_;
  }

  void commit(std::size_t end) override {
    LACUNA_CHECK(end <= bytes_, "{} bytes of a KV cache of {}", end, bytes_);
    while (whole_ * piece_ < end) {
      if (!mapped_[whole_]) map(whole_);
      ++whole_;
    }
  }

  void discard(std::size_t begin, std::size_t bytes) override {
    const std::size_t first = (begin + piece_ - 1) / piece_;
    // The last piece may reach beyond the end of the range that was asked for.
    const std::size_t last = begin + bytes >= bytes_ ? mapped_.size() : (begin + bytes) / piece_;
    bool waited = false;
    for (std::size_t i = first; i < last; ++i) {
      if (!mapped_[i]) continue;
      if (!waited) LACUNA_CUDA(cudaDeviceSynchronize());
      waited = true;
      driver_.check(driver_.MemUnmap(at(i), piece_), "cuMemUnmap");
      mapped_[i] = false;
      whole_ = std::min(whole_, i);
    }
  }

 private:
  CUdeviceptr at(std::size_t piece) const { return base_ + piece * piece_; }

  void map(std::size_t i) {
    CUmemGenericAllocationHandle memory{};
    const CUresult status = driver_.MemCreate(&memory, piece_, &properties_, 0);
    if (status == CUDA_ERROR_OUT_OF_MEMORY)
      throw_resource(
          "the device has no memory left for the KV cache, which holds {}; use shorter prompts, fewer "
          "variants "
          "at once, or more ranks",
          format_bytes(static_cast<double>(committed())));
    driver_.check(status, "cuMemCreate");
    const CUresult mapping = driver_.MemMap(at(i), piece_, 0, memory, 0);
    (void)driver_.MemRelease(memory);  // the mapping keeps it
    driver_.check(mapping, "cuMemMap");
    CUmemAccessDesc access{};
    access.location = properties_.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    const CUresult granted = driver_.MemSetAccess(at(i), piece_, &access, 1);
    if (granted != CUDA_SUCCESS) (void)driver_.MemUnmap(at(i), piece_);
    driver_.check(granted, "cuMemSetAccess");
    mapped_[i] = true;
  }

  Driver driver_;
  CUmemAllocationProp properties_{};
  std::size_t bytes_ = 0, piece_ = 0;
  CUdeviceptr base_ = 0;
  std::vector<bool> mapped_;  // per piece
  std::size_t whole_ = 0;     // leading pieces that are mapped
};

}  // namespace

std::unique_ptr<KvMemory> make_cuda_kv_memory(std::size_t bytes) {
  return std::make_unique<CudaKvMemory>(bytes);
}

}  // namespace lacuna
