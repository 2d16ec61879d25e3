// Samples as training data: token ids of prompt and right answer, many per second.
//
// A stream of records, little-endian, without padding between them:
//   u32 total        number of ids
//   u32 answer_start index of the first id of the answer
//   u16 job          which of the jobs asked for
//   u16 reserved     0
//   u16 ids[total]   prompt as the model gets it, then the answer text, then the chat format's end-of-turn
//   token
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tasks/task.h"

namespace lacuna {

/// One task at one length with its parameters.
struct ExportJob {
  std::string task;
  nlohmann::json params;  ///< As given; checked by read or plan
  std::int64_t length = 0;
  double weight = 1;  ///< Relative share of the records
};

struct ExportOptions {
  const Tokenizer* tokenizer = nullptr;
  ChatFormat chat = ChatFormat::kChatML;
  std::uint64_t seed = 0;
  std::uint64_t first = 0;  ///< Index of the first sample
  std::uint64_t count = 0;  ///< 0: without end
  int threads = 1;
};

/// A JSON array of {"task", "length", "params", "weight"}; the last two may be left out.
std::vector<ExportJob> parse_export_spec(const nlohmann::json& spec, const std::string& where);

/// The end-of-turn token of a chat format. Throws kUsage when there is none or the tokenizer has no such
/// token.
TokenId end_of_turn(const Tokenizer& tokenizer, ChatFormat chat);

/// Writes records through `write` in the order of their index; record i depends on (jobs, seed, i) alone.
/// With equal weights the jobs take turns, otherwise each record draws its job. `write` returns false to
/// stop. Returns how many records were written. Throws kUsage for a vocabulary of more than 65536 ids.
std::uint64_t export_samples(const std::vector<ExportJob>& jobs, const ExportOptions& options,
                             const std::function<bool(std::string_view)>& write);

}  // namespace lacuna
