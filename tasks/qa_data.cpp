#include "tasks/qa_data.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"
#include "tasks/answer.h"

namespace lacuna {

namespace {

constexpr std::size_t kMaxOptions = 10;

/// Collects documents and questions, leaves out what is empty or was there before.
class Collector {
 public:
  /// Index of the document, or nothing for an empty one.
  std::optional<std::size_t> document(std::string_view text) {
    const std::string clean(trim(text));
    if (clean.empty()) return std::nullopt;
    const auto [it, is_new] = documents_.emplace(clean, data_.documents.size());
    if (is_new) data_.documents.push_back(clean);
    return it->second;
  }

  void question(std::optional<std::size_t> document, QaQuestion question) {
    std::erase_if(question.answers, [](const std::string& answer) { return trim(answer).empty(); });
    if (!document || question.text.empty() || question.answers.empty()) {
      ++data_.empty;
    } else if (!questions_.emplace(*document, question.text).second) {
      ++data_.duplicate;
    } else {
      question.document = *document;
      data_.questions.push_back(std::move(question));
    }
  }
  void unanswerable() { ++data_.unanswerable; }

  QaData finish(const std::string& where) {
    LACUNA_REQUIRE(!data_.questions.empty(),
                   "{}: no question that can be used ({} unanswerable, {} duplicate, {} empty)", where,
                   data_.unanswerable, data_.duplicate, data_.empty);
    return std::move(data_);
  }

 private:
  QaData data_;
  std::map<std::string, std::size_t> documents_;
  std::set<std::pair<std::size_t, std::string>> questions_;
};

const Json& list_of(const Json& object, const char* key, const std::string& where) {
  LACUNA_REQUIRE(object.is_object(), "{}: expected an object, found {}", where, object.type_name());
  const auto it = object.find(key);
  LACUNA_REQUIRE(it != object.end(), "{}: field '{}' is missing", where, key);
  LACUNA_REQUIRE(it->is_array(), "{}: field '{}' is a {}, expected a list", where, key, it->type_name());
  return *it;
}

void add_unique(std::vector<std::string>& list, std::string text) {
  if (std::ranges::find(list, text) == list.end()) list.push_back(std::move(text));
}

void read_squad_question(const Json& qa, std::optional<std::size_t> document, const std::string& where,
                         Collector& out) {
  QaQuestion question;
  question.text = join_spaces(json_get<std::string>(qa, "question", where));
  question.id = json_get_or<std::string>(qa, "id", "", where);
  if (json_get_or<bool>(qa, "is_impossible", false, where)) return out.unanswerable();
  const Json& answers = list_of(qa, "answers", where);
  if (answers.empty()) return out.unanswerable();
  for (std::size_t i = 0; i < answers.size(); ++i) {
    add_unique(question.answers,
               json_get<std::string>(answers[i], "text", fmt::format("{}.answers[{}]", where, i)));
  }
  out.question(document, std::move(question));
}

/// One line of {"context", "questions", "answer"}.
void read_lettered_record(const Json& record, const std::string& where, Collector& out) {
  const auto document = out.document(json_get<std::string>(record, "context", where));
  const Json& questions = list_of(record, "questions", where);
  const Json& answers = list_of(record, "answer", where);
  LACUNA_REQUIRE(questions.size() == answers.size(),
                 "{}: fields 'questions' and 'answer' differ in length: {} and {}", where, questions.size(),
                 answers.size());
  for (std::size_t i = 0; i < questions.size(); ++i) {
    LACUNA_REQUIRE(questions[i].is_string(), "{}: field 'questions[{}]' is a {}, expected a text", where, i,
                   questions[i].type_name());
    LACUNA_REQUIRE(answers[i].is_string(), "{}: field 'answer[{}]' is a {}, expected letters", where, i,
                   answers[i].type_name());
    const auto& text = questions[i].get_ref<const std::string&>();
    const auto& answer = answers[i].get_ref<const std::string&>();
    QaQuestion question;
    question.id = fmt::format("{}:{}", where.substr(where.rfind(':') + 1), i + 1);
    if (trim(text).empty() || trim(answer).empty()) {
      out.question(document, std::move(question));  // counted as empty
      continue;
    }
    LACUNA_REQUIRE(parse_options(text, &question.text, &question.options),
                   "{}: field 'questions[{}]' has no options lettered A., B., ...", where, i);
    const std::string letters = parse_letters(answer, question.options.size());
    LACUNA_REQUIRE(!letters.empty(), "{}: field 'answer[{}]' is '{}', expected letters out of A to {}", where,
                   i, answer, static_cast<char>('A' + question.options.size() - 1));
    question.answers = {letters};
    out.question(document, std::move(question));
  }
}

/// One line of the QuALITY release.
void read_release_record(const Json& record, const std::string& where, Collector& out) {
  const auto document = out.document(json_get<std::string>(record, "article", where));
  const Json& questions = list_of(record, "questions", where);
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const std::string at = fmt::format("{}: questions[{}]", where, i);
    QaQuestion question;
    question.text = join_spaces(json_get<std::string>(questions[i], "question", at));
    question.id =
        json_get_or<std::string>(questions[i], "question_unique_id",
                                 fmt::format("{}:{}", where.substr(where.rfind(':') + 1), i + 1), at);
    const Json& options = list_of(questions[i], "options", at);
    LACUNA_REQUIRE(options.size() >= 2 && options.size() <= kMaxOptions,
                   "{}: field 'options' has {} entries, expected 2 to {}", at, options.size(), kMaxOptions);
    for (const auto& option : options) {
      LACUNA_REQUIRE(option.is_string(), "{}: field 'options' holds a {}, expected texts", at,
                     option.type_name());
      question.options.push_back(join_spaces(option.get_ref<const std::string&>()));
    }
    const auto label = json_get_or<std::int64_t>(questions[i], "gold_label", 0, at);
    if (label == 0) {  // the test split keeps its labels to itself
      out.unanswerable();
      continue;
    }
    LACUNA_REQUIRE(label >= 1 && std::cmp_less_equal(label, options.size()),
                   "{}: field 'gold_label' is {}, expected 1 to {}", at, label, options.size());
    question.answers = {std::string(1, static_cast<char>('A' + label - 1))};
    out.question(document, std::move(question));
  }
}

/// Positions of "X." after white space, an opening bracket or the beginning; with `anywhere` also right
/// behind other characters ("this story?A. Korvin"), but not within a run of capitals.
std::vector<std::size_t> markers(std::string_view text, char letter, bool anywhere = false) {
  std::vector<std::size_t> found;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != letter || (text[i + 1] != '.' && text[i + 1] != ')')) continue;
    const char before = i == 0 ? ' ' : text[i - 1];
    const bool free = before == ' ' || before == '(' || (before >= '\t' && before <= '\r');
    if (free || (anywhere && (before < 'A' || before > 'Z'))) found.push_back(i);
  }
  return found;
}

}  // namespace

