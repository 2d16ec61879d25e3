// Portable C++: any machine. The compiler turns the fixed-size loops into what vectors its target has.
#include <cmath>
#include <cstring>
#include <utility>

#include "model/cpu/kernels.h"

namespace lacuna::cpu {

namespace {

struct V {
  static constexpr int kWidth = 8;
  struct R {
    float lane[kWidth];
  };
  template <class F>
  static R map(F f) {
    R out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = f(i);
    return out;
  }
  static R zero() { return set(0.0f); }
  static R set(float x) {
    return map([&](int) { return x; });
  }
  static R load(const float* p) {
    return map([&](int i) { return p[i]; });
  }
  static R load_bf16(const std::uint16_t* p) {
    return map([&](int i) { return to_float(BFloat16{p[i]}); });
  }
  static R load_f16(const std::uint16_t* p) {
    return map([&](int i) { return to_float(Float16{p[i]}); });
  }
  static void store(float* p, const R& x) { std::memcpy(p, x.lane, sizeof(x.lane)); }
  static R add(const R& a, const R& b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static R sub(const R& a, const R& b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static R mul(const R& a, const R& b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static R div(const R& a, const R& b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static R max(const R& a, const R& b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static R fma(const R& a, const R& b, const R& c) {
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static R exp(const R& x) {
    return map([&](int i) { return std::exp(x.lane[i]); });
  }
  static float sum(const R& x) {
    float total = 0;
    for (const float lane : x.lane) total += lane;
    return total;
  }
};

constexpr const char* kIsa = "generic";
constexpr int kRowGroup = 4, kVectors = 1, kFewRows = 2, kManyVectors = 2;

#include "model/cpu/kernels_impl.h"

}  // namespace

const Kernels* kernels_generic() { return &kTable; }

}  // namespace lacuna::cpu
