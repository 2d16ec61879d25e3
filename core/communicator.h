// Collectives among the ranks of one tensor-parallel team. The interface stands on the ground floor because attention
// needs it too (budgets that look across heads); the MPI and NCCL implementations live in model/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace lacuna {

/// All calls are collective: every rank of the team makes the same calls in the same order with the same sizes.
/// Reductions add in rank order, so the same team size gives the same bits on every run.
/// Pointers are host or device memory as the implementation says. Failures throw kLibrary.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Sums `count` floats in place over all ranks.
  virtual void all_reduce_sum(float* data, std::size_t count) = 0;
  /// `send` (bytes) of every rank, concatenated in rank order into `receive` (bytes * size()).
  virtual void all_gather(const void* send, void* receive, std::size_t bytes) = 0;
  /// Copies `bytes` from rank `root` to all.
  virtual void broadcast(void* data, std::size_t bytes, int root) = 0;
  virtual void barrier() = 0;
  /// How the ranks reach each other, for provenance: "none" (a rank alone), "mpi", "nccl 2.28.9".
  virtual std::string kind() const { return "none"; }
};

/// A team of one: every call is a copy or nothing.
class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce_sum(float*, std::size_t) override {}
  void all_gather(const void* send, void* receive, std::size_t bytes) override;
  void broadcast(void*, std::size_t, int) override {}
  void barrier() override {}
};

}  // namespace lacuna
