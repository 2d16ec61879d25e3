#include <mpi.h>

#include <cstring>

#include "core/error.h"
#include "model/mpi.h"
#include "model/team_communicator.h"
#include "runner/transport.h"

namespace lacuna {

namespace {

// Tags tell the two directions apart: rank 0 hosts the coordinator and a rank of its own.
constexpr int kToRank = 1, kToCoordinator = 2;

std::vector<char> pack(const Message& message) {
  const auto count = static_cast<std::int32_t>(message.numbers.size());
  const auto kind = static_cast<std::int32_t>(message.kind);
  std::vector<char> bytes(sizeof(kind) + sizeof(count) + message.numbers.size() * sizeof(std::int32_t) +
                          message.text.size());
  char* at = bytes.data();
  const auto put = [&](const void* data, std::size_t size) {
    if (size > 0) std::memcpy(at, data, size);
    at += size;
  };
  put(&kind, sizeof(kind));
  put(&count, sizeof(count));
  put(message.numbers.data(), message.numbers.size() * sizeof(std::int32_t));
  put(message.text.data(), message.text.size());
  return bytes;
}

Message unpack(const std::vector<char>& bytes, int from) {
  Message message;
  std::int32_t kind = 0, count = 0;
  std::memcpy(&kind, bytes.data(), sizeof(kind));
  std::memcpy(&count, bytes.data() + sizeof(kind), sizeof(count));
  message.kind = static_cast<Message::Kind>(kind);
  message.from = from;
  message.numbers.resize(static_cast<std::size_t>(count));
  const char* at = bytes.data() + sizeof(kind) + sizeof(count);
  if (count > 0) std::memcpy(message.numbers.data(), at, message.numbers.size() * sizeof(std::int32_t));
  at += message.numbers.size() * sizeof(std::int32_t);
  message.text.assign(at, bytes.data() + bytes.size());
  return message;
}

class MpiEndpoint final : public Endpoint {
 public:
  MpiEndpoint(MPI_Comm comm, bool coordinator) : comm_(comm), coordinator_(coordinator) {}

  void send(int to, const Message& message) override {
    const std::vector<char> bytes = pack(message);
    LACUNA_MPI(MPI_Send(bytes.data(), static_cast<int>(bytes.size()), MPI_CHAR, coordinator_ ? to : 0,
                        coordinator_ ? kToRank : kToCoordinator, comm_));
  }

  std::optional<Message> poll() override {
    int there = 0;
    MPI_Message handle = MPI_MESSAGE_NULL;
    MPI_Status status;
    // Matched probe: with two threads receiving, the message that was seen is the one that is taken.
    LACUNA_MPI(MPI_Improbe(coordinator_ ? MPI_ANY_SOURCE : 0, coordinator_ ? kToCoordinator : kToRank, comm_,
                           &there, &handle, &status));
    if (there == 0) return std::nullopt;
    int size = 0;
    LACUNA_MPI(MPI_Get_count(&status, MPI_CHAR, &size));
    std::vector<char> bytes(static_cast<std::size_t>(size));
    LACUNA_MPI(MPI_Mrecv(bytes.data(), size, MPI_CHAR, &handle, &status));
    return unpack(bytes, status.MPI_SOURCE);
  }

 private:
  MPI_Comm comm_;
  bool coordinator_;
};

class MpiTransport final : public Transport {
 public:
  MpiTransport() {
    int level = 0;
    LACUNA_MPI(MPI_Query_thread(&level));
    if (level < MPI_THREAD_MULTIPLE) {
      throw_library(
          "MPI: the library offers no MPI_THREAD_MULTIPLE, which the coordinator's thread on rank 0 needs");
    }
    LACUNA_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm_));
    MpiSession::return_errors(comm_);
    LACUNA_MPI(MPI_Comm_rank(comm_, &rank_));
    LACUNA_MPI(MPI_Comm_size(comm_, &ranks_));
  }
  ~MpiTransport() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }
  MpiTransport(const MpiTransport&) = delete;
  MpiTransport& operator=(const MpiTransport&) = delete;

  int rank() const override { return rank_; }
  int ranks() const override { return ranks_; }
  std::unique_ptr<Endpoint> coordinator_endpoint() override {
    return std::make_unique<MpiEndpoint>(comm_, true);
  }
  std::unique_ptr<Endpoint> rank_endpoint() override { return std::make_unique<MpiEndpoint>(comm_, false); }

  std::unique_ptr<Communicator> make_team(const std::vector<int>& ranks, int team, bool cuda) override {
    if (ranks.size() == 1) return std::make_unique<SelfCommunicator>();
    MPI_Group world = MPI_GROUP_NULL, group = MPI_GROUP_NULL;
    MPI_Comm comm = MPI_COMM_NULL;
    LACUNA_MPI(MPI_Comm_group(comm_, &world));
    LACUNA_MPI(MPI_Group_incl(world, static_cast<int>(ranks.size()), ranks.data(), &group));
    // Collective over the team alone: the rest of the world goes on working.
    LACUNA_MPI(MPI_Comm_create_group(comm_, group, team % 16384, &comm));
    MPI_Group_free(&group);
    MPI_Group_free(&world);
    MpiSession::return_errors(comm);
    auto communicator = make_team_communicator(comm, cuda ? Device::kCuda : Device::kCpu);
    LACUNA_MPI(MPI_Comm_free(&comm));
    return communicator;
  }

  std::string broadcast(std::string text) override {
    auto size = static_cast<std::int64_t>(text.size());
    LACUNA_MPI(MPI_Bcast(&size, 1, MPI_INT64_T, 0, comm_));
    text.resize(static_cast<std::size_t>(size));
    constexpr std::size_t kPiece = std::size_t{1} << 30;
    for (std::size_t done = 0; done < text.size(); done += kPiece) {
      const auto piece = static_cast<int>(std::min(kPiece, text.size() - done));
      LACUNA_MPI(MPI_Bcast(text.data() + done, piece, MPI_CHAR, 0, comm_));
    }
    return text;
  }

  std::vector<std::string> gather(const std::string& text) override {
    const int size = static_cast<int>(text.size());
    std::vector<int> sizes(static_cast<std::size_t>(ranks_)), offsets(static_cast<std::size_t>(ranks_), 0);
    LACUNA_MPI(MPI_Gather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, 0, comm_));
    int total = 0;
    for (std::size_t r = 0; r < sizes.size() && rank_ == 0; ++r) offsets[r] = total, total += sizes[r];
    std::string all(static_cast<std::size_t>(total), '\0');
    LACUNA_MPI(MPI_Gatherv(text.data(), size, MPI_CHAR, all.data(), sizes.data(), offsets.data(), MPI_CHAR, 0,
                           comm_));
    std::vector<std::string> texts;
    for (std::size_t r = 0; r < sizes.size() && rank_ == 0; ++r) {
      texts.push_back(all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(sizes[r])));
    }
    return texts;
  }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, ranks_ = 1;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport() { return std::make_unique<MpiTransport>(); }

}  // namespace lacuna
