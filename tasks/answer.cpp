#include "tasks/answer.h"

#include <utf8proc.h>
#include <algorithm>
#include <map>

#include "core/text.h"

namespace lacuna {

namespace {

char lower_ascii(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_ascii_alnum(char c) {
  return (c >= '0' && c <= '9') || (lower_ascii(c) >= 'a' && lower_ascii(c) <= 'z');
}
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_ascii_punct(char c) { return c > ' ' && c < 127 && !is_ascii_alnum(c); }

std::string lower_ascii(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](char c) { return lower_ascii(c); });
  return out;
}

constexpr std::string_view kOpen = "<answer>", kClose = "</answer>", kMarker = "answer:";

}  // namespace

std::string join_spaces(std::string_view text) {
  std::string out;
  bool gap = false;
  for (const char c : text) {
    if (is_space(c)) {
      gap = !out.empty();
      continue;
    }
    if (gap) out += ' ';
    gap = false;
    out += c;
  }
  return out;
}

std::string extract_answer(std::string_view output) {
  const std::string lower = lower_ascii(output);
  const auto cut = [&](std::size_t begin, std::size_t end) {
    return std::string(trim(output.substr(begin, end == std::string::npos ? end : end - begin)));
  };
  const auto first_open = lower.find(kOpen);
  if (first_open != std::string::npos) {
    const auto close = lower.rfind(kClose);
    if (close != std::string::npos && close > first_open) {
      const auto open = lower.rfind(kOpen, close) + kOpen.size();
      return cut(open, lower.find(kClose, open));
    }
    return cut(lower.rfind(kOpen) + kOpen.size(), std::string::npos);
  }
  const auto marker = lower.rfind(kMarker);
  if (marker == std::string::npos) return {};
  const auto begin = marker + kMarker.size();
  return cut(begin, lower.find('\n', begin));
}

std::string normalize_exact(std::string_view text) {
  std::string kept;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = text.substr(i);
    if (rest.starts_with("\u2018") || rest.starts_with("\u2019") || rest.starts_with("\u201c") ||
        rest.starts_with("\u201d")) {
      i += 2;
    } else if (std::string_view("*_`#\"").find(text[i]) == std::string_view::npos) {
      kept += lower_ascii(text[i]);
    }
  }
  std::string_view view = kept;
  const auto strip = [](char c) { return is_space(c) || is_ascii_punct(c); };
  while (!view.empty() && strip(view.front())) view.remove_prefix(1);
  while (!view.empty() && strip(view.back())) view.remove_suffix(1);
  return join_spaces(view);
}

std::string normalize_item(std::string_view text) {
  std::string name = normalize_exact(text);
  for (const std::string_view article : {"a ", "an ", "the "}) {
    if (name.starts_with(article)) return name.substr(article.size());
  }
  return name;
}

namespace {

/// Code points of a text; a byte that is not UTF-8 becomes a value above Unicode, so that it survives.
constexpr utf8proc_int32_t kRawByte = 0x200000;

std::vector<utf8proc_int32_t> code_points(std::string_view text) {
  std::vector<utf8proc_int32_t> codes;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code = 0;
    const auto n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code);
    codes.push_back(n > 0 ? code : kRawByte + bytes[i]);
    i += n > 0 ? static_cast<std::size_t>(n) : 1;
  }
  return codes;
}

void append_utf8(std::string& out, utf8proc_int32_t code) {
  if (code >= kRawByte) {
    out += static_cast<char>(code - kRawByte);
    return;
  }
  utf8proc_uint8_t bytes[4];
  const auto n = utf8proc_encode_char(code, bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(n));
}

