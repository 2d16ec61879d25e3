// From a model's output to a score: extraction of the answer, normalisation, and the three metrics.
#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.h"

namespace lacuna {

/// The answer inside an output, trimmed; "" when there is none. In this order:
/// 1. the text of the last pair: from the last `<answer>` that a `</answer>` follows, up to the first such;
/// 2. the text after the last `<answer>`, when no closed pair exists (an output cut off at its token limit);
/// 3. the rest of the line after the last "answer:" (any case).
/// Tags are matched in any case. Any bytes are accepted; the time is linear in the length.
std::string extract_answer(std::string_view output);

/// Lower case (ASCII), without markup characters (* _ ` # " and typographic quotes), punctuation at either
/// end and repeated white space: what two spellings of one answer share.
std::string normalize_exact(std::string_view text);

/// normalize_exact without a leading article (a, an, the), for names of items and places.
std::string normalize_item(std::string_view text);

/// SQuAD's normalisation, as the published evaluation has it: lower case, ASCII punctuation removed, the
/// words a, an, the removed, white space joined; letters and white space as Unicode knows them. Bytes that
/// are not UTF-8 stand for themselves.
std::string normalize_squad(std::string_view text);
/// Token F1 between a prediction and one reference (Rajpurkar et al. 2016, 2018), both normalised here. Two
/// empty ones agree.
double squad_f1(std::string_view prediction, std::string_view reference);
bool squad_exact(std::string_view prediction, std::string_view reference);

/// The letters an answer chooses ("B", "A and D", "(b)", "C. because ..."), distinct, in order; "" when there
/// are none.
std::string chosen_letters(std::string_view answer);

/// |a and b| / |a or b|; 0 for two empty sets.
double iou(const std::set<std::string>& a, const std::set<std::string>& b);

/// The entries of a numbered or comma-separated list: one per line when there are several lines that are not
/// blank, otherwise cut at commas and semicolons. Leading "1.", "1)", "-" and "*" are removed; entries are
/// trimmed.
std::vector<std::string> list_entries(std::string_view answer);
/// Words with single spaces between them (ASCII white space).
std::string join_spaces(std::string_view text);
/// Runs of ASCII letters and digits, in order.
std::vector<std::string> words_of(std::string_view text);

/// A score of `value` for an extracted answer; an empty one scores 0 and counts as no answer.
template <class Metric>
Score score_answer(std::string_view output, Metric&& metric) {
  Score score;
  score.answer = extract_answer(output);
  score.no_answer = score.answer.empty();
  if (!score.no_answer) score.value = metric(score.answer);
  return score;
}

}  // namespace lacuna
