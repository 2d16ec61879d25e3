// Messages between the coordinator and the ranks. Small, ordered per sender and receiver, never collective.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/communicator.h"

namespace lacuna {

struct Message {
  enum class Kind : std::int32_t {
    // coordinator -> rank
    kForm,      ///< numbers: team, ranks...: make a communicator with these and serve as the team
    kRun,       ///< numbers: load, sample, cells...: to the team's first rank
    kDissolve,  ///< to the team's first rank
    kStop,      ///< nothing more will come
    // rank -> coordinator (from a team's first rank)
    kDone,         ///< numbers: team, ok, failed
    kLoadFailed,   ///< numbers: team; text: why
    kLoaded,       ///< numbers: team; text: the model's facts, JSON
    kInterrupted,  ///< numbers: team; the job was given up because of a signal
  };
  Kind kind = Kind::kStop;
  int from = 0;
  std::vector<std::int32_t> numbers = {};
  std::string text = {};
};

/// One side of the exchange: the coordinator's, or a rank's. Each is used by one thread; sides of one process
/// may be used at the same time.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  /// `to`: a rank; ignored on a rank's side, which talks to the coordinator alone.
  virtual void send(int to, const Message& message) = 0;
  /// The next message if one is there.
  virtual std::optional<Message> poll() = 0;
  /// Waits without spinning.
  Message wait();
};

/// All that a launch knows of its ranks, and the means to talk.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  /// Rank 0 only.
  virtual std::unique_ptr<Endpoint> coordinator_endpoint() = 0;
  virtual std::unique_ptr<Endpoint> rank_endpoint() = 0;
  /// Collective over `ranks` alone (world ranks, this one among them, in this order).
  virtual std::unique_ptr<Communicator> make_team(const std::vector<int>& ranks, int team, bool cuda) = 0;
  /// Text from rank 0 to all; collective over the world.
  virtual std::string broadcast(std::string text) = 0;
  /// Every rank's text, on rank 0; collective over the world.
  virtual std::vector<std::string> gather(const std::string& text) = 0;
};

/// One rank, no MPI.
std::unique_ptr<Transport> make_local_transport();
/// MPI_COMM_WORLD. MPI must have been started with MPI_THREAD_MULTIPLE.
std::unique_ptr<Transport> make_mpi_transport();

}  // namespace lacuna
