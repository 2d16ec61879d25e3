#include "model/normalizer.h"

#include <utf8proc.h>

#include <cstdlib>
#include <limits>
#include <memory>

#include "core/error.h"
#include "core/json.h"
#include "model/pretokenizer_regex.h"
#include "model/tokenizer_unicode.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

struct FreeC {
  void operator()(void* p) const { std::free(p); }
};

/// Appends a normal form of `text`, which holds no inert characters.
void append_form(std::string_view text, utf8proc_option_t form, std::string& out) {
  if (text.empty()) return;
  utf8proc_uint8_t* raw = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &raw, form);
  const std::unique_ptr<utf8proc_uint8_t, FreeC> owner(raw);
  if (size == UTF8PROC_ERROR_NOMEM) throw_resource("Unicode normalization: out of memory");
  LACUNA_CHECK(size >= 0, "utf8proc: {}", utf8proc_errmsg(size));
  out.append(reinterpret_cast<const char*>(raw), static_cast<std::size_t>(size));
}

/// Characters below this code have no decomposition, no combining class and never compose with what precedes
/// them.
char32_t first_affected(utf8proc_option_t form) {
  const bool compose = form & UTF8PROC_COMPOSE, compatibility = form & UTF8PROC_COMPAT;
  if (compatibility) return 0xA0;
  return compose ? 0x300 : 0xC0;
}

void normalize_form(std::string& text, utf8proc_option_t form) {
  const char32_t limit = first_affected(form);
  bool affected = false;
  for (std::size_t i = 0; i < text.size() && !affected;) {
    const utf8::Char c = utf8::at(text, i);
    affected = c.code >= limit;
    i += c.length;
  }
  if (!affected) return;
  // Inert characters neither change nor interact with their neighbours: normalize what lies between them.
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    const utf8::Char c = utf8::at(text, i);
    if (unicode::is_inert(c.code)) {
      append_form(std::string_view(text).substr(begin, i - begin), form, out);
      out.append(text, i, c.length);
      begin = i + c.length;
    }
    i += c.length;
  }
  append_form(std::string_view(text).substr(begin), form, out);
  text = std::move(out);
}

void lowercase(std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const utf8::Char c = utf8::at(text, i);
    utf8::append(out, unicode::to_lower(c.code));
    if (c.code == 0x130) utf8::append(out, 0x307);
    i += c.length;
  }
  text = std::move(out);
}

void strip(std::string& text, bool left, bool right) {
  std::size_t begin = 0, end = text.size();
  while (left && begin < end) {
    const utf8::Char c = utf8::at(text, begin);
    if (!unicode::has(c.code, unicode::kSpace)) break;
    begin += c.length;
  }
  while (right && end > begin) {
    const utf8::Char c = utf8::before(text, end);
    if (!unicode::has(c.code, unicode::kSpace)) break;
    end -= c.length;
  }
  text = text.substr(begin, end - begin);
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  std::size_t found = text.find(from);
  if (found == text.npos) return;
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  std::size_t begin = 0;
  for (; found != text.npos; found = text.find(from, begin)) {
    out.append(text, begin, found - begin);
    out += to;
    begin = found + from.size();
  }
  out.append(text, begin);
  text = std::move(out);
}

std::string replace_matches(std::string_view text, const Regex& regex, const std::string& to) {
  std::string out;
  std::size_t last = 0;
  regex.for_each_match(text, [&](std::size_t begin, std::size_t end) {
    out += text.substr(last, begin - last);
    out += to;
    last = end;
  });
  out += text.substr(last);
  return out;
}

constexpr auto form_of(std::initializer_list<utf8proc_option_t> options) {
  int bits = 0;
  for (const auto option : options) bits |= option;
  return static_cast<utf8proc_option_t>(bits);
}

}  // namespace

Normalizer Normalizer::parse(const Json& field, const std::string& where) {
  Normalizer normalizer;
  if (!field.is_null()) normalizer.add(field, where + ": normalizer");
  return normalizer;
}

void Normalizer::add(const Json& field, const std::string& where) {
  const auto type = json_get<std::string>(field, "type", where);
  const std::string here = where + " " + type;
  constexpr auto kD = form_of({UTF8PROC_STABLE, UTF8PROC_DECOMPOSE});
  constexpr auto kC = form_of({UTF8PROC_STABLE, UTF8PROC_COMPOSE});
  constexpr auto kKD = form_of({UTF8PROC_STABLE, UTF8PROC_DECOMPOSE, UTF8PROC_COMPAT});
  constexpr auto kKC = form_of({UTF8PROC_STABLE, UTF8PROC_COMPOSE, UTF8PROC_COMPAT});
  const auto add_form = [this](utf8proc_option_t form) {
    steps_.emplace_back([form](std::string& text) { normalize_form(text, form); });
  };
  if (type == "Sequence") {
    const auto it = field.find("normalizers");
    LACUNA_REQUIRE(it != field.end() && it->is_array(), "{}: field 'normalizers' must be a list", here);
    for (std::size_t i = 0; i < it->size(); ++i) add((*it)[i], fmt::format("{}[{}]", here, i));
  } else if (type == "NFC") {
    add_form(kC);
  } else if (type == "NFD") {
    add_form(kD);
  } else if (type == "NFKC") {
    add_form(kKC);
  } else if (type == "NFKD") {
    add_form(kKD);
  } else if (type == "Lowercase") {
    steps_.emplace_back(lowercase);
  } else if (type == "Strip") {
    const bool left = json_get<bool>(field, "strip_left", here),
               right = json_get<bool>(field, "strip_right", here);
    if (left) keeps_start_ = false;
    steps_.emplace_back([left, right](std::string& text) { strip(text, left, right); });
  } else if (type == "Prepend") {
    steps_.emplace_back([prefix = json_get<std::string>(field, "prepend", here)](std::string& text) {
      if (!text.empty()) text.insert(0, prefix);
    });
  } else if (type == "Replace") {
    const auto content = json_get<std::string>(field, "content", here);
    const auto it = field.find("pattern");
    LACUNA_REQUIRE(it != field.end() && it->is_object() && it->size() == 1,
                   "{}: field 'pattern' must be {{\"String\": ...}} or {{\"Regex\": ...}}", here);
    if (it->contains("String")) {
      const auto from = json_get<std::string>(*it, "String", here + ": pattern");
      LACUNA_REQUIRE(!from.empty(), "{}: an empty pattern is not supported", here);
      // A longer pattern shifts, in the reference, where the text is said to begin.
      if (utf8::at(from, 0).length != from.size() || content.empty()) keeps_start_ = false;
      steps_.emplace_back([from, content](std::string& text) { replace_all(text, from, content); });
    } else {
      keeps_start_ = false;
      const auto regex =
          std::make_shared<const Regex>(json_get<std::string>(*it, "Regex", here + ": pattern"), here);
      steps_.emplace_back(
          [regex, content](std::string& text) { text = replace_matches(text, *regex, content); });
    }
  } else {
    throw_usage(
        "{}: this normalizer is not supported (supported: NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, "
        "Replace, "
        "Sequence)",
        here);
  }
}

}  // namespace lacuna
