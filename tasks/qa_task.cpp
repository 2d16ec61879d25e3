#include "tasks/qa_task.h"

#include <algorithm>

#include "core/error.h"
#include "core/file.h"
#include "core/rng.h"
#include "core/text.h"

namespace lacuna {

namespace {

/// Where a text may be cut: in front of the white space between two words.
std::vector<std::size_t> word_ends(std::string_view text) {
  std::vector<std::size_t> ends;
  const auto space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  for (std::size_t i = 1; i < text.size(); ++i) {
    if (space(text[i]) && !space(text[i - 1])) ends.push_back(i);
  }
  return ends;
}

}  // namespace

std::vector<ParamSpec> qa_params(const char* data_help) {
  return {{.name = "data", .default_value = std::string(), .help = data_help, .required = true},
          style_param(),
          {.name = "own_prompt_limit",
           .default_value = std::int64_t{8192 - 20 - 64},
           .help = "Questions are passed over whose document alone makes a longer prompt, so that all "
                   "lengths from 8192 on share "
                   "the same questions",
           .unit = "tokens",
           .min = 1},
          {.name = "repeat_documents",
           .default_value = false,
           .help = "Uses distractors again and again where the file is too small for the length"}};
}

QaTask::QaTask(const char* name, const Params& params, QaData data, const Wording& explain,
               const Wording& direct, ScoreFunction scorer)
    : name_(name),
      own_prompt_limit_(params.get_int("own_prompt_limit")),
      repeat_documents_(params.get_bool("repeat_documents")),
      data_(std::move(data)),
      frame_(choose(style_of(params), explain, direct)),
      score_(scorer) {}

QaTask::~QaTask() = default;

Block QaTask::write_document(Draft& draft, std::size_t number, std::string_view text) {
  draft.add("Document").add(fmt::format(" {}", number)).add(fmt::format(":\n{}\n\n", text));
  return draft.take();
}

PromptFrame::Blocks QaTask::write_frame(Draft& draft, const QaQuestion& question, std::size_t number) const {
  return frame_.write(draft, [&](const std::string& slot) {
    if (slot == "number") {
      draft.add(fmt::format(" {}", number));
    } else {
      std::string text = " " + question.text + "\n";
      for (std::size_t i = 0; i < question.options.size(); ++i) {
        text += fmt::format("{}. {}\n", static_cast<char>('A' + i), question.options[i]);
      }
      draft.add_fresh(text + "\n");
    }
  });
}

std::shared_ptr<const QaTask::Lengths> QaTask::lengths(const SampleRequest& request,
                                                       PieceCache& cache) const {
  const std::string key = request.tokenizer->fingerprint() + std::string(name_of(request.chat));
  const std::scoped_lock lock(mutex_);
  auto& slot = lengths_[key];
  if (slot) return slot;
  auto made = std::make_shared<Lengths>();
  Draft draft(cache, own_prompt_limit_);
  for (const auto& document : data_.documents)
    made->documents.push_back(write_document(draft, 1, document).tokens());
  const auto frame_tokens =
      static_cast<std::int64_t>(encode_chat(*request.tokenizer, request.chat, "A").size());
  for (std::size_t i = 0; i < data_.questions.size(); ++i) {
    const auto& question = data_.questions[i];
    const auto own =
        made->documents[question.document] + write_frame(draft, question, 1).tokens() + frame_tokens;
    if (own <= own_prompt_limit_) made->questions.push_back(i);
  }
  return slot = std::move(made);
}

Sample QaTask::generate(const SampleRequest& request) const {
  LACUNA_CHECK(request.tokenizer != nullptr, "a sample needs a tokenizer");
  SampleRequest cached = request;
  std::unique_ptr<PieceCache> own;
  if (cached.cache == nullptr) {
    own = std::make_unique<PieceCache>(*request.tokenizer);
    cached.cache = own.get();
  }
  const auto lengths = this->lengths(cached, *cached.cache);
  LACUNA_REQUIRE(
      cached.index < lengths->questions.size(),
      "{}: sample {} does not exist: {} of {} questions have a prompt of at most {} tokens of their own "
      "(own_prompt_limit)",
      name_, cached.index, lengths->questions.size(), data_.questions.size(), own_prompt_limit_);
  // The order of the questions is drawn once per seed, for all lengths.
  auto order = lengths->questions;
  Rng(cached.seed, stream_id(name_, 0, 1)).shuffle(order);
  const std::size_t question = order[cached.index];
  return fit_sample(name_, cached, [&](Draft& draft) { compose(draft, cached, *lengths, question); });
}

void QaTask::compose(Draft& draft, const SampleRequest& request, const Lengths& lengths,
                     std::size_t question_index) const {
  const QaQuestion& question = data_.questions[question_index];
  Rng rng(request.seed, stream_id(name_, request.index, 2));
  std::vector<std::size_t> others;
  for (std::size_t i = 0; i < data_.documents.size(); ++i) {
    if (i != question.document) others.push_back(i);
  }
  rng.shuffle(others);

  // Numbers have at most as many digits as the file has documents; what this reserves too much, the cut one
  // fills.
  const std::size_t widest = repeat_documents_ ? 99999 : data_.documents.size();
  const std::int64_t digits =
      (draft.add(fmt::format(" {}", widest)).take().tokens() - draft.add(" 1").take().tokens());
  std::int64_t room = draft.budget() - write_frame(draft, question, widest).tokens() -
                      lengths.documents[question.document] - digits;
  LACUNA_REQUIRE(
      room >= 0,
      "{}: {} tokens do not hold the question's own document of {} tokens; ask for a longer prompt or lower "
      "own_prompt_limit",
      name_, request.target_tokens, lengths.documents[question.document]);
  std::vector<std::size_t> chosen = {question.document};
  std::optional<std::size_t> cut;
  for (std::size_t i = 0; !others.empty() && (i < others.size() || repeat_documents_); ++i) {
    const std::size_t other = others[i % others.size()];
    if (lengths.documents[other] + digits > room) {
      cut = other;
      break;
    }
    room -= lengths.documents[other] + digits;
    chosen.push_back(other);
  }
  LACUNA_REQUIRE(cut || room * 10 <= draft.budget(),
                 "{}: all {} documents of the file together are {} tokens too short for {} tokens; give a "
                 "larger file, or set "
                 "repeat_documents=true to use distractors more than once",
                 name_, data_.documents.size(), room, request.target_tokens);
  rng.shuffle(chosen);

  const std::size_t number =
      static_cast<std::size_t>(std::ranges::find(chosen, question.document) - chosen.begin()) + 1;
  const auto frame = write_frame(draft, question, number);
  std::vector<Block> context;
  std::int64_t used = frame.tokens();
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    context.push_back(write_document(draft, i + 1, data_.documents[chosen[i]]));
    used += context.back().tokens();
  }
  std::size_t cut_words = 0;
  if (cut) {
    // The longest beginning that fits, by halving.
    const std::string_view text = data_.documents[*cut];
    const auto ends = word_ends(text);
    Draft scratch = draft.sibling();
    std::size_t low = 0, high = ends.size();  // words that fit, words that may
    while (low < high) {
      const std::size_t middle = (low + high + 1) / 2;
      scratch.add("Document").add(fmt::format(" {}", chosen.size() + 1));
      scratch.add_fresh(fmt::format(":\n{}\n\n", text.substr(0, ends[middle - 1])));
      if (scratch.take().tokens() + used <= draft.budget())
        low = middle;
      else
        high = middle - 1;
    }
    if (low > 0) {
      draft.add("Document").add(fmt::format(" {}", chosen.size() + 1));
      draft.add_fresh(fmt::format(":\n{}\n\n", text.substr(0, ends[low - 1])));
      context.push_back(draft.take());
      cut_words = low;
    }
  }
  PromptFrame::place(draft, frame, context);
  const bool choice = !question.options.empty();
  draft.gold = choice ? nlohmann::json(question.answers[0]) : nlohmann::json(question.answers);
  draft.answer_text = fmt::format("<answer> {} </answer>", question.answers[0]);
  draft.description = {{"question", question_index},
                       {"id", question.id},
                       {"document", number},
                       {"documents", context.size()},
                       {"repeated", chosen.size() > data_.documents.size()},
                       {"cut_document_words", cut_words},
                       {"left_out",
                        {{"unanswerable", data_.unanswerable},
                         {"duplicate", data_.duplicate},
                         {"empty", data_.empty},
                         {"too_long", data_.questions.size() - lengths.questions.size()}}}};
  if (choice) draft.description["options"] = question.options;
}

}  // namespace lacuna
