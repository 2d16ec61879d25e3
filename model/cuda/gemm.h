// Matrix products: y [rows, outputs] = x [rows, inputs] w^T + bias, bfloat16 in, float32 sums. Few rows by a
// kernel of ours (skinny.h), more by cuBLASLt.
#pragma once

#include <cstdint>
#include <memory>

#include "core/cuda.h"

namespace lacuna {

/// Which way a product goes; kAuto takes kSkinny for up to kSkinnyRows rows.
enum class GemmPath { kAuto, kSkinny, kLibrary };

struct GemmCall {
  const void* x = nullptr;     ///< bf16 [rows, inputs]
  const void* w = nullptr;     ///< bf16 [outputs, inputs]
  const void* bias = nullptr;  ///< bf16 [outputs] or null; not for float32 y by kLibrary
  void* y = nullptr;           ///< [rows, outputs]
  std::int64_t rows = 0, outputs = 0, inputs = 0;
  bool accumulate = false;    ///< y += instead of y =; added in float32 before the one rounding
  bool float_output = false;  ///< y float32 instead of bf16
  GemmPath path = GemmPath::kAuto;
};

/// Up to kSkinnyRows rows each row gets the bits it gets alone. cuBLASLt's algorithm of a shape is asked for
/// once and kept, and sums that are split over blocks are put together in float32 in a fixed order: the same
/// call gives the same bits on the same kind of GPU. After the first call of a shape nothing is allocated and
/// nothing waits, so calls can be captured in a graph. Rows of x and y start at multiples of 16 bytes (y: as
/// far as `outputs` allows); inputs is a multiple of 8.
class GemmRunner {
 public:
  explicit GemmRunner(cudaStream_t stream);
  ~GemmRunner();
  GemmRunner(const GemmRunner&) = delete;
  GemmRunner& operator=(const GemmRunner&) = delete;

  void run(const GemmCall& call);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lacuna
