// AVX-512 (F, BW, DQ, VL). Compiled with its flags; called only where the machine has them.
#include "model/cpu/kernels.h"
#if defined(__AVX512F__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <utility>

namespace lacuna::cpu {

namespace {

struct V {
  using R = __m512;
  static constexpr int kWidth = 16;
  static R zero() { return _mm512_setzero_ps(); }
  static R set(float x) { return _mm512_set1_ps(x); }
  static R load(const float* p) { return _mm512_loadu_ps(p); }
  static R load_bf16(const std::uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static R load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, R x) { _mm512_storeu_ps(p, x); }
  static R add(R a, R b) { return _mm512_add_ps(a, b); }
  static R sub(R a, R b) { return _mm512_sub_ps(a, b); }
  static R mul(R a, R b) { return _mm512_mul_ps(a, b); }
  static R div(R a, R b) { return _mm512_div_ps(a, b); }
  static R max(R a, R b) { return _mm512_max_ps(a, b); }
  static R fma(R a, R b, R c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(R x) { return _mm512_reduce_add_ps(x); }
  /// exp(x) = 2^n exp(r), |r| <= ln2/2, exp(r) by a polynomial; within 2 ulp. Overflows to inf, underflows to
  /// 0.
  static R exp(R x) {
    x = _mm512_min_ps(_mm512_max_ps(x, set(-104.0f)), set(89.0f));
    const R n = _mm512_roundscale_ps(mul(x, set(1.44269504088896341f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    R r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    R p = set(1.9875691500e-4f);
    for (const float c :
         {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
      p = fma(p, r, set(c));
    }
    p = add(fma(mul(p, r), r, r), set(1.0f));
    return _mm512_scalef_ps(p, n);
  }
};

constexpr const char* kIsa = "avx512";
// 12 x 2 accumulators, 2 weight vectors and the broadcast fill 27 of 32 registers; up to 5 rows take 4
// vectors.
constexpr int kRowGroup = 12, kVectors = 2, kFewRows = 5, kManyVectors = 4;

#include "model/cpu/kernels_impl.h"

}  // namespace

const Kernels* kernels_avx512() { return &kTable; }

}  // namespace lacuna::cpu
#else
namespace lacuna::cpu {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace lacuna::cpu
#endif
