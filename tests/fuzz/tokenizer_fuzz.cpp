// libFuzzer target: no bytes, as a tokenizer file, as a chat template or as text, may do more than throw
// lacuna::Error. tests/model/tokenizer/fuzz_test.cpp runs it over seeded inputs in every build.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/error.h"
#include "model/chat.h"
#include "model/tokenizer.h"

namespace {

/// Bytes before the first NUL are a tokenizer.json (or a template), those behind it a text.
void run(std::string_view input) {
  const std::string_view file = input.substr(0, input.find('\0'));
  const std::string_view text =
      input.size() > file.size() ? input.substr(file.size() + 1) : "fuzz <|im_start|> \xE2\x96";
  try {
    (void)lacuna::recognise_chat_template(file, "fuzz");
  } catch (const lacuna::Error&) {
  }
  try {
    const lacuna::Tokenizer tokenizer = lacuna::Tokenizer::parse(file, "fuzz");
    const auto ids = tokenizer.encode(text, true);
    const std::string decoded = tokenizer.decode(ids, false);
    lacuna::StreamDecoder stream(tokenizer, false);
    std::string streamed;
    for (const lacuna::TokenId id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    LACUNA_CHECK(streamed == decoded, "streaming differs");
  } catch (const lacuna::Error& e) {
    if (e.kind() == lacuna::ErrorKind::kInternal) throw;  // a broken invariant is a finding
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run({reinterpret_cast<const char*>(data), size});
  return 0;
}
