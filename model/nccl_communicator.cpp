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
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
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
void join_team(Join& join, int device, int max_blocks, int ranks, int rank, const ncclUniqueId& id) {
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
    if (max_blocks > 0) config.maxCTAs = max_blocks;
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

/// Calls `leave` (ncclCommAbort or ncclCommDestroy) on a thread of its own; false when it has not returned
/// after so many seconds. Both wait for the stream, for peers, and for graphs that hold sums.
bool leave_team(ncclResult_t (*leave)(ncclComm_t), ncclComm_t comm, int device, double limit) {
  struct State {
    std::mutex mutex;
    std::condition_variable done_changed;
    bool done = false;
  };
  const auto state = std::make_shared<State>();
  std::thread([=] {
    (void)cudaSetDevice(device);
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // another thread may be capturing
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    (void)leave(comm);
    const std::lock_guard lock(state->mutex);
    state->done = true;
    state->done_changed.notify_all();
  }).detach();
  std::unique_lock lock(state->mutex);
  return state->done_changed.wait_for(lock, seconds(limit), [&] { return state->done; });
}

/// What a rank has asked of the team so far; equal on all ranks, or they are not adding the same things.
struct Asked {
  std::int64_t sums = 0;
  std::uint64_t hash = 0;
  void add(std::size_t count, bool captured) {
    ++sums;
    hash = (hash ^ (2 * count + (captured ? 1 : 0))) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  friend bool operator==(const Asked&, const Asked&) = default;
};

/// Longer messages go alone: copying them would cost more than the comparison is worth.
constexpr std::size_t kShortMessage = std::size_t{64} << 10;

}  // namespace

bool nccl_joins_ranks_on_one_gpu() {
  const char* enabled = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  int version = 0;
  return enabled != nullptr && std::string_view(enabled) == "1" && ncclGetVersion(&version) == ncclSuccess &&
         version >= 23000;
}

/// Times the time-out: exchanges in host memory may wait for a rank that loads a model.
constexpr double kHostPatience = 10;

/// Since when somebody is inside a call, by the clock of the watch thread; 0: nobody.
class Since {
 public:
  Since(std::atomic<double>& at, double now) : at_(at) { at_ = now; }
  ~Since() { at_ = 0; }
  Since(const Since&) = delete;
  Since& operator=(const Since&) = delete;

 private:
  std::atomic<double>& at_;
};

/// The watch thread and the callers share `mutex_` around every call into NCCL.
class NcclCommunicator::Impl {
 public:
  Impl(MPI_Comm comm, const NcclOptions& options)
      : host_(comm),
        timeout_(options.timeout_seconds),
        meeting_(options.meeting_seconds),
        max_blocks_(options.max_blocks) {
    LACUNA_REQUIRE(timeout_ > 0 && meeting_ > 0, "NCCL: time-outs of {} and {} seconds", timeout_, meeting_);
    LACUNA_REQUIRE(max_blocks_ >= 0 && max_blocks_ <= 64, "NCCL: at most {} blocks", max_blocks_);
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
    const bool unwinding = std::uncaught_exceptions() > 0;
    const double limit = timeout_ + kLeavingSeconds;
    if (!leave_team(unwinding ? ncclCommAbort : ncclCommDestroy, comm_, device_, limit))
      log::warning("NCCL: {}: leaving the team did not end within {} s; it is left as it is", name(), limit);
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
    const std::lock_guard lock(mutex_);
    check();
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    LACUNA_CUDA(cudaStreamIsCapturing(stream, &capture));
    asked_.add(count, capture != cudaStreamCaptureStatusNone);
    ncclResult_t status = ncclSuccess;
    {
      const Since inside(in_nccl_since_, now_);
      status = ncclAllReduce(device, device, count, ncclBfloat16, ncclSum, comm_, stream);
    }
    if (status != ncclSuccess)
      throw_library("NCCL: {}: sum of {} values: {}; the first message of any rank says what began it",
                    name(), count, describe(status));
    if (capture == cudaStreamCaptureStatusNone) mark(stream);
  }

  void all_reduce_host(float* data, std::size_t count) {
    check();
    const Since inside(in_host_since_, now_);
    host_.all_reduce_sum(data, count);
  }
  void all_gather(const void* send, void* receive, std::size_t bytes) {
    check();
    const Since inside(in_host_since_, now_);
    if (bytes > kShortMessage) return host_.all_gather(send, receive, bytes);
    const std::size_t block = sizeof(Asked) + bytes, ranks = static_cast<std::size_t>(host_.size());
    message_.resize((1 + ranks) * block);
    std::byte *const mine = message_.data(), *const all = mine + block;
    std::memcpy(mine, &asked_, sizeof(Asked));
    if (bytes > 0) std::memcpy(mine + sizeof(Asked), send, bytes);
    host_.all_gather(mine, all, block);
    std::vector<Asked> asked(ranks);
    for (std::size_t r = 0; r < ranks; ++r) {
      std::memcpy(&asked[r], all + r * block, sizeof(Asked));
      if (bytes > 0)
        std::memcpy(static_cast<std::byte*>(receive) + r * bytes, all + r * block + sizeof(Asked), bytes);
    }
    for (std::size_t r = 1; r < ranks; ++r) {
      if (asked[r] == asked[0]) continue;
      throw_library(
          "NCCL: the ranks of the team do not add the same things: rank 0 asked for {} sums, rank {} for "
          "{}{}",
          asked[0].sums, r, asked[r].sums,
          asked[r].sums == asked[0].sums ? " of other lengths, or captured in a graph on one rank alone"
                                         : "");
    }
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
    std::thread([state, device = device_, blocks = max_blocks_, ranks = host_.size(), rank = host_.rank(),
                 id = start.id] {
      join_team(*state, device, blocks, ranks, rank, id);
    }).detach();
    std::string error;
    {
      std::unique_lock lock(state->mutex);
      if (!state->done_changed.wait_for(lock, seconds(meeting_), [&] { return state->done; }))
        error = fmt::format("the ranks did not meet within {} s", meeting_);
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
      // What NCCL says of two ranks on one GPU, before 2.30 and since.
      const bool same_gpu = first.find("Duplicate GPU") != std::string::npos ||
                            first.find("using the same GPU") != std::string::npos ||
                            first.find("invalid usage") != std::string::npos;
      throw_library("NCCL {}: {}{}", version_, first,
                    same_gpu
                        ? "; this NCCL wants a GPU for each rank: start fewer ranks per node, or let ranks "
                          "share a GPU with --share-gpu (sums then go through host memory, unless "
                          "NCCL_MULTI_RANK_GPU_ENABLE=1 asks NCCL 2.30 or later for them)"
                        : "; NCCL_DEBUG=INFO shows what NCCL tried");
    }
  }

  void check() const {
    if (!failed_) return;
    const std::lock_guard lock(failure_mutex_);
    throw_library("{}", failure_);
  }

  /// Puts the marker behind all that `stream` holds: a hang shows as a marker that is not reached. Every
  /// time, so that nothing stands behind it; who waits for a hanging stream moves it no more. Under mutex_.
  void mark(cudaStream_t stream) {
    LACUNA_CUDA(cudaEventRecord(marker_, stream));
    marked_ = true;
    marked_at_ = now_;
    marked_sum_ = asked_.sums;
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
    const double pause = std::min(1.0, timeout_ / 8);
    auto last = Clock::now();
    std::unique_lock wake_lock(wake_mutex_);
    while (!wake_.wait_for(wake_lock, seconds(pause), [&] { return stopping_; })) {
      wake_lock.unlock();
      const auto now = Clock::now();
      now_ = now_ + std::min(std::chrono::duration<double>(now - last).count(), 2 * pause);
      last = now;
      look();
      wake_lock.lock();
    }
  }

  /// A call that does not come back cannot be ended; the end of the process is then what ends the others.
  void give_up_unless_back(double since, double limit, const char* what) {
    if (since == 0 || now_ - since <= limit) return;
    log::error("NCCL: {}: {} did not return within {} s; another rank of the team is stuck; giving up",
               name(), what, limit);
    std::_Exit(1);
  }

  void look() {
    give_up_unless_back(in_host_since_, kHostPatience * timeout_, "an exchange of the ranks in host memory");
    {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (!lock.owns_lock())  // a caller is inside NCCL, which takes microseconds
        return give_up_unless_back(in_nccl_since_, 2 * timeout_, "a call into NCCL");
      if (failed_) return;
      const std::string what = trouble();
      if (what.empty()) return;
      fail(what);
    }
    // No caller touches NCCL any more. Ending the kernels that wait for a peer wakes a caller who waits for
    // the device. Not under the mutex: the abort waits for graphs that hold sums, and who owns them must be
    // able to come, throw and destroy them.
    if (leave_team(ncclCommAbort, comm_, device_, timeout_ + kLeavingSeconds)) {
      comm_ = nullptr;
      return;
    }
    log::error("NCCL: {}: what hangs could not be aborted within {} s; giving up", name(),
               timeout_ + kLeavingSeconds);
    std::_Exit(1);
  }

  /// Under mutex_: what is wrong with the team, or nothing.
  std::string trouble() {
    ncclResult_t state = ncclSuccess;
    if (const ncclResult_t status = ncclCommGetAsyncError(comm_, &state); status != ncclSuccess)
      state = status;
    if (state != ncclSuccess && state != ncclInProgress)
      return fmt::format("asynchronous error: {}", describe(state));
    if (!marked_) return "";
    if (cudaEventQuery(marker_) != cudaErrorNotReady) {
      marked_ = false;  // a CUDA error surfaces where the caller synchronises
      return "";
    }
    if (now_ - marked_at_ <= timeout_) return "";
    return fmt::format("sum {} or what stands before it on the GPU has not ended within {} s", marked_sum_,
                       timeout_);
  }

  MpiCommunicator host_;
  /// To leave a team, besides the time-out: callers must notice and destroy the graphs that hold sums.
  static constexpr double kLeavingSeconds = 15;

  const double timeout_, meeting_;
  const int max_blocks_;
  std::string version_;
  int device_ = 0;
  ncclComm_t comm_ = nullptr;  // null once aborted
  std::vector<std::byte> message_;

  std::mutex mutex_;
  cudaEvent_t marker_ = nullptr;
  bool marked_ = false;
  double marked_at_ = 0;
  std::int64_t marked_sum_ = 0;
  Asked asked_;  // by the callers' thread, under mutex_

  /// Seconds that the watch thread saw pass: a team that is suspended as a whole loses no time. Above 0.
  std::atomic<double> now_ = 1;
  std::atomic<double> in_nccl_since_ = 0, in_host_since_ = 0;

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
void NcclCommunicator::all_reduce_sum(float* data, std::size_t count) { impl_->all_reduce_host(data, count); }
void NcclCommunicator::all_gather(const void* send, void* receive, std::size_t bytes) {
  impl_->all_gather(send, receive, bytes);
}
void NcclCommunicator::broadcast(void* data, std::size_t bytes, int root) {
  impl_->host().broadcast(data, bytes, root);
}
void NcclCommunicator::barrier() { impl_->all_gather(nullptr, nullptr, 0); }
std::string NcclCommunicator::kind() const { return "nccl " + impl_->version(); }
void NcclCommunicator::all_reduce_bf16(void* device, std::size_t count, cudaStream_t stream) {
  impl_->all_reduce(device, count, stream);
}
void NcclCommunicator::graph_launched(cudaStream_t stream) { impl_->graph_launched(stream); }

}  // namespace lacuna
