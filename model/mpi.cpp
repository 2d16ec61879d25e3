#include "model/mpi.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <thread>

#include "core/error.h"

namespace lacuna {

namespace {

/// Floats that one reduction handles at once: bounds the scratch memory at size() times this.
constexpr std::size_t kPieceFloats = std::size_t{1} << 20;
/// Below this, gathering everything and adding beats two rounds of messages.
constexpr std::size_t kGatherFloats = 2048;
/// MPI counts are int: longer messages go in pieces of this many bytes.
constexpr std::size_t kMaxMessage = std::size_t{1} << 30;

int narrow(std::size_t count) {
  LACUNA_CHECK(count <= static_cast<std::size_t>(std::numeric_limits<int>::max()),
               "an MPI message of {} elements", count);
  return static_cast<int>(count);
}

/// out[i] = pieces[0][i] + pieces[1][i] + ..., in this order.
void sum_in_order(const float* pieces, int ranks, std::size_t stride, std::size_t count, float* out) {
  std::copy_n(pieces, count, out);
  for (int r = 1; r < ranks; ++r) {
    const float* piece = pieces + static_cast<std::size_t>(r) * stride;
    for (std::size_t i = 0; i < count; ++i) out[i] += piece[i];
  }
}

}  // namespace

MpiSession::MpiSession(int thread_level) {
  int provided = 0;
  LACUNA_MPI(MPI_Init_thread(nullptr, nullptr, thread_level, &provided));
  if (provided < thread_level) {
    throw_library("MPI: the library offers thread level {}, but Lacuna needs {}", provided, thread_level);
  }
  return_errors(MPI_COMM_WORLD);
  LACUNA_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
  LACUNA_MPI(MPI_Comm_size(MPI_COMM_WORLD, &size_));
}

MpiSession::~MpiSession() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // While an exception unwinds in a parallel run, finalizing would wait for ranks that never come; main
  // aborts instead.
  if (finalized == 0 && (std::uncaught_exceptions() == 0 || size_ == 1)) MPI_Finalize();
}

void MpiSession::return_errors(MPI_Comm comm) {
  LACUNA_MPI(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN));
}

bool launched_by_mpi() {
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMI_SIZE") != nullptr ||
         std::getenv("PMIX_RANK") != nullptr;
}

void run_together(const MpiSession& session, const std::function<void()>& body) {
  if (session.size() == 1) return body();
  // kind + 1 (0: no error), then the text.
  constexpr std::size_t kBytes = 2048;
  std::vector<char> mine(kBytes, '\0'), all(kBytes * static_cast<std::size_t>(session.size()));
  try {
    body();
  } catch (const Error& e) {
    mine[0] = static_cast<char>(static_cast<int>(e.kind()) + 1);
    std::string(e.what()).copy(mine.data() + 1, kBytes - 2);
  }
  LACUNA_MPI(MPI_Allgather(mine.data(), narrow(kBytes), MPI_CHAR, all.data(), narrow(kBytes), MPI_CHAR,
                           MPI_COMM_WORLD));
  for (int r = 0; r < session.size(); ++r) {
    const char* error = all.data() + static_cast<std::size_t>(r) * kBytes;
    if (error[0] == 0) continue;
    const auto kind = static_cast<ErrorKind>(error[0] - 1);
    if (session.rank() == 0) throw Error(kind, error + 1);
    std::this_thread::sleep_for(std::chrono::seconds(10));
    std::_Exit(exit_code(kind));
  }
}

