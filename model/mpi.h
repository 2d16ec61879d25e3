// MPI behind our own interfaces: start and end of the library, and the communicator of CPU ranks.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "core/communicator.h"

namespace lacuna {

/// MPI from construction to destruction. Errors of MPI calls become lacuna::Error. One per process.
class MpiSession {
 public:
  /// Starts MPI with the thread level asked for or better; throws kLibrary when the library offers less.
  explicit MpiSession(int thread_level = MPI_THREAD_SERIALIZED);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// Sets MPI_ERRORS_RETURN on a communicator made elsewhere.
  static void return_errors(MPI_Comm comm);

 private:
  int rank_ = 0, size_ = 1;
};

/// True when this process was started by mpirun or srun. Looks at the environment only.
bool launched_by_mpi();

/// Collective: runs `body` on every rank. When it throws on any rank, rank 0 throws the first error and the
/// other ranks wait to be ended by rank 0's MPI_Abort, so that a mistake is reported once and not once per
/// rank.
void run_together(const MpiSession& session, const std::function<void()>& body);

/// Collective: every rank's text, on every rank, in rank order.
std::vector<std::string> gather_texts(const MpiSession& session, const std::string& text);

/// Collectives over host memory. Sums are formed in rank order on one rank per slice of the data and then
/// shared, so every rank holds the same bits, and the same team size gives the same bits on every run.
class MpiCommunicator final : public Communicator {
 public:
  /// Duplicates `comm`, so that its traffic never meets anybody else's.
  explicit MpiCommunicator(MPI_Comm comm);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce_sum(float* data, std::size_t count) override;
  void all_gather(const void* send, void* receive, std::size_t bytes) override;
  void broadcast(void* data, std::size_t bytes, int root) override;
  void barrier() override;
  std::string kind() const override { return "mpi"; }

 private:
  void reduce_piece(float* data, std::size_t count);

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<float> scratch_;
};

}  // namespace lacuna
