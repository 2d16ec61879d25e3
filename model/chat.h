// Chat formats: how a user message becomes a prompt. Taken from the model folder's own template where it is
// one of these.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace lacuna {

/// Formats differ in every character that a model sees, so families whose templates add a system message of
/// their own are formats of their own. docs/tokenizers.md shows the text of each.
enum class ChatFormat {
  kNone,     ///< the message alone
  kChatML,   ///< <|im_start|>user ... without a system message (Qwen3 and most ChatML models)
  kLlama3,   ///< <|start_header_id|>user ... without a system message (Llama 3)
  kGemma,    ///< <start_of_turn>user ... (Gemma 1 to 3)
  kQwen2,    ///< ChatML with the system message of Qwen2's template
  kQwen25,   ///< ChatML with the system message of Qwen2.5's template
  kLlama31,  ///< Llama 3 with the system header (knowledge date, day) of Llama 3.1 to 3.3
};

std::string_view name_of(ChatFormat format);
/// "none", "chatml", "llama3", "gemma", "qwen2", "qwen2.5", "llama3.1"; throws kUsage with the valid names.
ChatFormat parse_chat_format(const std::string& name, const std::string& where);

/// Recognises the template of FOLDER (chat_template.jinja, or tokenizer_config.json's chat_template). A
/// template that is none of the known ones, or that would render a prompt other than chat_frame's, is refused
/// with what differs and a hint (kUsage); no template at all gives kNone.
ChatFormat detect_chat_format(const std::string& folder);
/// The same for the template's text; `where` starts error messages.
ChatFormat recognise_chat_template(std::string_view jinja, const std::string& where);

/// Prompt text around one user message, split so that tasks can count tokens: prefix + message + suffix. The
/// suffix ends where the assistant's answer begins.
struct ChatFrame {
  std::string prefix;  ///< BOS text (where the model wants one) and all that precedes the user's words
  std::string suffix;
};
ChatFrame chat_frame(ChatFormat format);

/// Token ids of a whole prompt: frame around message, with exactly one BOS where the tokenizer or format
/// wants one. Special tokens spelled out in the message become their ids, as in the reference. Llama and
/// Gemma templates trim the message; so does this. Throws kUsage when the tokenizer lacks a token of the
/// format.
std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, ChatFormat format, std::string_view message);

}  // namespace lacuna
