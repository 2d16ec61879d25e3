// The inner loops of CpuOps, compiled once per instruction set and chosen at run time.
//
// Every result element is formed by a fixed sequence of operations that does not depend on how many rows,
// columns or threads share the work: a dot product is one chain of fused multiply-adds over k = 0, 1, ...
// Therefore a batch of rows gives each row the bits it gets alone, prefill and decode agree, and any
// partition among threads is allowed. Different instruction sets may differ in the last bits (the portable
// one has no fused multiply-add).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace lacuna::cpu {

/// Outputs of one weight panel. A packed weight is [ceil(outputs / kPanel)][inputs][kPanel], zero-padded.
inline constexpr int kPanel = 32;

/// A block of y = x w^T over packed operands.
struct GemmBlock {
  const float* a = nullptr;  ///< Packed rows: groups of row_group rows, each [inputs][rows in group].
  std::int64_t rows = 0;
  const void* b = nullptr;    ///< First panel.
  DType dtype = DType::kF32;  ///< Of b: kF32, kBF16 or kF16.
  std::int64_t panels = 0;
  std::int64_t inputs = 0;
  std::int64_t columns = 0;     ///< Outputs in these panels, at most panels * kPanel.
  const float* bias = nullptr;  ///< [columns] or null.
  bool accumulate = false;      ///< y += instead of y =
  float* y = nullptr;           ///< [rows, columns], row stride y_stride.
  std::int64_t y_stride = 0;
};

/// One instruction set's inner loops.
struct Kernels {
  const char* isa;
  int row_group;  ///< Rows that the packed x keeps together.

  void (*gemm)(const GemmBlock& block);
  /// Packs rows of x ([rows, inputs], stride x_stride) as GemmBlock::a wants them.
  void (*pack_rows)(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t inputs, float* a);
  /// out = x / sqrt(mean(x^2) + eps) * weight over n elements.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t n, float* out);
  /// out = gate * sigmoid(gate) * up
  void (*silu_mul)(const float* gate, const float* up, std::int64_t n, float* out);
  /// out = gelu_tanh(gate) * up
  void (*gelu_mul)(const float* gate, const float* up, std::int64_t n, float* out);
  /// x = cap * tanh(x / cap)
  void (*soft_cap)(float* x, float cap, std::int64_t n);
  /// Rotates the pairs (c, c + half) of one head in place.
  void (*rotate)(float* x, const float* cos, const float* sin, std::int64_t half);
  /// y += x
  void (*add)(const float* x, std::int64_t n, float* y);
  /// Largest element; NaN when there is one.
  float (*max)(const float* x, std::int64_t n);
};

/// The best instruction set of this machine: avx512, avx2 or generic. LACUNA_CPU=avx2|generic asks for a
/// lesser one.
const Kernels& best_kernels();

// The tables of the instruction sets; null where the compiler's target has none (not x86-64).
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
const Kernels* kernels_generic();

}  // namespace lacuna::cpu
