#include "model/chat.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "model/tokenizer_unicode.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

constexpr std::string_view kQwen2System = "You are a helpful assistant.";
constexpr std::string_view kQwen25System =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
// The day is the one that Llama's templates fall back to. Llama 3.2 puts today's date; results must not
// depend on it.
constexpr std::string_view kLlamaSystem =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

struct Family {
  ChatFormat format;
  std::string_view name;
  std::string_view bos;     // text of the BOS token, or ""
  std::string_view turn;    // what opens a user turn
  std::string_view end;     // what closes it and opens the answer
  std::string_view system;  // the whole system turn, or ""
  bool trims;               // the template strips white space around the message
};

const std::array<Family, 7>& families() {
  static const std::string qwen2 = fmt::format("<|im_start|>system\n{}<|im_end|>\n", kQwen2System);
  static const std::string qwen25 = fmt::format("<|im_start|>system\n{}<|im_end|>\n", kQwen25System);
  static const std::string llama31 =
      fmt::format("<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>", kLlamaSystem);
  constexpr std::string_view kMlTurn = "<|im_start|>user\n", kMlEnd = "<|im_end|>\n<|im_start|>assistant\n";
  constexpr std::string_view kLlamaTurn = "<|start_header_id|>user<|end_header_id|>\n\n",
                             kLlamaEnd = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
  constexpr std::string_view kLlamaBos = "<|begin_of_text|>";
  static const std::array<Family, 7> all = {{
      {ChatFormat::kNone, "none", "", "", "", "", false},
      {ChatFormat::kChatML, "chatml", "", kMlTurn, kMlEnd, "", false},
      {ChatFormat::kLlama3, "llama3", kLlamaBos, kLlamaTurn, kLlamaEnd, "", true},
      {ChatFormat::kGemma, "gemma", "<bos>", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n",
       "", true},
      {ChatFormat::kQwen2, "qwen2", "", kMlTurn, kMlEnd, qwen2, false},
      {ChatFormat::kQwen25, "qwen2.5", "", kMlTurn, kMlEnd, qwen25, false},
      {ChatFormat::kLlama31, "llama3.1", kLlamaBos, kLlamaTurn, kLlamaEnd, llama31, true},
  }};
  return all;
}

const Family& family_of(ChatFormat format) {
  for (const Family& family : families()) {
    if (family.format == format) return family;
  }
  throw_internal("chat format {}", static_cast<int>(format));
}

/// Python's str.strip(), which Jinja's trim is: white space, and the four separators of ASCII.
std::string_view strip(std::string_view text) {
  const auto space = [](char32_t c) { return unicode::has(c, unicode::kSpace) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty() && space(utf8::at(text, 0).code)) text.remove_prefix(utf8::at(text, 0).length);
  while (!text.empty() && space(utf8::before(text, text.size()).code)) {
    text.remove_suffix(utf8::before(text, text.size()).length);
  }
  return text;
}

/// Every <...> token that the frame is made of must be one token, or the model would see it spelled in
/// letters.
void require_tokens(const Tokenizer& tokenizer, const Family& family) {
  const std::string frame =
      std::string(family.bos).append(family.system).append(family.turn).append(family.end);
  for (std::size_t begin = frame.find('<'); begin != frame.npos; begin = frame.find('<', begin + 1)) {
    const std::string token = frame.substr(begin, frame.find('>', begin) - begin + 1);
    LACUNA_REQUIRE(
        tokenizer.token_id(token) >= 0,
        "chat format '{}' needs the token '{}', which this tokenizer does not have; choose another format",
        family.name, token);
  }
}

}  // namespace

std::string_view name_of(ChatFormat format) { return family_of(format).name; }

ChatFormat parse_chat_format(const std::string& name, const std::string& where) {
  std::vector<std::string> names;
  for (const Family& family : families()) {
    if (family.name == name) return family.format;
    names.emplace_back(family.name);
  }
  throw_usage("{}: {}", where, unknown_name_message("chat format", name, names));
}

ChatFrame chat_frame(ChatFormat format) {
  const Family& f = family_of(format);
  return {std::string(f.bos).append(f.system).append(f.turn), std::string(f.end)};
}

std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, ChatFormat format, std::string_view message) {
  std::string storage;
  message = utf8::replace_invalid(message, storage);
  if (format == ChatFormat::kNone) {
    std::vector<TokenId> bare = tokenizer.encode(message, false);
    std::vector<TokenId> full = tokenizer.encode(message, true);
    // The message may spell its own BOS; then the post-processor's would be a second one.
    const bool doubled = full.size() > bare.size() && bare.size() > 0 && full[0] == bare[0] &&
                         full[1] == bare[0] && tokenizer.is_special(full[0]);
    if (doubled) full.erase(full.begin());
    return full;
  }
  const Family& family = family_of(format);
  require_tokens(tokenizer, family);
  const ChatFrame frame = chat_frame(format);
  return tokenizer.encode(frame.prefix + std::string(family.trims ? strip(message) : message) + frame.suffix,
                          false);
}

}  // namespace lacuna
