// Tokens per second of one core. Not a test: build/PRESET/tests/model/tokenizer/tokenizer_speed FILE.json
// [TEXT]
#include <fmt/format.h>

#include <chrono>

#include "core/file.h"
#include "corpus.h"
#include "model/tokenizer.h"

int main(int argc, char** argv) {
  using namespace lacuna;
  if (argc < 2) {
    fmt::print(stderr, "usage: tokenizer_speed FILE.json [TEXT]\n");
    return 2;
  }
  const Tokenizer tokenizer = Tokenizer::parse(read_file(argv[1]), argv[1]);
  std::string text;
  if (argc > 2) {
    text = read_file(argv[2]);
  } else {
    const auto fragments = test::read_fragments();
    for (std::uint64_t i = 0; i < 12000; ++i) text += test::corpus_line(fragments, 1, i) + "\n";
  }
  for (int round = 0; round < 4; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer.encode(text);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    fmt::print("encode: {} bytes, {} tokens, {:.3f} s: {:.2f} M tokens/s, {:.1f} MB/s\n", text.size(),
               ids.size(), seconds, static_cast<double>(ids.size()) / seconds / 1e6,
               static_cast<double>(text.size()) / seconds / 1e6);
    const auto middle = std::chrono::steady_clock::now();
    const std::string back = tokenizer.decode(ids);
    const double decode_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - middle).count();
    fmt::print("decode: {:.2f} M tokens/s\n", static_cast<double>(ids.size()) / decode_seconds / 1e6);
  }
}