std::vector<std::string> gather_texts(const MpiSession& session, const std::string& text) {
  const auto ranks = static_cast<std::size_t>(session.size());
  const int mine = narrow(text.size());
  std::vector<int> sizes(ranks), offsets(ranks, 0);
  LACUNA_MPI(MPI_Allgather(&mine, 1, MPI_INT, sizes.data(), 1, MPI_INT, MPI_COMM_WORLD));
  std::size_t total = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    offsets[r] = narrow(total);
    total += static_cast<std::size_t>(sizes[r]);
  }
  std::string all(total, '\0');
  LACUNA_MPI(MPI_Allgatherv(text.data(), mine, MPI_CHAR, all.data(), sizes.data(), offsets.data(), MPI_CHAR,
                            MPI_COMM_WORLD));
  std::vector<std::string> texts;
  for (std::size_t r = 0; r < ranks; ++r)
    texts.push_back(all.substr(static_cast<std::size_t>(offsets[r]), static_cast<std::size_t>(sizes[r])));
  return texts;
}

MpiCommunicator::MpiCommunicator(MPI_Comm comm) {
  LACUNA_MPI(MPI_Comm_dup(comm, &comm_));
  MpiSession::return_errors(comm_);
  LACUNA_MPI(MPI_Comm_rank(comm_, &rank_));
  LACUNA_MPI(MPI_Comm_size(comm_, &size_));
}

MpiCommunicator::~MpiCommunicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized == 0 && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
}

void MpiCommunicator::reduce_piece(float* data, std::size_t count) {
  const auto ranks = static_cast<std::size_t>(size_);
  if (count <= kGatherFloats) {
    scratch_.resize(std::max(scratch_.size(), ranks * count));
    LACUNA_MPI(
        MPI_Allgather(data, narrow(count), MPI_FLOAT, scratch_.data(), narrow(count), MPI_FLOAT, comm_));
    sum_in_order(scratch_.data(), size_, count, count, data);
    return;
  }
  // Rank r adds slice r of every rank in rank order; then the sums are shared. Slices are padded to equal
  // length.
  const std::size_t slice = (count + ranks - 1) / ranks;
  scratch_.resize(std::max(scratch_.size(), 2 * ranks * slice));
  float* padded = scratch_.data();
  float* received = padded + ranks * slice;
  std::copy_n(data, count, padded);
  std::fill(padded + count, padded + ranks * slice, 0.0f);
  LACUNA_MPI(MPI_Alltoall(padded, narrow(slice), MPI_FLOAT, received, narrow(slice), MPI_FLOAT, comm_));
  sum_in_order(received, size_, slice, slice, padded);
  LACUNA_MPI(MPI_Allgather(padded, narrow(slice), MPI_FLOAT, received, narrow(slice), MPI_FLOAT, comm_));
  std::copy_n(received, count, data);
}

void MpiCommunicator::all_reduce_sum(float* data, std::size_t count) {
  for (std::size_t at = 0; at < count; at += kPieceFloats)
    reduce_piece(data + at, std::min(kPieceFloats, count - at));
}

void MpiCommunicator::all_gather(const void* send, void* receive, std::size_t bytes) {
  if (bytes <= kMaxMessage) {
    const void* from = send;
    const auto* own = static_cast<std::byte*>(receive) + static_cast<std::size_t>(rank_) * bytes;
    if (send == own) from = MPI_IN_PLACE;
    LACUNA_MPI(MPI_Allgather(from, narrow(bytes), MPI_BYTE, receive, narrow(bytes), MPI_BYTE, comm_));
    return;
  }
  auto* out = static_cast<std::byte*>(receive);
  if (send != out + static_cast<std::size_t>(rank_) * bytes)
    std::memcpy(out + static_cast<std::size_t>(rank_) * bytes, send, bytes);
  for (int root = 0; root < size_; ++root)
    broadcast(out + static_cast<std::size_t>(root) * bytes, bytes, root);
}

void MpiCommunicator::broadcast(void* data, std::size_t bytes, int root) {
  auto* at = static_cast<std::byte*>(data);
  for (std::size_t done = 0; done < bytes; done += kMaxMessage) {
    LACUNA_MPI(MPI_Bcast(at + done, narrow(std::min(kMaxMessage, bytes - done)), MPI_BYTE, root, comm_));
  }
}

void MpiCommunicator::barrier() { LACUNA_MPI(MPI_Barrier(comm_)); }

}  // namespace lacuna