QaData read_squad(std::string_view json, const std::string& where) {
  const Json root = parse_json(json, where);
  const Json& articles = list_of(root, "data", where);
  Collector out;
  for (std::size_t a = 0; a < articles.size(); ++a) {
    const Json& paragraphs = list_of(articles[a], "paragraphs", fmt::format("{}: data[{}]", where, a));
    for (std::size_t p = 0; p < paragraphs.size(); ++p) {
      const std::string at = fmt::format("{}: data[{}].paragraphs[{}]", where, a, p);
      LACUNA_REQUIRE(paragraphs[p].is_object(), "{}: expected an object, found {}", at,
                     paragraphs[p].type_name());
      const auto document = out.document(json_get<std::string>(paragraphs[p], "context", at));
      const Json& questions = list_of(paragraphs[p], "qas", at);
      for (std::size_t q = 0; q < questions.size(); ++q) {
        read_squad_question(questions[q], document, fmt::format("{}.qas[{}]", at, q), out);
      }
    }
  }
  return out.finish(where);
}

QaData read_choices(std::string_view lines, const std::string& where) {
  Collector out;
  std::size_t number = 0;
  while (!lines.empty()) {
    const auto end = std::min(lines.find('\n'), lines.size());
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(std::min(end + 1, lines.size()));
    ++number;
    if (trim(line).empty()) continue;
    const std::string at = fmt::format("{}:{}", where, number);
    const Json record = parse_json(line, at);
    LACUNA_REQUIRE(record.is_object(), "{}: expected an object, found {}", at, record.type_name());
    if (record.contains("article")) {
      read_release_record(record, at, out);
    } else {
      read_lettered_record(record, at, out);
    }
  }
  return out.finish(where);
}

bool parse_options(std::string_view text, std::string* question, std::vector<std::string>* options) {
  // How many letters follow each other from left to right ...
  std::vector<std::vector<std::size_t>> places;
  std::size_t after = 0;
  while (places.size() < kMaxOptions) {
    const char letter = static_cast<char>('A' + places.size());
    auto found = markers(text, letter);
    if (places.empty()) {  // some files glue the first option to the question
      const auto next_letter = markers(text, 'B');
      const std::size_t end = next_letter.empty() ? text.size() : next_letter.front();
      if (found.empty() || found.front() > end) found = markers(text, letter, true);
    }
    const auto next = std::ranges::lower_bound(found, after);
    if (next == found.end()) break;
    after = *next + 1;
    places.push_back(std::move(found));
  }
  if (places.size() < 2) return false;
  // ... and, from the last one backwards, where: a question may have a "vitamin A." of its own.
  std::vector<std::size_t> begins(places.size());
  std::size_t before = text.size();
  for (std::size_t i = places.size(); i-- > 0;) {
    const auto it = std::ranges::lower_bound(places[i], before);
    if (it == places[i].begin()) return false;
    before = begins[i] = *(it - 1);
  }
  options->clear();
  for (std::size_t i = 0; i < begins.size(); ++i) {
    const std::size_t end = i + 1 < begins.size() ? begins[i + 1] : text.size();
    std::string_view option = text.substr(begins[i] + 2, end - begins[i] - 2);
    if (i + 1 < begins.size() && option.ends_with('(')) option.remove_suffix(1);
    options->push_back(join_spaces(option));
  }
  std::string head = join_spaces(text.substr(0, begins[0]));
  if (head.ends_with('(')) head = std::string(trim(std::string_view(head).substr(0, head.size() - 1)));
  // "Question 12." or "Question:" in front and "Options:" behind are not part of the question.
  std::string_view view = head;
  if (view.ends_with("Options:")) view.remove_suffix(8);
  if (view.starts_with("Question")) {
    std::string_view rest = view.substr(8);
    while (!rest.empty() && (rest.front() == ' ' || (rest.front() >= '0' && rest.front() <= '9')))
      rest.remove_prefix(1);
    if (!rest.empty() && (rest.front() == '.' || rest.front() == ':')) view = rest.substr(1);
  }
  *question = std::string(trim(view));
  return !question->empty() && std::ranges::none_of(*options, [](const std::string& o) { return o.empty(); });
}

std::string parse_letters(std::string_view text, std::size_t options) {
  std::set<char> letters;
  for (const auto& word : words_of(text)) {
    if (word == "and" || word == "or") continue;
    for (const char c : word) {
      const char upper = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
      if (upper < 'A' || static_cast<std::size_t>(upper - 'A') >= options) return {};
      letters.insert(upper);
    }
  }
  return {letters.begin(), letters.end()};
}

}  // namespace lacuna
