#include "model/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/log.h"

namespace lacuna {

namespace {

using Clock = std::chrono::steady_clock;

std::chrono::nanoseconds seconds(double count) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(count));
}

/// Before NCCL reads its environment, which it does once per process. What the user has set stays.
void set_defaults() {
  // Trees and NVLink SHARP may add in another order; SHARP's order inside the switch is not documented at
  // all. Within a node the ring is as fast as any for large messages, and NCCL's tree is a chain there, so
  // nothing is lost for small ones.
  ::setenv("NCCL_ALGO", "Ring", 0);
  ::setenv("NCCL_NVLS_ENABLE", "0", 0);  // its buffers would only cost memory
  // All connections are made when the team meets, under the deadline, and not inside the first sum.
  ::setenv("NCCL_RUNTIME_CONNECT", "0", 0);
}

std::string version_text() {
  int version = 0;
  LACUNA_NCCL(ncclGetVersion(&version));
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

std::string device_text(int device) {
  char bus[32] = {};
  if (cudaDeviceGetPCIBusId(bus, sizeof(bus), device) != cudaSuccess) return fmt::format("GPU {}", device);
  return fmt::format("GPU {} at {}", device, bus);
}

/// NCCL's own words for an error, with its last message when it left one.
std::string describe(ncclResult_t status) {
  std::string text = ncclGetErrorString(status);
  const char* last = ncclGetLastError(nullptr);
  if (last != nullptr && *last != '\0') text += fmt::format(" ({})", last);
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

/// Shared with the thread that joins the team, which may outlive a constructor that gave up.
struct Join {
  std::mutex mutex;
  std::condition_variable done_changed;
  bool done = false;
  ncclComm_t comm = nullptr;
  std::string error;
};

/// Joins the team and makes one small sum, so that whatever cannot work says so here.
void join_team(Join& join, int device, int ranks, int rank, const ncclUniqueId& id) {
  ncclComm_t comm = nullptr;
  std::string error;
  const auto cuda = [&](cudaError_t status, const char* what) {
    if (error.empty() && status != cudaSuccess)
      error = fmt::format("{}: {}", what, cudaGetErrorString(status));
  };
  const auto nccl = [&](ncclResult_t status, const char* what) {
    if (error.empty() && status != ncclSuccess) error = fmt::format("{}: {}", what, describe(status));
  };
  cuda(cudaSetDevice(device), "cudaSetDevice");
  if (error.empty()) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    nccl(ncclCommInitRankConfig(&comm, ranks, id, rank, &config), "joining the team");
  }
  cudaStream_t stream = nullptr;
  void* one = nullptr;
  if (error.empty()) {
    cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    cuda(cudaMalloc(&one, 256), "cudaMalloc");
  }
  if (error.empty()) {
    cuda(cudaMemsetAsync(one, 0, 256, stream), "cudaMemset");
    nccl(ncclAllReduce(one, one, 128, ncclBfloat16, ncclSum, comm, stream), "the first sum");
    cuda(cudaStreamSynchronize(stream), "the first sum");
  }
  (void)cudaFree(one);
  if (stream != nullptr) (void)cudaStreamDestroy(stream);
  const std::lock_guard lock(join.mutex);
  join.comm = comm;
  join.error = error;
  join.done = true;
  join.done_changed.notify_all();
}

}  // namespace

