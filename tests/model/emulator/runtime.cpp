// What the CUDA engine needs beside the kernels, on the CPU: streams and events (everything happens at once),
// pinned memory, the driver's virtual memory over mmap, and the few functions of cuBLASLt. Weak, so that a
// definition elsewhere goes first. A graph keeps what was launched and runs it again.
#include <cublasLt.h>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#include "tests/attention/cuda/emulator/emulator.h"

#define LACUNA_FAKE extern "C" __attribute__((weak))

namespace {

constexpr std::size_t kDeviceBytes = std::size_t{8} << 30, kGranularity = std::size_t{2} << 20;
std::size_t mapped_bytes = 0;

CUresult granularity(size_t* bytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  return *bytes = kGranularity, CUDA_SUCCESS;
}
CUresult reserve(CUdeviceptr* to, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  void* at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  *to = reinterpret_cast<CUdeviceptr>(at);
  return CUDA_SUCCESS;
}
CUresult release_addresses(CUdeviceptr at, size_t bytes) {
  return munmap(reinterpret_cast<void*>(at), bytes) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp*,
                unsigned long long) {
  if (bytes % kGranularity != 0) return CUDA_ERROR_INVALID_VALUE;
  if (mapped_bytes + bytes > kDeviceBytes) return CUDA_ERROR_OUT_OF_MEMORY;
  return *handle = bytes, CUDA_SUCCESS;
}
CUresult map(CUdeviceptr at, size_t bytes, size_t, CUmemGenericAllocationHandle handle, unsigned long long) {
  if (handle != bytes || at % kGranularity % 4096 != 0) return CUDA_ERROR_INVALID_VALUE;
  mapped_bytes += bytes;
  return CUDA_SUCCESS;
}
CUresult allow(CUdeviceptr at, size_t bytes, const CUmemAccessDesc*, size_t) {
  auto* memory = reinterpret_cast<void*>(at);
  if (mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0) return CUDA_ERROR_INVALID_VALUE;
  std::memset(memory, 0xFF, bytes);  // NaN where nothing was written
  return CUDA_SUCCESS;
}
CUresult unmap(CUdeviceptr at, size_t bytes) {
  auto* memory = reinterpret_cast<void*>(at);
  if (mprotect(memory, bytes, PROT_NONE) != 0) return CUDA_ERROR_INVALID_VALUE;
  mapped_bytes -= bytes;
  return madvise(memory, bytes, MADV_DONTNEED) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult release(CUmemGenericAllocationHandle) { return CUDA_SUCCESS; }
CUresult error_name(CUresult, const char** name) { return *name = "emulated error", CUDA_SUCCESS; }

struct Layout {
  cudaDataType type;
  std::uint64_t rows, cols;
  std::int64_t stride;
};
struct Operation {
  cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  cudaDataType bias_type = CUDA_R_32F;
  const void* bias = nullptr;
};
template <class T>
T* real(auto* opaque) {
  return reinterpret_cast<T*>(opaque);
}
template <class T>
const T* real(const auto* opaque) {
  return reinterpret_cast<const T*>(opaque);
}
float bf16_at(const void* data, std::int64_t at) {
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
}
int dummy;

}  // namespace

LACUNA_FAKE cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = reinterpret_cast<cudaStream_t>(&dummy), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return emulator::capture != nullptr ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
using Work = std::vector<std::function<void()>>;
LACUNA_FAKE cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  if (emulator::capture != nullptr) return cudaErrorIllegalState;
  return emulator::capture = new Work, cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(emulator::capture);
  return emulator::capture = nullptr, cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulator::capture != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return *exec = reinterpret_cast<cudaGraphExec_t>(new Work(*reinterpret_cast<Work*>(graph))), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return delete reinterpret_cast<Work*>(graph), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return delete reinterpret_cast<Work*>(exec), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : *reinterpret_cast<Work*>(exec)) work();
  return cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return *event = reinterpret_cast<cudaEvent_t>(&dummy), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(&dummy), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0.001f, cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaSetDevice(int) { return cudaSuccess; }