bool is_letter(utf8proc_int32_t code) {
  if (code >= kRawByte) return false;
  const auto category = utf8proc_category(code);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_word(utf8proc_int32_t code) {
  if (code >= kRawByte) return false;
  const auto category = utf8proc_category(code);
  return is_letter(code) || (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

/// White space of str.split() in the published script.
bool is_unicode_space(utf8proc_int32_t c) {
  return c == ' ' || (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x1f) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

std::vector<utf8proc_int32_t> lower_case(const std::vector<utf8proc_int32_t>& codes) {
  std::vector<utf8proc_int32_t> lower;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const auto code = codes[i];
    if (code == 0x130) {  // capital I with dot: two code points
      lower.insert(lower.end(), {0x69, 0x307});
    } else if (code == 0x3a3) {  // sigma at the end of a word
      const bool final =
          i > 0 && is_letter(codes[i - 1]) && (i + 1 == codes.size() || !is_letter(codes[i + 1]));
      lower.push_back(final ? 0x3c2 : 0x3c3);
    } else {
      lower.push_back(code >= kRawByte ? code : utf8proc_tolower(code));
    }
  }
  return lower;
}

/// The words of normalize_squad.
std::vector<std::string> squad_words(std::string_view text) {
  auto codes = lower_case(code_points(text));
  std::erase_if(codes, [](auto code) { return code < 128 && is_ascii_punct(static_cast<char>(code)); });
  std::vector<std::string> words;
  bool open = false;  // whether the next character continues the last word
  for (std::size_t i = 0; i < codes.size();) {
    if (is_unicode_space(codes[i])) {
      open = false;
      ++i;
      continue;
    }
    std::string run;
    const bool word = is_word(codes[i]);
    do append_utf8(run, codes[i++]);
    while (word && i < codes.size() && is_word(codes[i]));
    if (run == "a" || run == "an" || run == "the") {  // an article leaves a space behind
      open = false;
      continue;
    }
    if (!open) words.emplace_back();
    words.back() += run;
    open = true;
  }
  return words;
}

}  // namespace

std::string normalize_squad(std::string_view text) {
  std::string joined;
  for (const auto& word : squad_words(text)) {
    if (!joined.empty()) joined += ' ';
    joined += word;
  }
  return joined;
}

double squad_f1(std::string_view prediction, std::string_view reference) {
  const auto predicted = squad_words(prediction), wanted = squad_words(reference);
  if (predicted.empty() || wanted.empty()) return predicted.empty() && wanted.empty() ? 1.0 : 0.0;
  std::map<std::string, std::size_t> left;
  for (const auto& word : wanted) ++left[word];
  std::size_t same = 0;
  for (const auto& word : predicted) {
    const auto it = left.find(word);
    if (it == left.end() || it->second == 0) continue;
    --it->second;
    ++same;
  }
  if (same == 0) return 0.0;
  const double precision = static_cast<double>(same) / static_cast<double>(predicted.size());
  const double recall = static_cast<double>(same) / static_cast<double>(wanted.size());
  return 2 * precision * recall / (precision + recall);
}

bool squad_exact(std::string_view prediction, std::string_view reference) {
  return squad_words(prediction) == squad_words(reference);
}

std::string chosen_letters(std::string_view answer) {
  const std::string text = normalize_exact(answer);
  const auto words = words_of(text);
  // Letters alone, in one group or several: "b", "ad", "a, d", "a and d".
  std::set<char> letters;
  bool only_letters = !words.empty();
  for (const auto& word : words) {
    if (word == "and" || word == "or" || word == "option" || word == "options") continue;
    only_letters = only_letters && word.size() <= 10 &&
                   std::ranges::all_of(word, [](char c) { return c >= 'a' && c <= 'j'; });
    if (only_letters) letters.insert(word.begin(), word.end());
  }
  if (!only_letters) {
    // "c. because ...": the letter in front of a full stop, bracket or colon.
    letters.clear();
    const bool marked = text.size() >= 2 && text[0] >= 'a' && text[0] <= 'j' &&
                        (text[1] == '.' || text[1] == ')' || text[1] == ':');
    if (marked) letters.insert(text[0]);
  }
  std::string chosen;
  for (const char c : letters) chosen += static_cast<char>(c - 'a' + 'A');
  return chosen;
}

double iou(const std::set<std::string>& a, const std::set<std::string>& b) {
  std::size_t both = 0;
  for (const auto& item : a) both += b.count(item);
  const std::size_t either = a.size() + b.size() - both;
  return either == 0 ? 0.0 : static_cast<double>(both) / static_cast<double>(either);
}

std::vector<std::string> list_entries(std::string_view answer) {
  std::vector<std::string> lines;
  for (const auto& line : split(answer, '\n')) {
    if (!trim(line).empty()) lines.emplace_back(trim(line));
  }
  if (lines.size() == 1) {
    const std::string line = lines[0];
    lines.clear();
    std::size_t begin = 0;
    while (begin <= line.size()) {
      const auto end = std::min(line.find_first_of(",;", begin), line.size());
      lines.emplace_back(trim(std::string_view(line).substr(begin, end - begin)));
      begin = end + 1;
    }
  }
  for (auto& line : lines) {
    std::string_view view = line;
    while (!view.empty() && (view.front() == '*' || view.front() == '-' || is_space(view.front())))
      view.remove_prefix(1);
    std::size_t digits = 0;
    while (digits < view.size() && view[digits] >= '0' && view[digits] <= '9') ++digits;
    if (digits > 0 && digits < view.size() && (view[digits] == '.' || view[digits] == ')'))
      view.remove_prefix(digits + 1);
    line = std::string(trim(view));
  }
  return lines;
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text) {
    if (is_ascii_alnum(c)) {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  return words;
}

}  // namespace lacuna