/// The watch thread and the callers share `mutex_` around every call into NCCL.
class NcclCommunicator::Impl {
 public:
  Impl(MPI_Comm comm, const NcclOptions& options) : host_(comm), timeout_(options.timeout_seconds) {
    LACUNA_REQUIRE(timeout_ > 0, "NCCL: a time-out of {} seconds", timeout_);
    LACUNA_CUDA(cudaGetDevice(&device_));
    set_defaults();
    version_ = version_text();
    join();
    LACUNA_CUDA(cudaEventCreateWithFlags(&marker_, cudaEventDisableTiming));
    watch_ = std::thread([this] { watch(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(wake_mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (watch_.joinable()) watch_.join();
    if (marker_ != nullptr) (void)cudaEventDestroy(marker_);
    if (comm_ == nullptr) return;
    // While an exception unwinds, peers need not come: leave without them.
    if (std::uncaught_exceptions() > 0)
      (void)ncclCommAbort(comm_);
    else
      (void)ncclCommDestroy(comm_);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  MpiCommunicator& host() {
    check();
    return host_;
  }
  const MpiCommunicator& host_facts() const { return host_; }
  const std::string& version() const { return version_; }

  void all_reduce(void* device, std::size_t count, cudaStream_t stream) {
    check();
    if (count == 0) return;
    in_call_since_ = Clock::now().time_since_epoch().count();
    const std::unique_lock lock(mutex_);
    check();
    const ncclResult_t status = ncclAllReduce(device, device, count, ncclBfloat16, ncclSum, comm_, stream);
    in_call_since_ = 0;
    if (status != ncclSuccess)
      throw_library("NCCL: {}: sum of {} values: {}; the first message of any rank says what began it",
                    name(), count, describe(status));
    ++sums_;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    LACUNA_CUDA(cudaStreamIsCapturing(stream, &capture));
    if (capture == cudaStreamCaptureStatusNone) mark(stream);
  }

  void graph_launched(cudaStream_t stream) {
    check();
    const std::lock_guard lock(mutex_);
    check();
    mark(stream);
  }

 private:
  std::string name() const {
    return fmt::format("rank {} of the team of {}, on {}", host_.rank(), host_.size(), device_text(device_));
  }

  /// Collective. Either every rank joins or every rank throws.
  void join() {
    struct Start {
      ncclUniqueId id;
      char error[512];
    } start = {};
    if (host_.rank() == 0) {
      const ncclResult_t status = ncclGetUniqueId(&start.id);
      if (status != ncclSuccess) describe(status).copy(start.error, sizeof(start.error) - 1);
    }
    host_.broadcast(&start, sizeof(start), 0);
    if (start.error[0] != '\0') throw_library("NCCL: the team's first rank cannot start it: {}", start.error);

    const auto state = std::make_shared<Join>();
    std::thread([state, device = device_, ranks = host_.size(), rank = host_.rank(), id = start.id] {
      join_team(*state, device, ranks, rank, id);
    }).detach();
    std::string error;
    {
      std::unique_lock lock(state->mutex);
      if (!state->done_changed.wait_for(lock, seconds(timeout_), [&] { return state->done; }))
        error = fmt::format("the ranks did not meet within {} s", timeout_);
      else
        error = state->error;
      comm_ = state->comm;
    }
    agree(error);
  }

  void agree(const std::string& error) {
    constexpr std::size_t kBytes = 1024;
    std::vector<char> mine(kBytes, '\0'), all(kBytes * static_cast<std::size_t>(host_.size()));
    if (!error.empty()) fmt::format("{}: {}", name(), error).copy(mine.data(), kBytes - 1);
    host_.all_gather(mine.data(), all.data(), kBytes);
    for (int r = 0; r < host_.size(); ++r) {
      const std::string first = all.data() + static_cast<std::size_t>(r) * kBytes;
      if (first.empty()) continue;
      // Not aborted: a rank still inside the join could be using it. The process ends anyway.
      comm_ = nullptr;
      // What NCCL says of two ranks on one GPU.
      const bool same_gpu = first.find("Duplicate GPU") != std::string::npos ||
                            first.find("invalid usage") != std::string::npos;
      throw_library("NCCL {}: {}{}", version_, first,
                    same_gpu
                        ? "; this NCCL wants a GPU for each rank: start fewer ranks per node, or let ranks "
                          "share a GPU with --share-gpu (sums then go through host memory)"
                        : "; NCCL_DEBUG=INFO shows what NCCL tried");
    }
  }

  void check() const {
    if (!failed_) return;
    const std::lock_guard lock(failure_mutex_);
    throw_library("{}", failure_);
  }

  /// Puts a marker behind what `stream` holds, unless one is under way already: hangs show as a marker that
  /// is never reached. Under mutex_.
  void mark(cudaStream_t stream) {
    if (marked_) return;
    LACUNA_CUDA(cudaEventRecord(marker_, stream));
    marked_ = true;
    marked_at_ = Clock::now();
    marked_sum_ = sums_;
  }

  void fail(const std::string& what) {
    {
      const std::lock_guard lock(failure_mutex_);
      failure_ = fmt::format(
          "NCCL: {}: {}; another rank of the team died or is stuck (its own message says why); start again "
          "to "
          "go on",
          name(), what);
    }
    failed_ = true;
    log::warning("{}", failure_);
  }

  void watch() {
    (void)cudaSetDevice(device_);
    // Asking for an event must not disturb a capture on another thread.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    const auto pause = seconds(std::min(1.0, timeout_ / 8));
    std::unique_lock wake_lock(wake_mutex_);
    while (!wake_.wait_for(wake_lock, pause, [&] { return stopping_; })) {
      wake_lock.unlock();
      look();
      wake_lock.lock();
    }
  }

  void look() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
      // A caller is inside NCCL. That takes microseconds; if it does not come back, nothing of this process
      // can be saved, and its end is what ends the others.
      const auto since = in_call_since_.load();
      if (since != 0 && Clock::now().time_since_epoch().count() - since > seconds(2 * timeout_).count()) {
        log::error("NCCL: {}: a call into NCCL did not return within {} s; giving up", name(), 2 * timeout_);
        std::_Exit(1);
      }
      return;
    }
    if (failed_) return;
    ncclResult_t state = ncclSuccess;
    if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess ||
        (state != ncclSuccess && state != ncclInProgress))
      return give_up(fmt::format("asynchronous error: {}", describe(state)));
    if (!marked_) return;
    const cudaError_t status = cudaEventQuery(marker_);
    if (status == cudaErrorNotReady) {
      if (Clock::now() - marked_at_ > seconds(timeout_))
        give_up(fmt::format("sum {} or what stands before it on the GPU has not ended within {} s",
                            marked_sum_, timeout_));
      return;
    }
    marked_ = false;  // a CUDA error surfaces where the caller synchronises
  }

  /// Under mutex_: ends the kernels that wait for a peer, so that a caller waiting for the device wakes up.
  void give_up(const std::string& what) {
    fail(what);
    (void)ncclCommAbort(comm_);
    comm_ = nullptr;
  }

  MpiCommunicator host_;
  const double timeout_;
  std::string version_;
  int device_ = 0;
  ncclComm_t comm_ = nullptr;  // null once aborted

  std::mutex mutex_;
  cudaEvent_t marker_ = nullptr;
  bool marked_ = false;
  Clock::time_point marked_at_;
  std::int64_t sums_ = 0, marked_sum_ = 0;
  std::atomic<Clock::rep> in_call_since_ = 0;

  std::atomic<bool> failed_ = false;
  mutable std::mutex failure_mutex_;
  std::string failure_;

  std::mutex wake_mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread watch_;
};

NcclCommunicator::NcclCommunicator(MPI_Comm comm, const NcclOptions& options)
    : impl_(std::make_unique<Impl>(comm, options)) {}
NcclCommunicator::~NcclCommunicator() = default;

int NcclCommunicator::rank() const { return impl_->host_facts().rank(); }
int NcclCommunicator::size() const { return impl_->host_facts().size(); }
void NcclCommunicator::all_reduce_sum(float* data, std::size_t count) {
  impl_->host().all_reduce_sum(data, count);
}
void NcclCommunicator::all_gather(const void* send, void* receive, std::size_t bytes) {
  impl_->host().all_gather(send, receive, bytes);
}
void NcclCommunicator::broadcast(void* data, std::size_t bytes, int root) {
  impl_->host().broadcast(data, bytes, root);
}
void NcclCommunicator::barrier() { impl_->host().barrier(); }
std::string NcclCommunicator::kind() const { return "nccl " + impl_->version(); }
void NcclCommunicator::all_reduce_bf16(void* device, std::size_t count, cudaStream_t stream) {
  impl_->all_reduce(device, count, stream);
}
void NcclCommunicator::graph_launched(cudaStream_t stream) { impl_->graph_launched(stream); }

}  // namespace lacuna
