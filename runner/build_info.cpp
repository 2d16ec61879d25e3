#include "runner/build_info.h"

#include <mpi.h>

#include "core/hdf5.h"
#include "core/json.h"
#if LACUNA_HAS_CUDA
#include <cuda_runtime_api.h>
#endif
#if LACUNA_HAS_NCCL
#include <nccl.h>
#endif

namespace lacuna {

std::string git_commit() { return LACUNA_GIT_COMMIT; }

Json library_versions() {
  Json versions = {
      {"hdf5", hdf5::library_version()}, {"compiler", LACUNA_COMPILER}, {"build_type", LACUNA_BUILD_TYPE}};
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  if (MPI_Get_library_version(text, &length) == MPI_SUCCESS) versions["mpi"] = std::string(text);
#if LACUNA_HAS_CUDA
  int runtime = 0, driver = 0;
  if (cudaRuntimeGetVersion(&runtime) == cudaSuccess) versions["cuda_runtime"] = runtime;
  if (cudaDriverGetVersion(&driver) == cudaSuccess) versions["cuda_driver"] = driver;
#endif
#if LACUNA_HAS_NCCL
  int nccl = 0;
  if (ncclGetVersion(&nccl) == ncclSuccess) versions["nccl"] = nccl;
#endif
  return versions;
}

}  // namespace lacuna
