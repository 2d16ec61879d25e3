// libFuzzer target: any text is a sweep or a usage error; a sweep's canonical form reads back.
#include <string_view>

#include "core/error.h"
#include "sweeps/sweep.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const lacuna::Sweep sweep = lacuna::parse_sweep(lacuna::Document::parse(text, "fuzz"));
    const std::string canonical = sweep.to_json().dump();
    lacuna::parse_sweep(lacuna::Document::parse(canonical, "canonical"));
  } catch (const lacuna::Error& e) {
    if (e.kind() != lacuna::ErrorKind::kUsage) __builtin_trap();
  }
  return 0;
}
