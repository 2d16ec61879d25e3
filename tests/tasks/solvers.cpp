#include "tests/tasks/solvers.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>
#include <stdexcept>

namespace lacuna::testing {

namespace {

using Strings = std::vector<std::string>;

Strings lines_of(std::string_view text) {
  Strings lines;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

/// Words at white space, without the punctuation in `strip` around them.
Strings tokens_of(std::string_view text, std::string_view strip = ".,:;?") {
  Strings tokens;
  std::size_t i = 0;
  while (i < text.size()) {
    while (i < text.size() && std::isspace(static_cast<unsigned char>(text[i])) != 0) ++i;
    std::size_t end = i;
    while (end < text.size() && std::isspace(static_cast<unsigned char>(text[end])) == 0) ++end;
    std::string_view token = text.substr(i, end - i);
    while (!token.empty() && strip.find(token.back()) != std::string_view::npos) token.remove_suffix(1);
    if (!token.empty()) tokens.emplace_back(token);
    i = end;
  }
  return tokens;
}

bool all_digits(const std::string& text) {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c) != 0; });
}

/// From the last place where any of `openings` stands: the question is repeated at the end.
std::string_view after_last(std::string_view text, std::initializer_list<std::string_view> openings) {
  std::size_t best = std::string_view::npos;
  for (const auto opening : openings) {
    const auto at = text.rfind(opening);
    if (at != std::string_view::npos && (best == std::string_view::npos || at + opening.size() > best))
      best = at + opening.size();
  }
  return best == std::string_view::npos ? std::string_view() : text.substr(best);
}

std::string join(const Strings& items, const std::string& between) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : between) + item;
  return text;
}

std::string answer(const std::string& text) {
  return "It follows from the text.\n<answer>" + text + "</answer>";
}

std::string solve_niah(std::string_view prompt) {
  std::map<std::string, std::string> values;
  for (const auto& line : lines_of(prompt)) {
    const auto words = tokens_of(line);
    if (words.size() < 4 || words[words.size() - 2] != "is") continue;
    const auto& before = words[words.size() - 4];
    if (before == "key" || before == "Key") values[words[words.size() - 3]] = words.back();
  }
  Strings keys;
  const auto listed = after_last(prompt, {"Find the values of these keys:\n"});
  if (!listed.empty()) {
    for (const auto& line : lines_of(listed)) {
      const auto words = tokens_of(line);
      if (words.size() != 2 || !all_digits(words[0])) break;
      keys.push_back(words[1]);
    }
  } else {
    keys = tokens_of(lines_of(after_last(prompt, {"Find the value of"})).at(0));
  }
  std::string text = "\n";
  for (const auto& key : keys) text += "- " + key + ": " + values[key] + "\n";
  return answer(text);
}

std::string solve_vt(std::string_view prompt) {
  std::map<std::string, std::string> source;
  for (const auto& line : lines_of(prompt)) {
    const auto words = tokens_of(line);
    if (words.size() == 4 && words[0] == "VAR" && words[2] == "=") source[words[1]] = words[3];
    if (words.size() == 4 && words[0] == "Copy" && words[2] == "to") source[words[3]] = words[1];
    if (words.size() == 5 && words[0] == "VAR" && words[2] == "=" && words[3] == "VAR")
      source[words[1]] = words[4];
    if (words.size() == 4 && words[0] == "Copy" && words[2] == "to") source[words[3]] = words[1];
  }
  const std::string value = tokens_of(after_last(prompt, {"whose value is ", "variable equal to "})).at(0);
  Strings found;
  for (const auto& [name, first] : source) {
    std::string at = first;
    while (source.count(at) != 0) at = source[at];
    if (at == value) found.push_back(name);
  }
  return answer(join(found, " and "));
}

std::string solve_cwe(std::string_view prompt) {
  const auto count_words = tokens_of(after_last(prompt, {"Find the "}));
  const auto asked = static_cast<std::size_t>(std::stoi(count_words.at(0)));
  std::map<std::string, int> counts;
  const std::size_t plain = prompt.find("Words:");
  if (plain != std::string_view::npos) {
    for (const auto& word : tokens_of(lines_of(prompt.substr(plain + 6)).at(0))) ++counts[word];
  } else {
    for (const auto& line : lines_of(prompt)) {
      const auto words = tokens_of(line);
      if (words.size() == 2 && all_digits(words[0])) ++counts[words[1]];
      // the tail of a plain list
      if (words.size() > 20 && std::ranges::count(line, ',') + 1 == std::ssize(words)) {
        for (const auto& word : words) ++counts[word];
      }
    }
  }
  std::vector<std::pair<int, std::string>> order;
  for (const auto& [word, n] : counts) order.emplace_back(-n, word);
  std::ranges::sort(order);
  Strings best;
  for (std::size_t i = 0; i < asked && i < order.size(); ++i) best.push_back(order[i].second);
  return answer("\n1. " + join(best, "\n2. "));
}

