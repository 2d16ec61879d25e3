// One thread pool per process and a parallel loop. Results never depend on the number of threads: work is cut into
// blocks that the caller chooses, and every block writes its own output.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace lacuna {

/// Runs blocks of a loop on a fixed set of threads. The calling thread takes part. Not re-entrant: a parallel_for
/// inside a parallel_for runs its blocks on the calling thread.
class ThreadPool {
 public:
  /// `threads` counts the calling thread; at least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  /// Calls body(i) for every i in [0, count), in any order, on any thread; returns when all are done.
  /// The first exception thrown by a body is rethrown here; the remaining blocks are skipped.
  void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Threads this process may use: LACUNA_THREADS, else the cores it may run on (affinity), at least 1.
int default_threads();

}  // namespace lacuna
