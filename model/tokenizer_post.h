// Post-processors of tokenizer.json: the tokens around a text (BOS).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "model/tokenizer.h"

namespace lacuna {

/// TemplateProcessing (for a single text), ByteLevel (which changes no ids) and Sequence. Immutable.
class PostProcessor {
 public:
  /// `field` is the file's "post_processor" (null: nothing is added). Unsupported types throw kUsage by name.
  static PostProcessor parse(const nlohmann::json& field, const std::string& where);

  std::vector<TokenId> apply(std::vector<TokenId> ids, bool add_special) const;

 private:
  struct Part {
    bool text = false;         ///< The ids of the text itself,
    std::vector<TokenId> ids;  ///< or these.
  };
  void add(const nlohmann::json& field, const std::string& where);
  std::vector<Part> parts_;  // empty: the text alone
};

}  // namespace lacuna
