// Normalizers of tokenizer.json: what happens to text before it is split into words.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace lacuna {

/// NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace and Sequence. Immutable and thread-safe.
class Normalizer {
 public:
  /// `field` is the file's "normalizer" (null: text stays as it is). Unsupported types throw kUsage by name.
  static Normalizer parse(const nlohmann::json& field, const std::string& where);

  /// Changes valid UTF-8 text in place; the result is valid too.
  void apply(std::string& text) const {
    for (const auto& step : steps_) step(text);
  }
  bool empty() const { return steps_.empty(); }
  /// Whether text that began at the start of the input still does, in the reference's eyes (Metaspace "first"
  /// asks).
  bool keeps_start() const { return keeps_start_; }

 private:
  void add(const nlohmann::json& field, const std::string& where);
  std::vector<std::function<void(std::string&)>> steps_;
  bool keeps_start_ = true;
};

}  // namespace lacuna
