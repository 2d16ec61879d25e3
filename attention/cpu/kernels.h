// The inner loops of CPU attention as plain functions on plain pointers, one set per instruction set. The
// choice is made once, at run time. Everything above this line of the house (lists, heads, threads) is in
// prefill_cpu.cpp and decode_cpu.cpp.
#pragma once

#include <cstdint>

namespace lacuna {

/// A few query rows of one head against a stream of keys.
struct PrefillRows {
  const float* q = nullptr;  ///< [rows, head_dim], rows q_stride apart
  std::int64_t q_stride = 0;
  std::int64_t first_row = 0;          ///< Position of q's first row in the prompt.
  int rows = 0;                        ///< 1 .. CpuKernels::max_rows
  const std::int32_t* keys = nullptr;  ///< [key_count] positions to visit; those after a row are masked
  std::int64_t key_count = 0;
  const float* k = nullptr;  ///< [tokens, head_dim], rows k_stride apart
  const float* v = nullptr;
  std::int64_t k_stride = 0, v_stride = 0;
  int head_dim = 0;
  float scale = 1, softcap = 0;
  int window = 0;
  float* out = nullptr;  ///< [rows, head_dim], rows out_stride apart
  std::int64_t out_stride = 0;
  float* scratch = nullptr;  ///< CpuKernels::prefill_scratch(head_dim) floats, 64-byte aligned
};

/// A run of tokens of one kv head for the query heads that share it.
struct DecodeRun {
  const float* q = nullptr;  ///< [q_rows, head_dim]
  int q_rows = 0;
  const float* pool = nullptr;
  std::int64_t page_elements = 0;
  const std::int32_t* page_ids = nullptr;  ///< of the sequence
  const std::int32_t* pages =
      nullptr;  ///< [page_count] indices into page_ids; null: first_page, first_page + 1, ...
  std::int64_t first_page = 0, page_count = 0;
  std::int64_t token_begin = 0, token_end = 0;  ///< Only tokens in [token_begin, token_end) are read.
  int head_dim = 0;
  float scale = 1, softcap = 0;
  /// Unnormalised result: out [q_rows, head_dim], with running maximum (base 2) and sum per row.
  float* out = nullptr;
  float* maximum = nullptr;
  float* sum = nullptr;
};

struct CpuKernels {
  const char* name;  ///< "avx512", "avx2", "generic"
  int max_rows;
  std::int64_t (*prefill_scratch)(int head_dim);  ///< floats
  void (*prefill_rows)(const PrefillRows&);
  void (*decode_run)(const DecodeRun&);
  /// c[m][n] = alpha * sum over x of a[m][x] * b[n][x], x ascending. b_packed: pack_size(k) floats of
  /// scratch.
  void (*gemm_nt)(std::int64_t m, std::int64_t n, int k, float alpha, const float* a, std::int64_t lda,
                  const float* b, std::int64_t ldb, float* c, std::int64_t ldc, float* b_packed);
  std::int64_t (*pack_size)(int k);
  /// x[i] = exp(x[i] - maximum) in place; returns their sum: float over at most 16 terms per lane, then
  /// double.
  double (*exp_sum)(float* x, std::int64_t n, float maximum);
  /// The largest element; -FLT_MAX for none. NaN elements are skipped.
  float (*maximum)(const float* x, std::int64_t n);
  /// to[i] += double(float(x[i] * factor)).
  void (*add_scaled)(double* to, const float* x, std::int64_t n, float factor);
  /// to[i] = max(to[i], x[i] * factor).
  void (*max_scaled)(float* to, const float* x, std::int64_t n, float factor);
  /// Quest bounds: out[p] = sum over c of plus[c] * page_max[p][c] + minus[c] * page_min[p][c]; bounds
  /// [pages, 2, dim], min first.
  void (*page_bounds)(const float* bounds, std::int64_t pages, int dim, const float* plus, const float* minus,
                      float* out);
};

/// The best set this processor runs. LACUNA_CPU=avx512|avx2|generic asks for one; an unknown or unsupported
/// one is a kUsage error.
const CpuKernels& cpu_kernels();
/// For tests: every set this processor runs, best first.
int supported_cpu_kernels(const CpuKernels* (&sets)[3]);

}  // namespace lacuna