LACUNA_FAKE cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int) {
  return std::strncpy(text, "0000:00:00.0", static_cast<size_t>(bytes)), cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaMallocHost(void** to, size_t bytes) {
  *to = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  std::memset(*to, 0xFF, bytes);
  return cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaFreeHost(void* memory) { return std::free(memory), cudaSuccess; }
LACUNA_FAKE cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = kDeviceBytes - mapped_bytes;
  return *total = kDeviceBytes, cudaSuccess;
}
LACUNA_FAKE cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** entry, unsigned,
                                                         unsigned long long,
                                                         cudaDriverEntryPointQueryResult* found) {
  const std::string_view name = symbol;
  *entry = name == "cuMemGetAllocationGranularity" ? reinterpret_cast<void*>(&granularity)
           : name == "cuMemAddressReserve"         ? reinterpret_cast<void*>(&reserve)
           : name == "cuMemAddressFree"            ? reinterpret_cast<void*>(&release_addresses)
           : name == "cuMemCreate"                 ? reinterpret_cast<void*>(&create)
           : name == "cuMemMap"                    ? reinterpret_cast<void*>(&map)
           : name == "cuMemSetAccess"              ? reinterpret_cast<void*>(&allow)
           : name == "cuMemUnmap"                  ? reinterpret_cast<void*>(&unmap)
           : name == "cuMemRelease"                ? reinterpret_cast<void*>(&release)
           : name == "cuGetErrorName"              ? reinterpret_cast<void*>(&error_name)
                                                   : nullptr;
  *found = *entry != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// --- cuBLASLt: D = alpha * op(A) op(B) + beta * C + bias in float32, column-major as there.

LACUNA_FAKE cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return *handle = reinterpret_cast<cublasLtHandle_t>(&dummy), CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
LACUNA_FAKE cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                                      uint64_t rows, uint64_t cols, int64_t stride) {
  *layout = real<cublasLtMatrixLayoutOpaque_t>(new Layout{type, rows, cols, stride});
  return CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatrixLayoutDestroy(const cublasLtMatrixLayout_t layout) {
  return delete real<Layout>(layout), CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation,
                                                    cublasComputeType_t compute, cudaDataType scale) {
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  *operation = real<cublasLtMatmulDescOpaque_t>(new Operation);
  return CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulDescDestroy(const cublasLtMatmulDesc_t operation) {
  return delete real<Operation>(operation), CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque,
                                                          cublasLtMatmulDescAttributes_t attribute,
                                                          const void* value, size_t bytes) {
  auto* operation = real<Operation>(opaque);
  const auto take = [&](auto& field) {
    if (bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return take(operation->transpose_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return take(operation->transpose_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return take(operation->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return take(operation->bias_type);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return take(operation->bias);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(&dummy);
  return CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulPreferenceDestroy(const cublasLtMatmulPreference_t) {
  return CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t attribute, const void*, size_t bytes) {
  const std::size_t wanted = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8 : 4;
  return bytes == wanted ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                                          cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                          cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                          cublasLtMatmulPreference_t, int,
                                                          cublasLtMatmulHeuristicResult_t* result,
                                                          int* count) {
  *result = {};
  result->state = CUBLAS_STATUS_SUCCESS;
  return *count = 1, CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t opaque, const void* alpha,
                                          const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                                          cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                                          cublasLtMatrixLayout_t, void* d, cublasLtMatrixLayout_t d_layout,
                                          const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
  // By value: a graph multiplies later, when the description may have changed.
  const Operation operation = *real<Operation>(opaque);
  const Layout la = *real<Layout>(a_layout), lb = *real<Layout>(b_layout), ld = *real<Layout>(d_layout);
  const float factor = *static_cast<const float*>(alpha), scale = *static_cast<const float*>(beta);
  if (operation.transpose_a != CUBLAS_OP_T || operation.transpose_b != CUBLAS_OP_N || la.rows != lb.rows ||
      la.cols != ld.rows || lb.cols != ld.cols || la.type != CUDA_R_16BF || lb.type != CUDA_R_16BF)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const auto multiply = [=] {
    for (std::uint64_t column = 0; column < ld.cols; ++column) {
      for (std::uint64_t row = 0; row < ld.rows; ++row) {
        const auto* left = static_cast<const __nv_bfloat16*>(a) + static_cast<std::int64_t>(row) * la.stride;
        const auto* right =
            static_cast<const __nv_bfloat16*>(b) + static_cast<std::int64_t>(column) * lb.stride;
        float sums[8] = {};
        for (std::uint64_t i = 0; i < la.rows; ++i)
          sums[i % 8] += __bfloat162float(left[i]) * __bfloat162float(right[i]);
        float sum = 0;
        for (const float s : sums) sum += s;
        sum *= factor;
        const std::int64_t at =
            static_cast<std::int64_t>(row) + static_cast<std::int64_t>(column) * ld.stride;
        if (scale != 0)
          sum += scale * (ld.type == CUDA_R_32F ? static_cast<const float*>(c)[at] : bf16_at(c, at));
        if (operation.epilogue == CUBLASLT_EPILOGUE_BIAS)
          sum += bf16_at(operation.bias, static_cast<std::int64_t>(row));
        if (ld.type == CUDA_R_32F)
          static_cast<float*>(d)[at] = sum;
        else
          static_cast<__nv_bfloat16*>(d)[at] = __float2bfloat16_rn(sum);
      }
    }
  };
  if (!emulator::kept_for_graph(multiply)) multiply();
  return CUBLAS_STATUS_SUCCESS;
}
LACUNA_FAKE const char* cublasLtGetStatusString(cublasStatus_t) { return "emulated status"; }
