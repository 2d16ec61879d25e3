// Runs a fuzz target as an ordinary test: every seed file whole and line by line, then seeded mutations of
// them.
//   TARGET_fuzz_test ITERATIONS SEED_FILE ...
// With clang, -DLACUNA_FUZZ=ON builds the same targets for libFuzzer instead.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/rng.h"
#include "core/text.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

/// One to four edits: flip a bit, replace, insert or remove bytes, repeat a piece, cut the end, splice in
/// another seed.
std::string mutate(std::string text, const std::vector<std::string>& seeds, lacuna::Rng& rng) {
  for (auto edits = 1 + rng.below(4); edits > 0; --edits) {
    const std::size_t at = text.empty() ? 0 : rng.below(text.size());
    const std::size_t length = text.empty() ? 0 : 1 + rng.below(std::min<std::size_t>(text.size() - at, 16));
    switch (rng.below(7)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8)));
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(rng.below(256));
        break;
      case 2:
        text.insert(at, 1 + rng.below(3), static_cast<char>("\"{}[]:,-0.9eE \n\0\xff&*!|>"[rng.below(24)]));
        break;
      case 3:
        text.erase(at, length);
        break;
      case 4:
        text.insert(at, text.substr(at, length));
        break;
      case 5:
        text.resize(at);
        break;
      default: {
        const std::string& other = seeds[rng.below(seeds.size())];
        const std::size_t from = other.empty() ? 0 : rng.below(other.size());
        text.insert(at, other.substr(from, 1 + rng.below(64)));
      }
    }
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s ITERATIONS SEED_FILE ...\n", argv[0]);
    return 2;
  }
  const long iterations = std::strtol(argv[1], nullptr, 10);
  std::vector<std::string> seeds;
  for (int i = 2; i < argc; ++i) {
    seeds.push_back(lacuna::read_file(argv[i]));
    for (auto& line : lacuna::split(seeds.back(), '\n')) seeds.push_back(std::move(line));
  }
  for (const auto& seed : seeds) run(seed);
  lacuna::Rng rng(1, lacuna::stream_id("fuzz"));
  for (long i = 0; i < iterations; ++i) run(mutate(seeds[rng.below(seeds.size())], seeds, rng));
  std::printf("%zu seeds and %ld mutations\n", seeds.size(), iterations);
}
