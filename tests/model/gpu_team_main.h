// main of MPI tests that need a GPU: rank r takes GPU r modulo their number.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "core/cuda.h"
#include "core/log.h"
#include "model/mpi.h"
#if LACUNA_HAS_NCCL
#include <nccl.h>

#include "model/nccl_communicator.h"
#endif

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
#if LACUNA_HAS_NCCL
  // Tests of ranks that share a GPU over NCCL are registered with this.
  const char* share = std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
  if (share != nullptr && std::string_view(share) == "1" && session.size() > gpus &&
      !nccl_joins_ranks_on_one_gpu()) {
    int version = 0;
    if (session.rank() == 0 && ncclGetVersion(&version) == ncclSuccess)
      std::printf(
          "skipped: %d ranks, %d GPUs, and NCCL %d.%d cannot join ranks on one GPU (2.30 and later can)\n",
          session.size(), gpus, version / 10000, version % 10000 / 100);
    return 77;
  }
#endif
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
