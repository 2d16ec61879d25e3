// A team with one rank per GPU: sums of device memory by NCCL, everything in host memory by MPI.
#pragma once

#include <memory>

#include "model/cuda/device_communicator.h"
#include "model/mpi.h"

namespace lacuna {

/// What NCCL is told and how long it is trusted.
struct NcclOptions {
  /// A sum that has not ended after so many seconds is given up.
  double timeout_seconds = 120;
  /// And so is a team that has not met by then.
  double meeting_seconds = 120;
  /// Most thread blocks of a sum; 0: as many as NCCL likes. Ranks on one GPU wait for each other's blocks, so
  /// there must be room for the blocks of all of them.
  int max_blocks = 0;
};

/// True when the NCCL found at run time can join ranks that share a GPU (2.30 and later) and
/// NCCL_MULTI_RANK_GPU_ENABLE=1 says that it may.
bool nccl_joins_ranks_on_one_gpu();

/// One rank per GPU, on the device that is current when it is made. No sum is waited for without end: when a
/// peer is gone, a thread of this class aborts what hangs on the device, says so, and every later call throws
/// kLibrary with what happened, on which rank, and what to do. Where even that does not end, so that nobody
/// is left to throw, the process exits with code 1; so it does when the other ranks do not come to an
/// exchange in host memory within ten time-outs. Only broadcast waits as long as it takes: there ranks wait
/// for work.
///
/// NCCL does not compare what ranks ask for: two ranks that sum different numbers of values hang, or get
/// wrong values in silence. Every short all_gather and every barrier therefore compares the sums asked for
/// since the team met (how many, of what lengths, captured or not) and throws kLibrary on all ranks where
/// they differ.
///
/// The same sums on the same GPUs give the same bits on every run, and every rank holds the same bits: only
/// the ring algorithm is used (NCCL_ALGO=Ring, unless the environment says otherwise), in which each element
/// is added once, in a fixed order around the ring, and the result is passed on. That order depends on the
/// element's place in the message and on the ring NCCL lays through the machine, so another number of values
/// in one sum, another TP degree or another kind of machine may round differently.
///
/// Graphs that hold sums of this communicator must be gone before it is.
class NcclCommunicator final : public Communicator, public DeviceCommunicator {
 public:
  /// Collective over `comm`, which is duplicated. Throws kLibrary on all ranks alike when NCCL cannot join
  /// them; for two ranks on one GPU, which NCCL before 2.30 refuses, the message names --share-gpu.
  explicit NcclCommunicator(MPI_Comm comm, const NcclOptions& options = {});
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  // Host memory.
  int rank() const override;
  int size() const override;
  void all_reduce_sum(float* data, std::size_t count) override;
  void all_gather(const void* send, void* receive, std::size_t bytes) override;
  void broadcast(void* data, std::size_t bytes, int root) override;
  void barrier() override;
  std::string kind() const override;

  // Device memory.
  void all_reduce_bf16(void* device, std::size_t count, cudaStream_t stream) override;
  bool capturable() const override { return true; }
  void graph_launched(cudaStream_t stream) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lacuna
