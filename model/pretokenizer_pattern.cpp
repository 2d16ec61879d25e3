// Translation of Oniguruma patterns (the reference's engine) into PCRE2's.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/error.h"
#include "model/pretokenizer_regex.h"
#include "model/tokenizer_unicode.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

constexpr std::string_view kCategories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me", "N",
                                            "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
                                            "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};
// White_Space, spelled out: PCRE2's own \s takes U+180E too.
constexpr std::string_view kSpaceItems =
    R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

/// Class items of a general category: PCRE2's own, and the characters that its Unicode version lacks.
std::string category_items(std::string_view category) {
  std::string items = fmt::format("\\p{{{}}}", category);
  for (const unicode::CategoryRange& r : unicode::newer_categories()) {
    if (std::string_view(r.category).starts_with(category)) {
      items +=
          fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<unsigned>(r.low), static_cast<unsigned>(r.high));
    }
  }
  return items;
}

std::string word_items() {
  return category_items("L") + category_items("M") + category_items("Nd") + category_items("Nl") +
         R"(\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189}\xB2\xB3\xB9\xBC-\xBE)";
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  std::string run() {
    while (pos_ < in_.size()) step();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    throw_usage("{}: regular expression '{}': {} is not supported", where_, in_, what);
  }
  bool looking_at(std::string_view s) const { return in_.substr(pos_).starts_with(s); }
  void copy(std::size_t count) {
    out_ += in_.substr(pos_, count);
    pos_ += count;
  }

  void step() {
    switch (in_[pos_]) {
      case '\\':
        escape(false);
        break;
      case '[':
        character_class();
        break;
      case '(':
        group();
        break;
      case '{':
        braces();
        break;
      default:
        copy(1);
    }
  }

  /// Writes `items` as a class of its own, or into the class that is being written.
  void put_class(const std::string& items, bool negated, bool inside) {
    if (inside && negated) refuse("a negated class (\\S, \\W, \\D, \\P{..}) inside [...]");
    out_ += inside ? items : fmt::format("[{}{}]", negated ? "^" : "", items);
  }

  void escape(bool inside) {
    if (pos_ + 1 >= in_.size()) refuse("a backslash at the end");
    const char c = in_[pos_ + 1];
    if (c == 'p' || c == 'P') return property(inside);
    if (c == 'u') return code_point(2, 4);
    if (c == 'x') return hexadecimal();
    const std::string_view plain = "tnrfae";
    if (c == 's' || c == 'S') {
      put_class(std::string(kSpaceItems), c == 'S', inside);
    } else if (c == 'w' || c == 'W') {
      put_class(word_items(), c == 'W', inside);
    } else if (c == 'd' || c == 'D') {
      put_class(category_items("Nd"), c == 'D', inside);
    } else if (plain.find(c) != plain.npos || c == 'A' || c == 'z' || c == 'Z') {
      if (inside && (c == 'A' || c == 'z' || c == 'Z')) refuse(fmt::format("\\{} inside [...]", c));
      return copy(2);
    } else if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) {
      return copy(2);  // an escaped mark stands for itself in both
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      ++pos_;  // an escaped letter beyond ASCII is that letter
      return copy(utf8::at(in_, pos_).length);
    } else {
      refuse(fmt::format("\\{}", c));
    }
    pos_ += 2;
  }

  void code_point(std::size_t prefix, std::size_t digits) {
    const std::string_view hex = in_.substr(pos_ + prefix, digits);
    if (hex.size() != digits || hex.find_first_not_of("0123456789abcdefABCDEF") != hex.npos) {
      refuse("an incomplete \\u");
    }
    out_ += fmt::format("\\x{{{}}}", hex);
    pos_ += prefix + digits;
  }

  void hexadecimal() {
    const bool braced = pos_ + 2 < in_.size() && in_[pos_ + 2] == '{';
    const std::size_t start = pos_ + (braced ? 3 : 2);
    std::size_t end = start;
    while (end < in_.size() && std::isxdigit(static_cast<unsigned char>(in_[end])) &&
           (braced || end < start + 2))
      ++end;
    const bool closed = !braced || (end < in_.size() && in_[end] == '}');
    if (end == start || end - start > 6 || !closed) refuse("a \\x escape that is not \\xHH or \\x{...}");
    const unsigned long code = std::stoul(std::string(in_.substr(start, end - start)), nullptr, 16);
    if (!braced && code >= 0x80) refuse("\\xHH above 7F (a raw byte)");
    out_ += fmt::format("\\x{{{:X}}}", code);
    pos_ = end + (braced ? 1 : 0);
  }

  void property(bool inside) {
    bool negated = in_[pos_ + 1] == 'P';
    const std::size_t close = in_.find('}', pos_);
    if (pos_ + 2 >= in_.size() || in_[pos_ + 2] != '{' || close == in_.npos) refuse("\\p without {...}");
    std::string_view name = in_.substr(pos_ + 3, close - pos_ - 3);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    if (std::find(std::begin(kCategories), std::end(kCategories), name) == std::end(kCategories)) {
      refuse(
          fmt::format("the property \\p{{{}}} (general categories such as \\p{{L}} or \\p{{Nd}} are)", name));
    }
    put_class(category_items(name), negated, inside);
    pos_ = close + 1;
  }

  void character_class() {
    copy(1);
    if (looking_at("^")) copy(1);
    if (looking_at("]")) refuse("']' as the first member of a class");
    while (true) {
      if (pos_ >= in_.size()) refuse("a class without its ']'");
      if (looking_at("[")) refuse("a class inside a class");
      if (looking_at("&&")) refuse("&& (intersection of classes)");
      if (in_[pos_] == ']') return copy(1);
      if (in_[pos_] == '\\') {
        escape(true);
      } else {
        copy(1);
      }
    }
  }

  void group() {
    if (!looking_at("(?")) return copy(1);
    static constexpr std::array<std::string_view, 6> kSame = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (const std::string_view open : kSame) {
      if (looking_at(open)) return copy(open.size());
    }
    if (looking_at("(?i:")) {
      refuse_multi_character_folds();
      return copy(4);
    }
    refuse(fmt::format("the group '{}'", in_.substr(pos_, std::min<std::size_t>(4, in_.size() - pos_))));
  }

  /// Without case, Oniguruma lets "ss" match one sharp s, "fi" one ligature, and so on; PCRE2 does not.
  void refuse_multi_character_folds() const {
    const std::string_view body = in_.substr(pos_ + 4, in_.find(')', pos_) - pos_ - 4);
    for (std::size_t i = 0; i < body.size(); ++i) {
      if (static_cast<unsigned char>(body[i]) >= 0x80) refuse("a letter beyond ASCII inside (?i:...)");
      static constexpr std::array<std::string_view, 5> kFolds = {"ss", "st", "ff", "fi", "fl"};
      for (const std::string_view fold : kFolds) {
        const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
        if (i + 1 < body.size() && lower(body[i]) == fold[0] && lower(body[i + 1]) == fold[1]) {
          refuse(fmt::format("'{}' inside (?i:...)", fold));
        }
      }
    }
  }

  /// {n}, {n,}, {n,m} are the same; {,m} is {0,m}; a '+' behind means "repeat that", not possessive.
  void braces() {
    const std::size_t close = in_.find('}', pos_);
    const std::string_view body = close == in_.npos ? "" : in_.substr(pos_ + 1, close - pos_ - 1);
    const bool counts = !body.empty() && body != "," && body.find_first_not_of("0123456789,") == body.npos &&
                        std::count(body.begin(), body.end(), ',') <= 1;
    if (!counts) refuse("'{' that is not a repeat count");
    out_ += body.starts_with(',') ? fmt::format("{{0{}}}", body) : fmt::format("{{{}}}", body);
    pos_ = close + 1;
    if (looking_at("+") || looking_at("*") || (looking_at("?") && body.find(',') == body.npos)) {
      refuse("a repeat of a repeat count ({n}+ and the like)");
    }
  }

  std::string_view in_;
  const std::string& where_;
  std::size_t pos_ = 0;
  std::string out_;
};

}  // namespace

std::string pcre2_pattern(std::string_view oniguruma, const std::string& where) {
  return Translator(oniguruma, where).run();
}

}  // namespace lacuna
