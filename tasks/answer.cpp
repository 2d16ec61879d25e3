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

/// Joins words by single spaces.
std::string squeeze(std::string_view text) {
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

constexpr std::string_view kOpen = "<answer>", kClose = "</answer>", kMarker = "answer:";

}  // namespace

std::string extract_answer(std::string_view output) {
  const std::string lower = lower_ascii(output);
  const auto cut = [&](std::size_t begin, std::size_t end) {
    return std::string(trim(output.substr(begin, end == std::string::npos ? end : end - begin)));
  };
  const auto first_open = lower.find(kOpen);
  if (first_open != std::string::npos) {
    const auto close = lower.rfind(kClose);
    if (close != std::string::npos && close > first_open) {
      return cut(lower.rfind(kOpen, close) + kOpen.size(), close);
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
  return squeeze(view);
}

std::string normalize_item(std::string_view text) {
  std::string name = normalize_exact(text);
  for (const std::string_view article : {"a ", "an ", "the "}) {
    if (name.starts_with(article)) return name.substr(article.size());
  }
  return name;
}

std::string normalize_squad(std::string_view text) {
  // Lower case by code point; a byte that is not UTF-8 is kept as it is.
  std::string lower;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (std::size_t i = 0; i < text.size();) {
    utf8proc_int32_t code = 0;
    const auto n = utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code);
    if (n <= 0) {
      lower += text[i++];
      continue;
    }
    utf8proc_uint8_t out[4];
    const auto length = utf8proc_encode_char(utf8proc_tolower(code), out);
    lower.append(reinterpret_cast<const char*>(out), static_cast<std::size_t>(length));
    i += static_cast<std::size_t>(n);
  }
  std::string bare;
  for (const char c : lower) {
    if (!is_ascii_punct(c)) bare += c;
  }
  return bare;
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
