// Chat formats: how a user message becomes a prompt. Taken from the model folder's own template where it is one of these.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer.h"

namespace lacuna {

enum class ChatFormat { kNone, kChatML, kLlama3, kGemma };

std::string_view name_of(ChatFormat format);
/// "chatml", "llama3", "gemma", "none"; throws kUsage with the valid names.
ChatFormat parse_chat_format(const std::string& name, const std::string& where);

/// Recognises the template of FOLDER (tokenizer_config.json's chat_template or chat_template.jinja). A template that is
/// none of the known ones is refused with a hint (kUsage); no template at all gives kNone.
ChatFormat detect_chat_format(const std::string& folder);

/// Prompt text around one user message, split so that tasks can count tokens: prefix + message + suffix. The suffix
/// ends where the assistant's answer begins.
struct ChatFrame {
  std::string prefix;  ///< BOS text (where the model wants one) and all that precedes the user's words
  std::string suffix;
};
ChatFrame chat_frame(ChatFormat format);

/// Token ids of a whole prompt: frame around message, with exactly one BOS where the tokenizer or format wants one.
/// Special tokens spelled out in the message become their ids, as in the reference.
std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, ChatFormat format, std::string_view message);

}  // namespace lacuna
