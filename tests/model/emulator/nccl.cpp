// NCCL and as much of the CUDA runtime as NcclCommunicator needs, over MPI and host memory, so that its
// threads, time-outs and errors are tested without GPUs. A stream is a thread that does its work in order; a
// sum gathers every rank's values and adds them in rank order; where ranks ask for different numbers of
// values it hangs. An abort waits for sums under way and for graphs that hold sums, as NCCL's does.
// LACUNA_EMULATED_GPUS says how many GPUs there are (default: as many as ranks), LACUNA_EMULATED_NCCL which
// version of NCCL this is (23000: it joins ranks on one GPU when NCCL_MULTI_RANK_GPU_ENABLE=1).
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/dtype.h"

using Work = std::function<void()>;

struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};
struct CUevent_st {
  std::atomic<int> recorded = 0, done = 0;
};

struct CUstream_st {
  CUstream_st() : thread([this] { loop(); }) {}
  ~CUstream_st() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    changed.notify_all();
    thread.join();
  }
  void put(Work work) {
    if (capture != nullptr) return capture->work.push_back(std::move(work));
    const std::lock_guard lock(mutex);
    queue.push_back(std::move(work));
    changed.notify_all();
  }
  void drain() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return queue.empty() && !busy; });
  }
  void loop() {
    std::unique_lock lock(mutex);
    while (true) {
      changed.wait(lock, [this] { return stopping || !queue.empty(); });
      if (queue.empty()) return;
      const Work work = std::move(queue.front());
      queue.pop_front();
      busy = true;
      lock.unlock();
      work();
      lock.lock();
      busy = false;
      changed.notify_all();
    }
  }

  CUgraph_st* capture = nullptr;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Work> queue;
  bool busy = false, stopping = false;
  std::thread thread;  // last: it uses all of the above
};

struct ncclComm {
  MPI_Comm comm = MPI_COMM_NULL;
  int ranks = 1;
  std::atomic<bool> aborted = false;
  std::shared_ptr<int> sums = std::make_shared<int>(0);  // shared by every sum under way or in a graph
};

namespace {

thread_local int current_device = 0;
std::string last_error;

int world_size() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

int version() {
  const char* text = std::getenv("LACUNA_EMULATED_NCCL");
  return text != nullptr ? std::atoi(text) : NCCL_VERSION_CODE;
}

/// Waits for the other ranks, or until the communicator is aborted. True when all ranks sum as many values.
bool same_count(ncclComm& comm, std::size_t count) {
  // Leaked when it is aborted: MPI may still write there.
  auto* counts = new std::vector<std::size_t>(1 + static_cast<std::size_t>(comm.ranks), count);
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Iallgather(counts->data(), sizeof(count), MPI_BYTE, counts->data() + 1, sizeof(count), MPI_BYTE,
                 comm.comm, &request);
  for (int done = 0; done == 0;) {
    if (comm.aborted) return false;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  const bool same = std::count(counts->begin(), counts->end(), count) == std::ssize(*counts);
  delete counts;
  return same;
}

/// Waits for the other ranks, or until the communicator is aborted.
void sum(ncclComm& comm, std::uint16_t* data, std::size_t count) {
  if (!same_count(comm, count)) {
    while (!comm.aborted) std::this_thread::sleep_for(std::chrono::microseconds(50));
    return;
  }
  std::vector<std::uint16_t> all(count * static_cast<std::size_t>(comm.ranks));
  MPI_Request request = MPI_REQUEST_NULL;
  const int bytes = static_cast<int>(2 * count);
  MPI_Iallgather(data, bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm.comm, &request);
  for (int done = 0; done == 0;) {
    if (comm.aborted) {
      new std::vector<std::uint16_t>(std::move(all));  // MPI may still write there
      return;
    }
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  std::vector<float> total(count), one(count);
  for (int r = 0; r < comm.ranks; ++r) {
    lacuna::convert_to_float(all.data() + static_cast<std::size_t>(r) * count, lacuna::DType::kBF16,
                             one.data(), count);
    for (std::size_t i = 0; i < count; ++i) total[i] += one[i];
  }
  lacuna::convert_from_float(total.data(), data, lacuna::DType::kBF16, count);
}

}  // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  const char* text = std::getenv("LACUNA_EMULATED_GPUS");
  *count = text != nullptr ? std::atoi(text) : world_size();
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return current_device = device, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  std::snprintf(text, static_cast<std::size_t>(bytes), "0000:%02x:00.0", device);
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaMalloc(void** to, size_t bytes) { return *to = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  stream->put([=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  stream->put([=] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new CUstream_st, cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return stream->drain(), cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream->capture != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return stream->capture = new CUgraph_st, cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return *exec = new CUgraphExec_st{graph->work}, cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const Work& work : exec->work) stream->put(work);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new CUevent_st, cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }  // a stream may still reach it
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const int number = ++event->recorded;
  stream->put([=] { event->done = number; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return event->done == event->recorded ? cudaSuccess : cudaErrorNotReady;
}

ncclResult_t ncclGetVersion(int* to) { return *to = version(), ncclSuccess; }
const char* ncclGetErrorString(ncclResult_t status) {
  return status == ncclInvalidUsage ? "invalid usage (run with NCCL_DEBUG=WARN for details)"
                                    : "unhandled error";
}
const char* ncclGetLastError(ncclComm_t) { return last_error.c_str(); }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return std::memset(id, 7, sizeof(*id)), ncclSuccess; }
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int, ncclConfig_t*) {
  int gpus = 0;
  cudaGetDeviceCount(&gpus);
  if (id.internal[5] != 7) return ncclInternalError;
  const char* shared = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  if (gpus < ranks && (version() < 23000 || shared == nullptr || std::string(shared) != "1")) {
    last_error = version() < 23000 ? "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000"
                                   : "Multiple Ranks are using the same GPU/Partition.";
    return ncclInvalidUsage;
  }
  *comm = new ncclComm;
  (*comm)->ranks = ranks;
  MPI_Comm_dup(MPI_COMM_WORLD, &(*comm)->comm);
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  while (comm->sums.use_count() > 1) std::this_thread::sleep_for(std::chrono::microseconds(50));
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->aborted = true;
  return ncclCommDestroy(comm);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
  return *state = ncclSuccess, ncclSuccess;
}
ncclResult_t ncclAllReduce(const void*, void* data, size_t count, ncclDataType_t, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t stream) {
  stream->put([=, held = comm->sums] { sum(*comm, static_cast<std::uint16_t*>(data), count); });
  return ncclSuccess;
}

}  // extern "C"
