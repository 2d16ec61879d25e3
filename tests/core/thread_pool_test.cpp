#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "core/error.h"

namespace lacuna {
namespace {

TEST(ThreadPool, EveryBlockRunsOnce) {
  for (const int threads : {1, 2, 8}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 200; ++repeat) {
      std::vector<int> hits(137);
      pool.parallel_for(137, [&](std::int64_t i) { ++hits[static_cast<std::size_t>(i)]; });
      EXPECT_EQ(hits, std::vector<int>(137, 1));
    }
  }
}

TEST(ThreadPool, NestedLoopsRunInline) {
  ThreadPool pool(4);
  std::atomic<int> total = 0;
  pool.parallel_for(8, [&](std::int64_t) { pool.parallel_for(8, [&](std::int64_t) { ++total; }); });
  EXPECT_EQ(total, 64);
}

TEST(ThreadPool, ExceptionsReachTheCallerAndThePoolSurvives) {
  ThreadPool pool(4);
  EXPECT_THROW(pool.parallel_for(100, [](std::int64_t i) { LACUNA_REQUIRE(i != 50, "block {}", i); }), Error);
  std::atomic<int> total = 0;
  pool.parallel_for(100, [&](std::int64_t) { ++total; });
  EXPECT_EQ(total, 100);
}

}  // namespace
}  // namespace lacuna
