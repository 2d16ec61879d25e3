// Exact attention of one step, page by page: what the decode oracles and twilight decide by.
#pragma once

#include <vector>

#include "attention/strategy.h"

namespace lacuna {

/// For each local kv head: the weights of its query heads (softmax over the tokens of the candidate pages),
/// summed over the query heads wherever their ranks are and divided by their number: one value per candidate
/// page, summing to 1. candidates: per kv head, sorted page indices. Throws kUsage on NaN. Adds index flops
/// and bytes.
std::vector<std::vector<double>> page_weights(const DecodeInput& input,
                                              const std::vector<PageList>& candidates,
                                              AttentionCounts& counts);

/// Every page of each kv head.
std::vector<PageList> all_pages(const DecodeInput& input);

/// The fewest of `candidates` whose weights reach `mass`, and the last page of the cache; ascending.
PageList pages_with_mass(const PageList& candidates, const std::vector<double>& weights, double mass,
                         std::int32_t current);

}  // namespace lacuna
