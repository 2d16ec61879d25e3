// What the GPU tests of the engine share: prompts that the shipped models understand, and comparisons that
// say where two runs part.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "core/json.h"
#include "model/chat.h"
#include "model/engine.h"
#include "tasks/task.h"

namespace lacuna::testing {

inline const std::string kMini = "assets/mini/";

inline StrategySpec strategy(const std::string& json) {
  return parse_strategy(parse_json(json, "test"), "test");
}

inline Variant variant(const std::string& json, int new_tokens) {
  const StrategySpec s = strategy(json);
  return {
      .evict = s.evict, .decode = s.decode, .sampling = {.max_new_tokens = new_tokens, .ignore_stop = true}};
}

/// Sample `index` of a task as the model gets it.
inline std::vector<TokenId> task_prompt(const std::string& folder, const std::string& task, int tokens,
                                        std::uint64_t index) {
  const Tokenizer tokenizer = Tokenizer::load(folder);
  // The shipped models were trained on this form of the tasks.
  const Params params =
      Params::parse(find_task(task, "test").params, {{"preset", "mini"}, {"style", "direct"}}, "test");
  return make_task(task, params)
      ->generate({.tokenizer = &tokenizer,
                  .chat = detect_chat_format(folder),
                  .target_tokens = tokens,
                  .seed = 1,
                  .index = index})
      .ids;
}

inline JobResult run_job(Engine& engine, std::span<const TokenId> prompt, std::span<const Variant> variants,
                         const std::string& prefill = "{}") {
  return engine.run({.prompt = prompt,
                     .prefill = strategy(prefill).prefill,
                     .variants = variants,
                     .seed = 3,
                     .want_logits = true,
                     .on_token = {},
                     .cancelled = {}});
}

struct Difference {
  double largest = 0, rms = 0;
  std::size_t at = 0;  ///< Of the largest.
};
inline Difference difference(std::span<const float> a, std::span<const float> b) {
  Difference d;
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    sum += x * x;
    if (!(x <= d.largest)) {  // NaN too
      d.largest = std::isnan(x) ? INFINITY : x;
      d.at = i;
    }
  }
  d.rms = std::sqrt(sum / static_cast<double>(std::max<std::size_t>(1, a.size())));
  return d;
}

/// Two runs of one variant: where their tokens part, how sure the first was of its token there, and how far
/// the logits were apart up to there.
struct Parting {
  std::size_t token = 0;  ///< Equal tokens before it.
  bool parts = false;
  double margin = 0;  ///< First run: its token's logit above that of the second run's token.
  double noise = 0;   ///< Largest difference of logits relative to the largest logit of its row.
  std::string to_string() const {
    return parts ? fmt::format("tokens part at {} (margin {:.4f}); logits differ by {:.4f} of the largest",
                               token, margin, noise)
                 : fmt::format("{} equal tokens; logits differ by {:.4f} of the largest", token, noise);
  }
};
inline Parting compare_runs(const JobResult& a, const JobResult& b, std::size_t va, std::size_t vb) {
  const VariantResult &x = a.variants[va], &y = b.variants[vb];
  Parting result;
  const std::size_t tokens = std::min(x.ids.size(), y.ids.size());
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::vector<float>& row = t == 0 ? a.prompt_logits : x.logits[t - 1];
    const std::vector<float>& other = t == 0 ? b.prompt_logits : y.logits[t - 1];
    double size = 0;
    for (const float value : row) size = std::max(size, std::abs(static_cast<double>(value)));
    result.noise = std::max(result.noise, difference(row, other).largest / size);
    if (x.ids[t] != y.ids[t]) {
      result.parts = true;
      result.margin = row[static_cast<std::size_t>(x.ids[t])] - row[static_cast<std::size_t>(y.ids[t])];
      return result;
    }
    ++result.token;
  }
  result.parts = x.ids.size() != y.ids.size();
  return result;
}

}  // namespace lacuna::testing
