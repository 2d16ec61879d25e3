#include "model/pretokenizer.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"
#include "model/pretokenizer_regex.h"
#include "model/tokenizer_unicode.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior parse_behavior(const std::string& name, const std::string& where) {
  static const std::vector<std::string> kNames = {"Removed", "Isolated", "MergedWithPrevious",
                                                  "MergedWithNext", "Contiguous"};
  const auto it = std::find(kNames.begin(), kNames.end(), name);
  if (it == kNames.end()) throw_usage("{}: {}", where, unknown_name_message("behavior", name, kNames));
  return static_cast<Behavior>(it - kNames.begin());
}

/// A stretch of text that the delimiter matches, or that lies between two matches (possibly empty).
struct Span {
  std::size_t begin, end;
  bool match;
};

/// What the behavior makes of matches and gaps, as byte ranges.
std::vector<Span> apply_behavior(std::vector<Span> spans, Behavior behavior) {
  std::vector<Span> out;
  bool previous = false;
  switch (behavior) {
    case Behavior::kIsolated:
      return spans;
    case Behavior::kRemoved:
      std::erase_if(spans, [](const Span& s) { return s.match; });
      return spans;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (const Span& s : spans) {
        const bool joins = behavior == Behavior::kContiguous ? s.match == previous : s.match && !previous;
        if (joins && !out.empty()) {
          out.back().end = s.end;
        } else {
          out.push_back(s);
        }
        previous = s.match;
      }
      return out;
    case Behavior::kMergedWithNext:
      for (auto s = spans.rbegin(); s != spans.rend(); ++s) {
        if (s->match && !previous && !out.empty()) {
          out.back().begin = s->begin;
        } else {
          out.push_back(*s);
        }
        previous = s->match;
      }
      std::reverse(out.begin(), out.end());
      return out;
  }
  return out;
}

void emit(const Piece& piece, std::size_t begin, std::size_t end, Pieces& out) {
  if (begin < end) out.items.push_back({piece.text.substr(begin, end - begin), piece.at_start && begin == 0});
}

/// Cuts at what `each_match(text, found)` finds.
template <class Matcher>
void cut_with(const Piece& piece, const Matcher& each_match, Behavior behavior, bool invert, Pieces& out) {
  std::size_t last = 0;
  if (behavior == Behavior::kIsolated) {  // the usual case, without a list of spans
    each_match(piece.text, [&](std::size_t begin, std::size_t end) {
      emit(piece, last, begin, out);
      emit(piece, begin, end, out);
      last = end;
    });
    emit(piece, last, piece.text.size(), out);
    return;
  }
  std::vector<Span> spans;
  each_match(piece.text, [&](std::size_t begin, std::size_t end) {
    if (last != begin) spans.push_back({last, begin, invert});
    spans.push_back({begin, end, !invert});
    last = end;
  });
  if (last != piece.text.size()) spans.push_back({last, piece.text.size(), invert});
  for (const Span& s : apply_behavior(std::move(spans), behavior)) emit(piece, s.begin, s.end, out);
}

