// Skips with exit code 77 where there is no GPU, and says how many tests that leaves out.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/cuda.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (lacuna::cuda_device_count() == 0) {
    std::printf("skipped: no CUDA device; %d GPU tests were not run\n",
                ::testing::UnitTest::GetInstance()->total_test_count());
    return 77;
  }
  return RUN_ALL_TESTS();
}