/// "a small copper lamp and ..." -> "small copper lamp"
std::string item_after(const Strings& words, std::size_t at) {
  return words.at(at) + " " + words.at(at + 1) + " " + words.at(at + 2);
}

std::string solve_retrieval(std::string_view prompt) {
  std::map<int, ReadChapter> chapters;
  for (auto& chapter : read_story(prompt)) chapters[chapter.number] = chapter;
  std::string text = "\n";
  const auto questions = after_last(prompt, {"Find these things in the diary:\n", "Find:\n"});
  for (const auto& line : lines_of(questions)) {
    const auto words = tokens_of(line);
    const auto at = std::ranges::find(words, "chapter");
    if (words.empty() || !all_digits(words[0]) || at == words.end()) break;
    const auto& chapter = chapters[std::stoi(at[1])];
    const bool person = line.find("person") != std::string::npos,
               item = line.find("item") != std::string::npos;
    text += words[0] + ") " + (person ? chapter.person : item ? chapter.bought : chapter.place) + "\n";
  }
  return answer(text);
}

std::string solve_filtering(std::string_view prompt) {
  Strings found;
  for (const auto& chapter : read_story(prompt)) {
    if (chapter.bought.empty()) found.push_back(std::to_string(chapter.number));
  }
  return answer("Chapters " + join(found, " and "));
}

std::string solve_multihop(std::string_view prompt) {
  const auto words = tokens_of(after_last(prompt, {"before buying the ", "bought last before the "}));
  const std::string asked = item_after(words, 0);
  std::string before, found;
  for (const auto& chapter : read_story(prompt)) {
    if (chapter.bought == asked) found = before;
    if (!chapter.bought.empty()) before = chapter.bought;
  }
  return answer("the " + found);
}

}  // namespace

std::vector<ReadChapter> read_story(std::string_view prompt) {
  std::vector<ReadChapter> chapters;
  bool inside = false;  // a tail may begin in the middle of a chapter, which is not read
  for (const auto& line : lines_of(prompt)) {
    auto words = tokens_of(line, ",:;?");
    if (words.size() >= 2 && words[0] == "Chapter" && all_digits(words[1])) {
      chapters.emplace_back().number = std::stoi(words[1]);
      inside = true;
      words.erase(words.begin(), words.begin() + 2);
    }
    if (!inside || words.empty()) continue;
    auto& chapter = chapters.back();
    // Names are the capitals inside a sentence: first the place, then the person.
    bool sentence_begins = true;
    for (std::size_t i = 0; i < words.size(); ++i) {
      std::string bare = words[i];
      const bool ends = bare.back() == '.';
      if (ends) bare.pop_back();
      if (!sentence_begins && std::isupper(static_cast<unsigned char>(bare[0])) != 0) {
        if (chapter.place.empty())
          chapter.place = bare;
        else if (chapter.person.empty())
          chapter.person = bare;
      }
      sentence_begins = ends;
      if ((bare == "bought" || bare == "sold") && i + 4 < words.size()) {
        std::string item = item_after(words, i + 2);
        if (item.back() == '.' || item.back() == ',') item.pop_back();
        (bare == "bought" ? chapter.bought : chapter.sold) = item;
      }
    }
    if (!chapter.person.empty()) inside = false;
  }
  return chapters;
}

std::string solve(const std::string& task, std::string_view prompt) {
  if (task == "ruler_niah") return solve_niah(prompt);
  if (task == "ruler_vt") return solve_vt(prompt);
  if (task == "ruler_cwe") return solve_cwe(prompt);
  if (task == "story_retrieval") return solve_retrieval(prompt);
  if (task == "story_filtering") return solve_filtering(prompt);
  if (task == "story_multihop") return solve_multihop(prompt);
  throw std::invalid_argument("no solver for " + task);
}

std::string_view tail_of(std::string_view prompt, double fraction) {
  const auto from = static_cast<std::size_t>(static_cast<double>(prompt.size()) * (1 - fraction));
  const auto line = prompt.find('\n', from);
  // A list that is one line is cut at a word.
  if (line == std::string_view::npos || line > from + 400) return prompt.substr(prompt.find(' ', from));
  return prompt.substr(line + 1);
}

}  // namespace lacuna::testing
