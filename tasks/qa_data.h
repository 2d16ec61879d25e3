// Question-answering data files, as people have them, read into documents and questions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna {

struct QaQuestion {
  std::size_t document = 0;          ///< Index into QaData::documents
  std::string text;                  ///< The question alone, white space joined
  std::vector<std::string> options;  ///< Texts of A, B, ...; empty for free answers
  std::vector<std::string>
      answers;     ///< References, distinct; for options one text of letters in order ("AD")
  std::string id;  ///< As the file gives it, else "line:number"
};

/// Documents are distinct and not empty; (document, question) pairs are distinct.
struct QaData {
  std::vector<std::string> documents;
  std::vector<QaQuestion> questions;
  // What was left out, for the record.
  std::size_t unanswerable = 0, duplicate = 0, empty = 0;
};

/// SQuAD v1.1 and v2: data[].paragraphs[].{context, qas[].{question, id, answers[].text, is_impossible}}.
/// Unanswerable, duplicate and empty questions are left out and counted. All errors are kUsage and name file
/// and field.
QaData read_squad(std::string_view json, const std::string& where);

/// Multiple choice, one JSON object per line, in either form:
/// - {"context", "questions": ["Question ... A. ... B. ..."], "answer": ["B", "AD"]} (QuALITY and TOEFL as
/// L-Eval has them);
/// - the QuALITY release: {"article", "questions": [{"question", "options": [...], "gold_label": 1}]}.
/// All errors are kUsage and name file, line and field.
QaData read_choices(std::string_view lines, const std::string& where);

/// "Question 3. Why? A. x B. y" -> question and options. At least two options, lettered from A on without a
/// gap; false when there are none.
bool parse_options(std::string_view text, std::string* question, std::vector<std::string>* options);

/// "D, A" -> "AD": distinct letters in order; "" when it is not a list of letters below `options`.
std::string parse_letters(std::string_view text, std::size_t options);

}  // namespace lacuna
