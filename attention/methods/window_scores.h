// Attention weights of the last queries of a prompt, summed by column and by diagonal: the estimate that
// vertical_slash, flexprefill, snapkv, ada_snapkv and their kin start from.
#pragma once

#include <vector>

#include "attention/types.h"

namespace lacuna {

/// P[i][j] = softmax over j <= i of scale * q_i . k_j (with the layer's soft cap and window), for the last
/// min(window, tokens) rows i. Scores and weights are fp32; sums are double, over ascending i.
struct WindowScores {
  std::vector<double> column_sum;    ///< [tokens]: sum over i of P[i][j]
  std::vector<double> diagonal_sum;  ///< [tokens]: sum over i of P[i][i - offset]
  std::vector<float> column_max;     ///< [tokens]: max over i of P[i][j]
  std::int64_t rows = 0;
  double flops = 0;
};

struct WindowRequest {
  std::int64_t window = 0;
  bool columns = true, diagonals = false, maxima = false;
};

/// For one local query head. Throws kUsage naming layer and head when a score is NaN or infinite.
WindowScores window_scores(const PrefillInput& input, int q_head, const WindowRequest& request);

/// What that costs one head, as `flops` counts it.
double window_scores_flops(const LayerInfo& info, std::int64_t tokens, std::int64_t window);

/// Per-query-head rows [q_heads][tokens] of every rank, joined to [q_heads_total][tokens] in global head
/// order. The same bits on every rank and at every tensor-parallel degree. Collective when the team has more
/// than one rank.
std::vector<std::vector<double>> gather_heads(const PrefillInput& input,
                                              std::vector<std::vector<double>> local);

/// y[j] = (sum of x[j-10 .. j+10], absent terms zero) / 21 for kernel 21, summed afresh per j in ascending
/// order, so that equal neighbourhoods have equal values.
std::vector<double> average_pool(const std::vector<double>& x, int kernel);

}  // namespace lacuna
