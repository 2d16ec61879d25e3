#include "model/tokenizer_utf8.h"

#include <cstring>

namespace lacuna::utf8 {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Bytes of valid text at the start of `text`.
std::size_t valid_prefix(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    while (i + 8 <= text.size()) {  // ASCII, eight bytes at a time
      std::uint64_t word;
      std::memcpy(&word, text.data() + i, 8);
      if (word & 0x8080808080808080u) break;
      i += 8;
    }
    if (i == text.size()) break;
    const Scan s = scan(text.substr(i));
    if (s.kind != Scan::kValid) break;
    i += s.length;
  }
  return i;
}

}  // namespace

Scan scan(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Scan::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Scan::kInvalid, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Scan::kIncomplete, i};
    unsigned low = 0x80, high = 0xBF;
    if (i == 1) {  // no overlong forms, no surrogates, nothing above U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte(i) < low || byte(i) > high) return {Scan::kInvalid, i};
  }
  return {Scan::kValid, length};
}

std::string_view replace_invalid(std::string_view text, std::string& storage) {
  if (valid_prefix(text) == text.size()) return text;
  storage.clear();
  storage.reserve(text.size() + 16);
  LossyStream stream;
  stream.push(text, storage);
  stream.finish(storage);
  return storage;
}

Char before(std::string_view text, std::size_t end) {
  std::size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return at(text, start);
}

void append(std::string& text, char32_t code) {
  const auto put = [&](unsigned value) { text.push_back(static_cast<char>(value)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

void LossyStream::push(std::string_view bytes, std::string& out) {
  // A pending piece is tiny: join it with the new bytes only as far as its character can reach.
  while (!pending_.empty() && !bytes.empty()) {
    pending_.push_back(bytes.front());
    const Scan s = scan(pending_);
    if (s.kind == Scan::kInvalid) {  // the new byte does not continue it: look at that byte afresh
      out += kReplacement;
      pending_.clear();
      break;
    }
    bytes.remove_prefix(1);
    if (s.kind == Scan::kValid) {
      out += pending_;
      pending_.clear();
    }
  }
  while (!bytes.empty()) {
    const std::size_t good = valid_prefix(bytes);
    out += bytes.substr(0, good);
    bytes.remove_prefix(good);
    if (bytes.empty()) break;
    const Scan s = scan(bytes);
    if (s.kind == Scan::kIncomplete) {
      pending_ = bytes;
      return;
    }
    out += kReplacement;
    bytes.remove_prefix(s.length);
  }
}

void LossyStream::finish(std::string& out) {
  if (!pending_.empty()) out += kReplacement;
  pending_.clear();
}

}  // namespace lacuna::utf8
