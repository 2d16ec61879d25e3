// libFuzzer target: no bytes crash the safetensors parser. The same function runs in a unit test over seeded
// mutations.
#include "tests/fuzz/safetensors_fuzz.h"

#include "core/error.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto tensors = lacuna::parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz");
    // What was accepted must be safe to read.
    unsigned sum = 0;
    for (const auto& [name, entry] : tensors) {
      if (entry.begin > entry.end || entry.end > size) __builtin_trap();
      for (std::size_t i = entry.begin; i < entry.end; ++i) sum += data[i];
    }
    asm volatile("" : : "r"(sum));  // keeps the reads
  } catch (const lacuna::Error& e) {
    if (e.kind() != lacuna::ErrorKind::kUsage) __builtin_trap();
  }
  return 0;
}
