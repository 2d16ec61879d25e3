#include <cstdlib>
#include <string>

#include "core/error.h"
#include "model/cpu/kernels.h"

namespace lacuna::cpu {

namespace {

bool machine_has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool machine_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

const Kernels& choose() {
  const char* text = std::getenv("LACUNA_CPU");
  const std::string wanted = text == nullptr ? "" : text;
  LACUNA_REQUIRE(wanted.empty() || wanted == "avx512" || wanted == "avx2" || wanted == "generic",
                 "LACUNA_CPU={}: expected avx512, avx2 or generic", wanted);
  const bool has_avx512 = machine_has_avx512() && kernels_avx512() != nullptr;
  const bool has_avx2 = machine_has_avx2() && kernels_avx2() != nullptr;
  LACUNA_REQUIRE((wanted != "avx512" || has_avx512) && (wanted != "avx2" || has_avx2),
                 "LACUNA_CPU={}: this machine or this build does not have it", wanted);
  if (has_avx512 && (wanted.empty() || wanted == "avx512")) return *kernels_avx512();
  if (has_avx2 && wanted != "generic") return *kernels_avx2();
  return *kernels_generic();
}

}  // namespace

const Kernels& best_kernels() {
  static const Kernels& best = choose();
  return best;
}

}  // namespace lacuna::cpu
