#include "attention/cpu/kernels.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"

namespace lacuna {

#if defined(__x86_64__)
namespace avx512 {
extern const CpuKernels kTable;
}
namespace avx2 {
extern const CpuKernels kTable;
}
#endif
namespace generic {
extern const CpuKernels kTable;
}

int supported_cpu_kernels(const CpuKernels* (&sets)[3]) {
  int count = 0;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    sets[count++] = &avx512::kTable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets[count++] = &avx2::kTable;
#endif
  sets[count++] = &generic::kTable;
  return count;
}

namespace {

const CpuKernels& choose() {
  const CpuKernels* sets[3];
  const int count = supported_cpu_kernels(sets);
  const char* wanted = std::getenv("LACUNA_CPU");
  if (wanted == nullptr || *wanted == '\0') return *sets[0];
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (std::string(wanted) == sets[i]->name) return *sets[i];
    names += (i > 0 ? ", " : "") + std::string(sets[i]->name);
  }
  throw_usage("LACUNA_CPU={}: this processor runs {}", wanted, names);
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace lacuna