class RegexSplit : public PreTokenizerStage {
 public:
  RegexSplit(Regex regex, Behavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  void cut(const Piece& piece, Pieces& out) const override {
    cut_with(
        piece, [this](std::string_view text, auto&& found) { regex_.for_each_match(text, found); }, behavior_,
        invert_, out);
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

class StringSplit : public PreTokenizerStage {
 public:
  StringSplit(std::string pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void cut(const Piece& piece, Pieces& out) const override {
    const auto each = [this](std::string_view text, auto&& found) {
      for (std::size_t at = text.find(pattern_); at != text.npos;
           at = text.find(pattern_, at + pattern_.size())) {
        found(at, at + pattern_.size());
      }
    };
    cut_with(piece, each, behavior_, invert_, out);
  }

 private:
  std::string pattern_;
  Behavior behavior_;
  bool invert_;
};

/// Every character with a property is a match (Digits, Punctuation).
class PropertySplit : public PreTokenizerStage {
 public:
  PropertySplit(unicode::Property property, Behavior behavior) : property_(property), behavior_(behavior) {}
  void cut(const Piece& piece, Pieces& out) const override {
    const auto each = [this](std::string_view text, auto&& found) {
      for (std::size_t i = 0; i < text.size();) {
        const utf8::Char c = utf8::at(text, i);
        if (unicode::has(c.code, property_)) found(i, i + c.length);
        i += c.length;
      }
    };
    cut_with(piece, each, behavior_, false, out);
  }

 private:
  unicode::Property property_;
  Behavior behavior_;
};

/// A leading space, so that the first word looks like any other.
class PrefixSpace : public PreTokenizerStage {
 public:
  void cut(const Piece& piece, Pieces& out) const override {
    if (piece.text.starts_with(' ')) {
      out.items.push_back(piece);
    } else {
      out.items.push_back({out.owned.emplace_back(" " + std::string(piece.text)), piece.at_start});
    }
  }
};

class MapBytes : public PreTokenizerStage {
 public:
  void cut(const Piece& piece, Pieces& out) const override {
    std::string& text = out.owned.emplace_back();
    map_bytes(piece.text, text);
    out.items.push_back({text, piece.at_start});
  }
};

class Metaspace : public PreTokenizerStage {
 public:
  enum class Prepend { kNever, kFirst, kAlways };
  Metaspace(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}

  void cut(const Piece& piece, Pieces& out) const override {
    std::string& text = out.owned.emplace_back();
    const bool wants = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.at_start);
    if (wants && !piece.text.starts_with(' ') && !piece.text.starts_with(replacement_)) text = replacement_;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += replacement_;
      } else {
        text += c;
      }
    }
    const Piece rewritten{text, piece.at_start};
    if (!split_) {
      out.items.push_back(rewritten);
      return;
    }
    const auto each = [this](std::string_view in, auto&& found) {
      for (std::size_t at = in.find(replacement_); at != in.npos;
           at = in.find(replacement_, at + replacement_.size())) {
        found(at, at + replacement_.size());
      }
    };
    cut_with(rewritten, each, Behavior::kMergedWithNext, false, out);
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

std::unique_ptr<const PreTokenizerStage> parse_split(const Json& field, const std::string& where) {
  const Behavior behavior = parse_behavior(json_get<std::string>(field, "behavior", where), where);
  const bool invert = json_get<bool>(field, "invert", where);
  const auto it = field.find("pattern");
  LACUNA_REQUIRE(it != field.end() && it->is_object() && it->size() == 1,
                 "{}: field 'pattern' must be {{\"String\": ...}} or {{\"Regex\": ...}}", where);
  const bool regex = it->contains("Regex");
  const auto pattern = json_get<std::string>(*it, regex ? "Regex" : "String", where + ": pattern");
  if (regex) return std::make_unique<RegexSplit>(Regex(pattern, where), behavior, invert);
  LACUNA_REQUIRE(!pattern.empty(), "{}: an empty pattern is not supported", where);
  return std::make_unique<StringSplit>(pattern, behavior, invert);
}

std::unique_ptr<const PreTokenizerStage> parse_metaspace(const Json& field, bool keeps_start,
                                                         const std::string& where) {
  const auto replacement = json_get<std::string>(field, "replacement", where);
  LACUNA_REQUIRE(!replacement.empty() && utf8::at(replacement, 0).length == replacement.size(),
                 "{}: field 'replacement' must be one character", where);
  auto scheme = json_get_or<std::string>(field, "prepend_scheme", "always", where);
  if (!json_get_or<bool>(field, "add_prefix_space", true, where)) {
    LACUNA_REQUIRE(scheme == "never" || !field.contains("prepend_scheme"),
                   "{}: add_prefix_space false contradicts prepend_scheme '{}'", where, scheme);
    scheme = "never";
  }
  const bool split = json_get_or<bool>(field, "split", true, where);
  using Prepend = Metaspace::Prepend;
  if (scheme == "never") return std::make_unique<Metaspace>(replacement, Prepend::kNever, split);
  if (scheme == "always") return std::make_unique<Metaspace>(replacement, Prepend::kAlways, split);
  LACUNA_REQUIRE(scheme == "first", "{}: prepend_scheme '{}' is unknown (first, always, never)", where,
                 scheme);
  LACUNA_REQUIRE(
      keeps_start,
      "{}: prepend_scheme 'first' is not supported behind a step that may remove or move the first "
      "character (Strip, Replace of more than one character, ByteLevel with add_prefix_space, Metaspace)",
      where);
  return std::make_unique<Metaspace>(replacement, Prepend::kFirst, split);
}

}  // namespace

PreTokenizer PreTokenizer::parse(const Json& field, bool keeps_start, const std::string& where) {
  PreTokenizer result;
  if (!field.is_null()) result.add(field, true, keeps_start, where + ": pre_tokenizer");
  return result;
}

void PreTokenizer::add(const Json& field, bool last, bool keeps_start, const std::string& where) {
  const auto type = json_get<std::string>(field, "type", where);
  const std::string here = where + " " + type;
  if (type == "Sequence") {
    const auto it = field.find("pretokenizers");
    LACUNA_REQUIRE(it != field.end() && it->is_array(), "{}: field 'pretokenizers' must be a list", here);
    for (std::size_t i = 0; i < it->size(); ++i) {
      add((*it)[i], last && i + 1 == it->size(), keeps_start && !rewrites_, fmt::format("{}[{}]", here, i));
    }
  } else if (type == "Split") {
    stages_.push_back(parse_split(field, here));
  } else if (type == "ByteLevel") {
    if (json_get<bool>(field, "add_prefix_space", here)) {
      stages_.push_back(std::make_unique<PrefixSpace>());
      rewrites_ = true;
    }
    if (json_get_or<bool>(field, "use_regex", true, here)) {
      stages_.push_back(std::make_unique<RegexSplit>(Regex(kGpt2Pattern, here), Behavior::kIsolated, false));
    }
    if (last) {
      byte_level_ = true;
    } else {
      stages_.push_back(std::make_unique<MapBytes>());
    }
  } else if (type == "Metaspace") {
    stages_.push_back(parse_metaspace(field, keeps_start && !rewrites_, here));
    rewrites_ = true;
  } else if (type == "Digits") {
    const bool single = json_get_or<bool>(field, "individual_digits", false, here);
    stages_.push_back(std::make_unique<PropertySplit>(unicode::kNumber,
                                                      single ? Behavior::kIsolated : Behavior::kContiguous));
  } else if (type == "Punctuation") {
    const auto behavior = parse_behavior(json_get_or<std::string>(field, "behavior", "Isolated", here), here);
    stages_.push_back(std::make_unique<PropertySplit>(unicode::kPunctuation, behavior));
  } else {
    throw_usage(
        "{}: this pre-tokenizer is not supported (supported: Split, ByteLevel, Metaspace, Digits, "
        "Punctuation, "
        "Sequence)",
        here);
  }
}

void PreTokenizer::run(std::string_view text, bool at_start, Pieces& pieces) const {
  if (text.empty()) return;
  const Piece whole{text, at_start};
  if (stages_.empty()) {
    emit(whole, 0, text.size(), pieces);
    return;
  }
  if (stages_.size() == 1) return stages_.front()->cut(whole, pieces);
  std::vector<Piece> current{whole};
  std::vector<Piece> before = std::move(pieces.items);
  for (const auto& stage : stages_) {
    pieces.items.clear();
    for (const Piece& piece : current) stage->cut(piece, pieces);
    current.swap(pieces.items);
  }
  pieces.items = std::move(before);
  pieces.items.insert(pieces.items.end(), current.begin(), current.end());
}

namespace {

struct ByteAlphabet {
  std::array<char32_t, 256> code;
  std::array<std::int16_t, 0x144> byte;  // -1: not of the alphabet
  ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      code[b] = printable ? b : next++;
      byte[code[b]] = static_cast<std::int16_t>(b);
    }
  }
};
const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

}  // namespace

void map_bytes(std::string_view bytes, std::string& text) {
  for (const char c : bytes) utf8::append(text, byte_alphabet().code[static_cast<unsigned char>(c)]);
}

bool unmap_bytes(std::string_view text, std::string& bytes) {
  const auto& table = byte_alphabet().byte;
  bytes.clear();
  for (std::size_t i = 0; i < text.size();) {
    const utf8::Char c = utf8::at(text, i);
    if (c.code >= table.size() || table[c.code] < 0) return false;
    bytes.push_back(static_cast<char>(table[c.code]));
    i += c.length;
  }
  return true;
}

}  // namespace lacuna
