#include "model/tokenizer_decoder.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "core/json.h"
#include "model/pretokenizer.h"
#include "model/pretokenizer_regex.h"
#include "model/tokenizer_utf8.h"

namespace lacuna {
namespace {

/// Bytes of the byte-level alphabet; a token with other characters stands for its own bytes.
class ByteLevelStep : public DecoderStep {
 public:
  void push(std::string_view token, const Sink& sink) override {
    std::string text;
    stream_.push(unmap_bytes(token, bytes_) ? std::string_view(bytes_) : token, text);
    if (!text.empty()) sink(text);
  }
  void finish(const Sink& sink) override {
    std::string text;
    stream_.finish(text);
    if (!text.empty()) sink(text);
  }

 private:
  utf8::LossyStream stream_;
  std::string bytes_;
};

/// <0x41> tokens. A run of them is text if it is valid UTF-8 as a whole, and one U+FFFD per byte if not: so a
/// run is not certain before it ends.
class ByteFallbackStep : public DecoderStep {
 public:
  void push(std::string_view token, const Sink& sink) override {
    if (const auto byte = byte_of(token)) {
      run_.push_back(*byte);
      return;
    }
    finish(sink);
    sink(token);
  }
  void finish(const Sink& sink) override {
    if (run_.empty()) return;
    std::string storage;
    if (utf8::replace_invalid(run_, storage).data() == run_.data()) {
      sink(run_);
    } else {
      for (std::size_t i = 0; i < run_.size(); ++i) sink("\xEF\xBF\xBD");
    }
    run_.clear();
  }

 private:
  static std::optional<char> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
    const auto digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                    : -1;
    };
    // The reference's number parser takes a leading '+' too.
    const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
    if (high < 0 || low < 0) return std::nullopt;
    return static_cast<char>(high * 16 + low);
  }
  std::string run_;
};

/// Up to `start` leading and `stop` trailing characters `content`, of every token or (fused) of the whole
/// text.
class StripStep : public DecoderStep {
 public:
  StripStep(std::string content, std::int64_t start, std::int64_t stop, bool fused)
      : content_(std::move(content)), start_(start), stop_(stop), fused_(fused), left_(start) {}
  void push(std::string_view token, const Sink& sink) override {
    if (!fused_) left_ = start_;
    const bool was_left = left_ > 0;
    while (left_ > 0 && token.starts_with(content_)) {
      token.remove_prefix(content_.size());
      --left_;
    }
    if (was_left && !token.empty()) left_ = 0;
    held_ += token;
    if (!fused_) {
      strip_end();
      sink(held_);
      held_.clear();
      return;
    }
    // What may yet turn out to be the end waits.
    std::size_t keep = 0;
    while (keep < static_cast<std::size_t>(stop_) * content_.size() &&
           std::string_view(held_).substr(0, held_.size() - keep).ends_with(content_)) {
      keep += content_.size();
    }
    if (held_.size() > keep) sink(held_.substr(0, held_.size() - keep));
    held_.erase(0, held_.size() - keep);
  }
  void finish(const Sink& sink) override {
    strip_end();
    if (!held_.empty()) sink(held_);
    held_.clear();
  }

 private:
  void strip_end() {
    for (std::int64_t i = 0; i < stop_ && held_.ends_with(content_); ++i)
      held_.resize(held_.size() - content_.size());
  }
  std::string content_;
  std::int64_t start_, stop_;
  bool fused_;
  std::int64_t left_;
  std::string held_;
};

using Rewrite = std::function<std::string(std::string_view)>;

/// A rewriting of every token, or (fused) of the whole text, which then waits for its end.
class RewriteStep : public DecoderStep {
 public:
  RewriteStep(Rewrite rewrite, bool fused) : rewrite_(std::move(rewrite)), fused_(fused) {}
  void push(std::string_view token, const Sink& sink) override {
    if (fused_) {
      held_ += token;
    } else {
      sink(rewrite_(token));
    }
  }
  void finish(const Sink& sink) override {
    if (fused_) sink(rewrite_(held_));
    held_.clear();
  }

 private:
  Rewrite rewrite_;
  bool fused_;
  std::string held_;
};

/// The replacement character becomes a space, but vanishes from the first token where one was prepended.
class MetaspaceStep : public DecoderStep {
 public:
  MetaspaceStep(std::string replacement, bool prepended, bool fused)
      : replacement_(std::move(replacement)), prepended_(prepended), fused_(fused) {}
  void push(std::string_view token, const Sink& sink) override {
    std::string text;
    std::size_t begin = 0;
    for (std::size_t at = token.find(replacement_); at != token.npos; at = token.find(replacement_, begin)) {
      text += token.substr(begin, at - begin);
      if (!first_ || !prepended_) text += ' ';
      begin = at + replacement_.size();
    }
    text += token.substr(begin);
    first_ = first_ && fused_;  // a fused text is one token: all of it is the first
    sink(text);
  }

 private:
  std::string replacement_;
  bool prepended_, fused_, first_ = true;
};

class JoinWithSpaces : public DecoderStep {
 public:
  void push(std::string_view token, const Sink& sink) override {
    if (!first_) sink(" ");
    first_ = false;
    sink(token);
  }

