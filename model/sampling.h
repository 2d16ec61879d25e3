// The next token from one row of logits.
#pragma once

#include <span>

#include "model/engine.h"

namespace lacuna {

/// Draws from softmax(logits / temperature) cut to the smallest set of most probable tokens whose mass
/// reaches top_p (ties: lower id first). Depends on (options.seed, step) alone besides the logits.
/// Temperature above 0. Throws kResource when a logit is NaN or all are -inf.
TokenId sample_token(std::span<const float> logits, const SamplingOptions& options, std::uint64_t step);

/// Throws kUsage for values that mean nothing (`where` starts the message).
void check_sampling(const SamplingOptions& options, const std::string& where);

}  // namespace lacuna
