// The fuzz target over seeded inputs: damaged tokenizer files, damaged templates, random bytes.
#include <gtest/gtest.h>

#include "core/file.h"
#include "core/json.h"
#include "corpus.h"
#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace lacuna::test {
namespace {

void run(const std::string& input) {
  ASSERT_NO_THROW(LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size()))
      << input;
}

/// A file of a real shape, small enough to be damaged thousands of times.
std::string small_file(const char* name) {
  Json file = read_json_file(std::string(kGolden) + name + ".json");
  Json& model = file["model"];
  model["merges"] = Json::parse(R"([["a", "b"], ["ab", "c"]])");
  Json vocab = {{"a", 0},   {"b", 1},     {"ab", 2},     {"c", 3},
                {"abc", 4}, {"<unk>", 5}, {"\u2581", 6}, {"<0x41>", 7}};
  model["vocab"] = vocab;
  file["added_tokens"] = Json::parse(
      R"([{"id":8,"content":"<|im_start|>","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,"special":true}])");
  return file.dump();
}

std::string damaged(std::string text, SplitMix& r) {
  static constexpr std::string_view kPieces[] = {"null",
                                                 "-1",
                                                 "\"\"",
                                                 "[]",
                                                 "{}",
                                                 "\"\\ud800\"",
                                                 "1e999",
                                                 "true",
                                                 "\"Sequence\"",
                                                 "\"ByteLevel\"",
                                                 "{\"Regex\":\"(a+)+[^b]\"}",
                                                 "\\",
                                                 "\xff"};
  for (std::uint64_t n = 1 + r.below(3); n > 0 && !text.empty(); --n) {
    const std::size_t at = r.below(text.size());
    switch (r.below(5)) {
      case 0:
        text[at] = static_cast<char>(r.below(256));
        break;
      case 1:
        text.erase(at, 1 + r.below(8));
        break;
      case 2:
        text.insert(at, kPieces[r.below(std::size(kPieces))]);
        break;
      case 3:
        text.insert(at, text.substr(r.below(text.size()), r.below(30)));
        break;
      default: {  // another value for a field
        const std::size_t colon = text.find(':', at);
        const std::size_t end = colon == text.npos ? colon : text.find_first_of(",}]", colon);
        if (end != text.npos) text.replace(colon + 1, end - colon - 1, kPieces[r.below(std::size(kPieces))]);
      }
    }
  }
  return text;
}

TEST(TokenizerFuzzTest, DamagedFiles) {
  const std::vector<std::string> fragments = read_fragments();
  for (const char* name : kTokenizers) {
    const std::string file = small_file(name);
    ASSERT_NO_THROW(Tokenizer::parse(file, name)) << "the undamaged file must load, or nothing is tested";
    SplitMix r(7);
    for (std::uint64_t i = 0; i < 1500; ++i) {
      run(damaged(file, r) + std::string(1, '\0') + corpus_line(fragments, 5, i));
      if (HasFatalFailure()) return;
    }
  }
}

TEST(TokenizerFuzzTest, DamagedTemplates) {
  SplitMix r(8);
  for (const Json& c : read_json_file(std::string(kGolden) + "chat.json")) {
    const auto jinja = c["template"].get<std::string>();
    for (int i = 0; i < 500; ++i) run(damaged(jinja, r));
    for (std::size_t i = 0; i < jinja.size(); ++i) run(jinja.substr(0, i));
  }
}

TEST(TokenizerFuzzTest, RandomBytes) {
  SplitMix r(9);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(r.below(200), '\0');
    for (char& c : bytes) c = static_cast<char>(r.below(256));
    run(bytes);
  }
}

}  // namespace
}  // namespace lacuna::test
