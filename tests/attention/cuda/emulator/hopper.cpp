// Makes the emulated device one of compute capability 9.0: tensor maps for the stand-in of hopper.cuh.
#include "attention/cuda/hopper.cuh"

namespace {

CUresult encode(CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void* data, const cuuint64_t* size,
                const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  lacuna::hopper::EmulatedMap to{static_cast<const unsigned char*>(data), {}, {}, static_cast<int>(box[1])};
  for (int i = 0; i < 3; ++i) to.size[i] = static_cast<std::int64_t>(size[i]);
  for (int i = 0; i < 2; ++i) to.stride[i] = static_cast<std::int64_t>(stride[i]);
  std::memcpy(map, &to, sizeof to);
  return CUDA_SUCCESS;
}

[[maybe_unused]] const int hopper = emulator::capability = 90;

}  // namespace

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                                        unsigned long long,
                                                        cudaDriverEntryPointQueryResult* found) {
  *function = reinterpret_cast<void*>(&encode);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