 private:
  bool first_ = true;
};

std::string replace_matches(std::string_view token, const Regex& regex, const std::string& content) {
  std::string text;
  std::size_t last = 0;
  regex.for_each_match(token, [&](std::size_t begin, std::size_t end) {
    text += token.substr(last, begin - last);
    text += content;
    last = end;
  });
  text += token.substr(last);
  return text;
}

Rewrite parse_replace(const Json& field, const std::string& where) {
  const auto content = json_get<std::string>(field, "content", where);
  const auto it = field.find("pattern");
  LACUNA_REQUIRE(it != field.end() && it->is_object() && it->size() == 1,
                 "{}: field 'pattern' must be {{\"String\": ...}} or {{\"Regex\": ...}}", where);
  if (it->contains("Regex")) {
    const auto regex =
        std::make_shared<const Regex>(json_get<std::string>(*it, "Regex", where + ": pattern"), where);
    return [regex, content](std::string_view token) { return replace_matches(token, *regex, content); };
  }
  const auto from = json_get<std::string>(*it, "String", where + ": pattern");
  LACUNA_REQUIRE(!from.empty(), "{}: an empty pattern is not supported", where);
  return [from, content](std::string_view token) {
    std::string text;
    std::size_t begin = 0;
    for (std::size_t at = token.find(from); at != token.npos; at = token.find(from, begin)) {
      text.append(token.substr(begin, at - begin)).append(content);
      begin = at + from.size();
    }
    return text.append(token.substr(begin));
  };
}

std::string one_character(const Json& field, const char* key, const std::string& where) {
  auto text = json_get<std::string>(field, key, where);
  LACUNA_REQUIRE(!text.empty() && utf8::at(text, 0).length == text.size(),
                 "{}: field '{}' must be one character", where, key);
  return text;
}

}  // namespace

void DecoderRun::feed(std::size_t step, std::string_view token, std::string& out) {
  if (step == steps_.size()) {
    out += token;
    return;
  }
  steps_[step]->push(token, [&](std::string_view piece) { feed(step + 1, piece, out); });
}

void DecoderRun::finish(std::string& out) {
  for (std::size_t step = 0; step < steps_.size(); ++step) {
    steps_[step]->finish([&](std::string_view piece) { feed(step + 1, piece, out); });
  }
}

Decoder Decoder::parse(const Json& field, const std::string& where) {
  Decoder decoder;
  bool fused = false;
  if (field.is_null()) {
    decoder.makers_.emplace_back([] { return std::make_unique<JoinWithSpaces>(); });
  } else {
    decoder.add(field, fused, where + ": decoder");
  }
  return decoder;
}

DecoderRun Decoder::start() const {
  std::vector<std::unique_ptr<DecoderStep>> steps;
  steps.reserve(makers_.size());
  for (const Maker& make : makers_) steps.push_back(make());
  return DecoderRun(std::move(steps));
}

void Decoder::add(const Json& field, bool& fused, const std::string& where) {
  const auto type = json_get<std::string>(field, "type", where);
  const std::string here = where + " " + type;
  if (type == "Sequence") {
    const auto it = field.find("decoders");
    LACUNA_REQUIRE(it != field.end() && it->is_array(), "{}: field 'decoders' must be a list", here);
    for (std::size_t i = 0; i < it->size(); ++i) add((*it)[i], fused, fmt::format("{}[{}]", here, i));
  } else if (type == "ByteLevel") {
    LACUNA_REQUIRE(!fused, "{}: not supported behind Fuse or another ByteLevel", here);
    makers_.emplace_back([] { return std::make_unique<ByteLevelStep>(); });
    fused = true;
  } else if (type == "Fuse") {
    fused = true;  // the pieces that follow are parts of one token
  } else if (type == "ByteFallback") {
    LACUNA_REQUIRE(!fused, "{}: not supported behind Fuse or ByteLevel", here);
    makers_.emplace_back([] { return std::make_unique<ByteFallbackStep>(); });
  } else if (type == "Strip") {
    const auto content = one_character(field, "content", here);
    const auto start = json_get<std::uint32_t>(field, "start", here),
               stop = json_get<std::uint32_t>(field, "stop", here);
    makers_.emplace_back([=, f = fused] { return std::make_unique<StripStep>(content, start, stop, f); });
  } else if (type == "Replace") {
    makers_.emplace_back([rewrite = parse_replace(field, here), f = fused] {
      return std::make_unique<RewriteStep>(rewrite, f);
    });
  } else if (type == "Metaspace") {
    const auto replacement = one_character(field, "replacement", here);
    const bool prepended = json_get_or<std::string>(field, "prepend_scheme", "always", here) != "never" &&
                           json_get_or<bool>(field, "add_prefix_space", true, here);
    makers_.emplace_back(
        [=, f = fused] { return std::make_unique<MetaspaceStep>(replacement, prepended, f); });
  } else {
    throw_usage(
        "{}: this decoder is not supported (supported: ByteLevel, ByteFallback, Fuse, Strip, Replace, "
        "Metaspace, "
        "Sequence)",
        here);
  }
}

}  // namespace lacuna
