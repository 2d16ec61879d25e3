// NCCL over MPI for the engine's emulator, where everything happens at once: a sum is made where it is asked
// for, or, captured, where its graph is launched, in bfloat16 around the ring as NCCL adds. Ranks may share
// the one GPU that there is, as with NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1.
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "tests/attention/cuda/emulator/emulator.h"

struct ncclComm {
  MPI_Comm comm = MPI_COMM_NULL;
  int ranks = 1;
};

namespace {

void sum(const ncclComm& comm, std::uint16_t* data, std::size_t count) {
  std::vector<std::uint16_t> all(count * static_cast<std::size_t>(comm.ranks));
  const int bytes = static_cast<int>(2 * count);
  MPI_Allgather(data, bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm.comm);
  std::vector<float> total(count), one(count);
  lacuna::convert_to_float(all.data(), lacuna::DType::kBF16, total.data(), count);
  std::memcpy(data, all.data(), 2 * count);
  for (int r = 1; r < comm.ranks; ++r) {
    lacuna::convert_to_float(all.data() + static_cast<std::size_t>(r) * count, lacuna::DType::kBF16,
                             one.data(), count);
    for (std::size_t i = 0; i < count; ++i) total[i] += one[i];
    lacuna::convert_from_float(total.data(), data, lacuna::DType::kBF16, count);
    lacuna::convert_to_float(data, lacuna::DType::kBF16, total.data(), count);
  }
}

}  // namespace

extern "C" {

cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

ncclResult_t ncclGetVersion(int* version) { return *version = 23000, ncclSuccess; }
const char* ncclGetErrorString(ncclResult_t) { return "unhandled error"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return std::memset(id, 7, sizeof(*id)), ncclSuccess; }
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId, int, ncclConfig_t*) {
  *comm = new ncclComm{.ranks = ranks};
  MPI_Comm_dup(MPI_COMM_WORLD, &(*comm)->comm);
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  MPI_Comm_free(&comm->comm);
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
  return *state = ncclSuccess, ncclSuccess;
}
ncclResult_t ncclAllReduce(const void*, void* data, size_t count, ncclDataType_t, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t) {
  const auto work = [=] { sum(*comm, static_cast<std::uint16_t*>(data), count); };
  if (!emulator::kept_for_graph(work)) work();
  return ncclSuccess;
}

}  // extern "C"
