// AVX2 with FMA and F16C. Compiled with its flags; called only where the machine has them.
#include "model/cpu/kernels.h"
#if defined(__AVX2__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <utility>

namespace lacuna::cpu {

namespace {

struct V {
  using R = __m256;
  static constexpr int kWidth = 8;
  static R zero() { return _mm256_setzero_ps(); }
  static R set(float x) { return _mm256_set1_ps(x); }
  static R load(const float* p) { return _mm256_loadu_ps(p); }
  static R load_bf16(const std::uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static R load_f16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float* p, R x) { _mm256_storeu_ps(p, x); }
  static R add(R a, R b) { return _mm256_add_ps(a, b); }
  static R sub(R a, R b) { return _mm256_sub_ps(a, b); }
  static R mul(R a, R b) { return _mm256_mul_ps(a, b); }
  static R div(R a, R b) { return _mm256_div_ps(a, b); }
  static R max(R a, R b) { return _mm256_max_ps(a, b); }
  static R fma(R a, R b, R c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(R x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  /// exp(x) = 2^n exp(r), |r| <= ln2/2, exp(r) by a polynomial; within 2 ulp. Saturates just inside float's
  /// range.
  static R exp(R x) {
    x = _mm256_min_ps(_mm256_max_ps(x, set(-87.3f)), set(88.7f));
    const R n =
        _mm256_round_ps(mul(x, set(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    R r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    R p = set(1.9875691500e-4f);
    for (const float c :
         {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
      p = fma(p, r, set(c));
    }
    p = add(fma(mul(p, r), r, r), set(1.0f));
    // Two factors: n = 128 would overflow the exponent of one.
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    const auto power = [](__m256i e) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return mul(mul(p, power(half)), power(_mm256_sub_epi32(whole, half)));
  }
};

constexpr const char* kIsa = "avx2";
// 6 x 2 accumulators, 2 weight vectors and the broadcast fill 15 of 16 registers; up to 2 rows take 4
// vectors.
constexpr int kRowGroup = 6, kVectors = 2, kFewRows = 2, kManyVectors = 4;

#include "model/cpu/kernels_impl.h"

}  // namespace

const Kernels* kernels_avx2() { return &kTable; }

}  // namespace lacuna::cpu
#else
namespace lacuna::cpu {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace lacuna::cpu
#endif
