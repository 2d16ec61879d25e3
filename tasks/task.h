// A benchmark task: generates samples and scores answers. Nine tasks, one file each, found by name in a
// registry.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/params.h"
#include "model/chat.h"
#include "model/tokenizer.h"

namespace lacuna {

/// Token ids of text pieces, remembered from sample to sample. Belongs to one thread; whether one is used,
/// and for how long, changes the speed and never the sample.
class PieceCache {
 public:
  explicit PieceCache(const Tokenizer& tokenizer);
  ~PieceCache();
  PieceCache(PieceCache&&) noexcept;

  const Tokenizer& tokenizer() const;
  /// Valid until the next call.
  std::span<const TokenId> ids(std::string_view piece);

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

/// What a generator needs. Sample `index` depends on seed, index and params (and the data file) alone.
struct SampleRequest {
  const Tokenizer* tokenizer = nullptr;
  ChatFormat chat = ChatFormat::kNone;
  std::int64_t target_tokens = 0;  ///< The prompt, chat frame included, fills 95 to 100 % of it.
  std::uint64_t seed = 0;
  std::uint64_t index = 0;
  PieceCache* cache = nullptr;  ///< May be null. Give one per thread to generate many samples fast.
  /// Takes the ids of the pieces as they are, without tokenising the whole prompt once more. The caller has
  /// checked that both agree for this tokenizer (they do where the pre-tokenizer splits at spaces and
  /// newlines).
  bool trust_pieces = false;
};

/// One generated sample.
struct Sample {
  std::string prompt;          ///< The user's message, without the chat frame.
  std::vector<TokenId> ids;    ///< The whole prompt as the model gets it.
  std::string answer_text;     ///< The right answer as a model should write it, "<answer>" tags included.
  nlohmann::json gold;         ///< What score() compares with; its form is the task's own.
  nlohmann::json description;  ///< Machine-checkable facts about the sample.
  /// Tokens per section (instruction, question, context, question again, frame), for people.
  std::vector<std::pair<std::string, std::int64_t>> sections;
};

struct Score {
  double value = 0;        ///< 0 to 1.
  bool no_answer = false;  ///< Missing or empty answer; value is then 0.
  std::string answer;      ///< What was extracted and compared.
};

/// How a task is grouped in reports (paper.md 3).
enum class TaskGroup { kSingleQa, kMultipleQa, kHighScope, kHighDispersion };
std::string_view name_of(TaskGroup group);

struct TaskInfo {
  std::string name;
  std::string summary;
  std::string metric;  ///< "exact_match", "token_f1", "iou"
  TaskGroup group;
  bool needs_data = false;  ///< Takes a data file (parameter `data`).
  std::vector<ParamSpec> params;
};

/// Immutable once made; generate() may be called from several threads.
class Task {
 public:
  virtual ~Task() = default;
  /// Throws kUsage when the target cannot be filled to 90 %, with the reason.
  virtual Sample generate(const SampleRequest& request) const = 0;
  /// Never throws on any output, whatever its bytes.
  virtual Score score(const nlohmann::json& gold, std::string_view output) const = 0;
  /// How many different samples there are; 0: without end (synthetic tasks).
  virtual std::uint64_t size() const { return 0; }
};

std::span<const TaskInfo> tasks();
/// Throws kUsage with the nearest valid name.
const TaskInfo& find_task(const std::string& name, const std::string& where);
/// Reads the data file, if the task has one. Throws kUsage naming file, line and field.
std::unique_ptr<const Task> make_task(const std::string& name, const Params& params);

/// Scores without making the task, so without its data file. Throws kUsage starting with `where` when `gold`
/// is not of the form that the task's generator writes.
Score score_output(const std::string& name, const nlohmann::json& gold, std::string_view output,
                   const std::string& where);

}  // namespace lacuna
