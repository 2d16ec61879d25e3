// main of MPI tests that need a GPU: rank r takes GPU r modulo their number.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "core/cuda.h"
#include "core/log.h"
#include "model/mpi.h"

namespace lacuna::testing {

inline int run_gpu_team_tests(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const MpiSession session(MPI_THREAD_MULTIPLE);
  log::configure(session.rank(), session.size());
  const int gpus = cuda_device_count();
  if (gpus == 0) {
    if (session.rank() == 0)
      std::printf("skipped: no CUDA device; %d GPU tests were not run\n",
                  ::testing::UnitTest::GetInstance()->total_test_count());
    return 77;
  }
  if (cudaSetDevice(session.rank() % gpus) != cudaSuccess) return 1;
  // One report is enough; the others still print what fails.
  if (session.rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    auto* printer = listeners.Release(listeners.default_result_printer());
    struct FailuresOnly final : ::testing::EmptyTestEventListener {
      void OnTestPartResult(const ::testing::TestPartResult& result) override {
        if (result.failed())
          std::printf("%s:%d: %s\n", result.file_name() == nullptr ? "" : result.file_name(),
                      result.line_number(), result.message());
      }
    };
    delete printer;
    listeners.Append(new FailuresOnly);
  }
  return RUN_ALL_TESTS();
}

}  // namespace lacuna::testing
