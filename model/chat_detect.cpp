// Recognition of chat templates. Jinja is not interpreted: the literal text of a template says which family
// it is of, and every way known to us in which a template of the family renders another prompt is looked for
// and refused.
#include <filesystem>
#include <optional>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "model/chat.h"

namespace lacuna {
namespace {

constexpr const char* kHint =
    "name a format explicitly (none, chatml, llama3, gemma, qwen2, qwen2.5, llama3.1) if one fits";

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

/// A piece of a template in order: text it prints (outside of tags, or a quoted string), or code.
struct Chunk {
  bool literal;
  std::string text;
};

void append_string_literals(std::string_view code, std::vector<Chunk>& chunks) {
  std::string plain;
  for (std::size_t i = 0; i < code.size(); ++i) {
    const char quote = code[i];
    if (quote != '\'' && quote != '"') {
      plain += quote;
      continue;
    }
    if (!plain.empty()) chunks.push_back({false, std::exchange(plain, "")});
    std::string text;
    for (++i; i < code.size() && code[i] != quote; ++i) {
      if (code[i] != '\\' || i + 1 == code.size()) {
        text += code[i];
        continue;
      }
      const char escaped = code[++i];
      text += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped == 'r' ? '\r' : escaped;
    }
    chunks.push_back({true, std::move(text)});
  }
  if (!plain.empty()) chunks.push_back({false, plain});
}

/// The template as literals and code. Comments are dropped; '-' marks strip the text beside them.
std::vector<Chunk> split_template(std::string_view jinja) {
  std::vector<Chunk> chunks;
  bool strip_next = false;
  while (!jinja.empty()) {
    std::size_t open = jinja.find('{');
    while (open != jinja.npos && open + 1 < jinja.size() && !contains("{%#", jinja.substr(open + 1, 1))) {
      open = jinja.find('{', open + 1);
    }
    if (open != jinja.npos && open + 1 >= jinja.size()) open = jinja.npos;
    std::string raw(jinja.substr(0, open));
    const bool dash = open != jinja.npos && open + 2 < jinja.size() && jinja[open + 2] == '-';
    if (strip_next) raw.erase(0, std::min(raw.find_first_not_of(" \t\r\n"), raw.size()));
    // transformers renders with trim_blocks and lstrip_blocks: blank space around block tags is not printed.
    if (dash || raw.find_first_not_of(" \t\r\n") == raw.npos) raw.erase(raw.find_last_not_of(" \t\r\n") + 1);
    if (!raw.empty()) chunks.push_back({true, std::move(raw)});
    if (open == jinja.npos) break;
    const char kind = jinja[open + 1];
    const std::string_view close = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    const std::size_t end = jinja.find(close, open + 2);
    if (end == jinja.npos) break;
    if (kind != '#') append_string_literals(jinja.substr(open + 2, end - open - 2), chunks);
    strip_next = jinja[end - 1] == '-';
    jinja.remove_prefix(end + 2);
  }
  return chunks;
}

std::string shown(std::string_view text) {
  return Json(std::string(text.substr(0, 120))).dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// What the template prints behind "if add_generation_prompt", in order. Without that name, nullopt.
std::optional<std::vector<Chunk>> generation_part(const std::vector<Chunk>& chunks) {
  for (std::size_t i = chunks.size(); i-- > 0;) {
    if (!chunks[i].literal && contains(chunks[i].text, "add_generation_prompt")) {
      return std::vector<Chunk>(chunks.begin() + static_cast<std::ptrdiff_t>(i) + 1, chunks.end());
    }
  }
  return std::nullopt;
}

/// The answer must begin with exactly `opening`. A literal that is printed only when thinking is switched off
/// (Qwen3) is not printed by default.
void check_generation(const std::vector<Chunk>& chunks, std::string_view opening, const std::string& where) {
  const auto part = generation_part(chunks);
  LACUNA_REQUIRE(part.has_value(), "{}: the chat template never looks at add_generation_prompt; {}", where,
                 kHint);
  std::string printed;
  bool optional = false;
  for (const Chunk& chunk : *part) {
    if (!chunk.literal) {
      if (contains(chunk.text, "enable_thinking is false")) optional = true;
      if (contains(chunk.text, "endif") || contains(chunk.text, "else")) optional = false;
    } else if (!optional) {
      printed += chunk.text;
    }
  }
  LACUNA_REQUIRE(
      printed == opening,
      "{}: the chat template opens the answer with {}, not with {} as the recognised format does; {}", where,
      shown(printed), shown(opening), kHint);
}

/// Text of a system message that the template itself brings: a literal "...system\nTEXT<|im_end|>".
std::vector<std::string> default_systems(const std::vector<Chunk>& chunks) {
  constexpr std::string_view kOpen = "<|im_start|>system\n", kClose = "<|im_end|>";
  std::vector<std::string> found;
  for (const Chunk& chunk : chunks) {
    if (!chunk.literal) continue;
    for (std::size_t at = chunk.text.find(kOpen); at != chunk.text.npos;
         at = chunk.text.find(kOpen, at + 1)) {
      const std::size_t begin = at + kOpen.size(), end = chunk.text.find(kClose, begin);
      if (end != chunk.text.npos && end > begin) found.push_back(chunk.text.substr(begin, end - begin));
    }
  }
  return found;
}

ChatFormat recognise_chatml(const std::vector<Chunk>& chunks, std::string_view jinja,
                            const std::string& where) {
  check_generation(chunks, "<|im_start|>assistant\n", where);
  LACUNA_REQUIRE(!contains(jinja, "content | trim") && !contains(jinja, "content|trim") &&
                     !contains(jinja, "content'] | trim") && !contains(jinja, "content']|trim") &&
                     !contains(jinja, "content\"] | trim") && !contains(jinja, "content\"]|trim"),
                 "{}: a ChatML template that trims the message, which the format 'chatml' does not do; {}",
                 where, kHint);
  LACUNA_REQUIRE(!contains(jinja, "bos_token"),
                 "{}: a ChatML template with a BOS token, which the format 'chatml' does not have; {}", where,
                 kHint);
  const std::vector<std::string> systems = default_systems(chunks);
  std::optional<ChatFormat> format;
  for (const std::string& system : systems) {
    std::optional<ChatFormat> one;
    for (const ChatFormat candidate : {ChatFormat::kQwen2, ChatFormat::kQwen25}) {
      if (contains(chat_frame(candidate).prefix, "system\n" + system + "<|im_end|>")) one = candidate;
    }
    LACUNA_REQUIRE(one.has_value() && (!format || format == one),
                   "{}: the chat template brings a system message of its own, {}; {}", where, shown(system),
                   kHint);
    format = one;
  }
  if (format) return *format;
  for (const Chunk& chunk : chunks) {
    LACUNA_REQUIRE(!chunk.literal || !chunk.text.starts_with("You are"),
                   "{}: the chat template brings a system message of its own, {}; {}", where,
                   shown(chunk.text), kHint);
  }
  return ChatFormat::kChatML;
}

ChatFormat recognise_llama3(const std::vector<Chunk>& chunks, std::string_view jinja,
                            const std::string& where) {
  check_generation(chunks, "<|start_header_id|>assistant<|end_header_id|>\n\n", where);
  LACUNA_REQUIRE(contains(jinja, "trim"),
                 "{}: a Llama 3 template that does not trim the message, as the format 'llama3' does; {}",
                 where, kHint);
  if (!contains(jinja, "Cutting Knowledge Date")) return ChatFormat::kLlama3;
  LACUNA_REQUIRE(contains(jinja, "Cutting Knowledge Date: December 2023") && contains(jinja, "26 Jul 2024"),
                 "{}: a Llama 3.1 template with other dates than 'December 2023' and '26 Jul 2024'; {}",
                 where, kHint);
  return ChatFormat::kLlama31;
}

ChatFormat recognise_gemma(const std::vector<Chunk>& chunks, std::string_view jinja,
                           const std::string& where) {
  check_generation(chunks, "<start_of_turn>model\n", where);
  LACUNA_REQUIRE(contains(jinja, "trim"),
                 "{}: a Gemma template that does not trim the message, as the format 'gemma' does; {}", where,
                 kHint);
  return ChatFormat::kGemma;
}

/// The template's text in a tokenizer_config.json or chat_template.json: a string, or a list of named ones.
std::optional<std::string> template_of_json(const std::string& path) {
  const Json root = read_json_file(path);
  const auto it = root.find("chat_template");
  if (it == root.end() || it->is_null()) return std::nullopt;
  if (it->is_string()) return it->get<std::string>();
  LACUNA_REQUIRE(it->is_array(), "{}: field 'chat_template' must be text or a list", path);
  for (const Json& entry : *it) {
    if (json_get<std::string>(entry, "name", path + ": chat_template") == "default") {
      return json_get<std::string>(entry, "template", path + ": chat_template");
    }
  }
  throw_usage("{}: the list 'chat_template' has no entry named 'default'; {}", path, kHint);
}

}  // namespace

ChatFormat recognise_chat_template(std::string_view jinja, const std::string& where) {
  const std::vector<Chunk> chunks = split_template(jinja);
  std::string literals;
  for (const Chunk& chunk : chunks) {
    if (chunk.literal) literals += chunk.text + '\n';
  }
  if (contains(literals, "<|im_start|>") && contains(literals, "<|im_end|>"))
    return recognise_chatml(chunks, jinja, where);
  if (contains(literals, "<|start_header_id|>") && contains(literals, "<|eot_id|>")) {
    return recognise_llama3(chunks, jinja, where);
  }
  if (contains(literals, "<start_of_turn>") && contains(literals, "<end_of_turn>")) {
    return recognise_gemma(chunks, jinja, where);
  }
  std::string family;
  if (contains(literals, "[INST]")) family = " (it looks like Mistral's or Llama 2's [INST] format)";
  if (contains(literals, "<|user|>")) family = " (it looks like the <|user|> format of Phi or Zephyr)";
  throw_usage("{}: the chat template is none of ChatML, Llama 3 and Gemma{}; {}", where, family, kHint);
}

ChatFormat detect_chat_format(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  LACUNA_REQUIRE(fs::is_directory(folder, ignored), "{}: not a folder", folder);
  // The order of transformers: a file of its own wins over the field.
  const std::string jinja = (fs::path(folder) / "chat_template.jinja").string();
  if (fs::exists(jinja, ignored)) return recognise_chat_template(read_file(jinja), jinja);
  for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
    const std::string path = (fs::path(folder) / name).string();
    if (!fs::exists(path, ignored)) continue;
    if (const auto text = template_of_json(path))
      return recognise_chat_template(*text, path + ": chat_template");
  }
  return ChatFormat::kNone;
}

}  // namespace lacuna
