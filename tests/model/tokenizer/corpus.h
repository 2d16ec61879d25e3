// The corpus of the tokenizer tests: made, not stored. golden/corpus.py does the same, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lacuna::test {

/// splitmix64
class SplitMix {
 public:
  explicit SplitMix(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::uint64_t below(std::uint64_t n) { return next() % n; }

 private:
  std::uint64_t state_;
};

/// golden/fragments.txt, decoded.
std::vector<std::string> read_fragments();

/// Line `index` of the corpus with this seed: some of it is not valid UTF-8.
std::string corpus_line(const std::vector<std::string>& fragments, std::uint64_t seed, std::uint64_t index);

constexpr std::uint64_t kCorpusSeed = 1;
constexpr const char* kGolden = "tests/model/tokenizer/golden/";
constexpr const char* kTokenizers[] = {"qwen", "llama3", "gemma", "mistral", "metaspace", "options"};

}  // namespace lacuna::test
