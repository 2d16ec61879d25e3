// What the three question-answering tasks share: one document with the answer among distractors, numbered,
// and a question about "document n".
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "tasks/prompt.h"
#include "tasks/qa_data.h"

namespace lacuna {

/// data, style, own_prompt_limit, repeat_documents.
std::vector<ParamSpec> qa_params(const char* data_help);

class QaTask : public Task {
 public:
  using ScoreFunction = Score (*)(const nlohmann::json& gold, std::string_view output);
  QaTask(const char* name, const Params& params, QaData data, const Wording& explain, const Wording& direct,
         ScoreFunction scorer);
  ~QaTask() override;

  Sample generate(const SampleRequest& request) const override;
  Score score(const nlohmann::json& gold, std::string_view output) const override {
    return score_(gold, output);
  }
  /// Questions in the file. Those whose own prompt is longer than own_prompt_limit are passed over when
  /// samples are made, so with some tokenizers there are fewer samples.
  std::uint64_t size() const override { return data_.questions.size(); }

 private:
  /// What depends on the tokenizer: lengths, and which questions are short enough for every length.
  struct Lengths {
    std::vector<std::int64_t> documents;  ///< Tokens of a document with its header
    std::vector<std::size_t> questions;   ///< Usable ones, in the order of the file
  };
  std::shared_ptr<const Lengths> lengths(const SampleRequest& request, PieceCache& cache) const;
  PromptFrame::Blocks write_frame(Draft& draft, const QaQuestion& question, std::size_t number) const;
  static Block write_document(Draft& draft, std::size_t number, std::string_view text);
  void compose(Draft& draft, const SampleRequest& request, const Lengths& lengths,
               std::size_t question) const;

  std::string name_;
  std::int64_t own_prompt_limit_;
  bool repeat_documents_;
  QaData data_;
  PromptFrame frame_;
  ScoreFunction score_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::shared_ptr<const Lengths>> lengths_;  ///< By tokenizer and chat format
};

}  // namespace lacuna
