#include <algorithm>
#include <cmath>
#include <set>

#include "attention/reference/reference.h"
#include "core/error.h"
#include "core/rng.h"

namespace lacuna::reference {

namespace {

using Weights = std::vector<std::vector<float>>;
using Set = std::set<std::int64_t>;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

std::vector<double> column_sums(const Weights& p, std::int64_t tokens) {
  std::vector<double> sums(at(tokens));
  for (const auto& row : p) {
    for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += static_cast<double>(row[j]);
  }
  return sums;
}

std::vector<double> diagonal_sums(const Weights& p, std::int64_t tokens) {
  std::vector<double> sums(at(tokens));
  for (std::size_t r = 0; r < p.size(); ++r) {
    const std::int64_t row = tokens - std::ssize(p) + static_cast<std::int64_t>(r);
    for (std::int64_t j = 0; j <= row; ++j) sums[at(row - j)] += static_cast<double>(p[r][at(j)]);
  }
  return sums;
}

/// `count` best, the first `always` among them.
std::vector<std::int32_t> best(std::vector<double> sums, std::int64_t count, std::int64_t always) {
  for (std::int64_t i = 0; i < std::min<std::int64_t>(always, std::ssize(sums)); ++i) sums[at(i)] = INFINITY;
  return top(sums, std::max(count, always));
}

/// Length of the shortest run of largest values whose sum is above `mass`.
std::int64_t count_above(std::vector<double> values, double mass) {
  std::sort(values.rbegin(), values.rend());
  double sum = 0;
  for (std::size_t n = 0; n < values.size(); ++n) {
    sum += values[n];
    if (sum > mass) return static_cast<std::int64_t>(n) + 1;
  }
  return std::ssize(values);
}

/// Columns and diagonals to a mask, by the rule of the released code (or the exact union of the asked
/// blocks).
Mask slash_mask(const std::vector<std::int32_t>& columns, const std::vector<std::int32_t>& offsets,
                std::int64_t tokens, bool released) {
  Mask mask = causal_mask(tokens, 0);
  for (std::int64_t m = 0; m < tokens; m += 64) {
    Set visited(columns.begin(), columns.end());
    std::int64_t start = 0, end = -1;
    const auto close = [&] {
      for (std::int64_t j = start; j < end; ++j) visited.insert(j);
    };
    for (auto offset = offsets.rbegin(); offset != offsets.rend();
         ++offset) {  // descending: blocks from left to right
      if (*offset >= m + 64) continue;
      const std::int64_t asked = std::max<std::int64_t>(m - *offset, 0);
      if (!released) {
        for (std::int64_t j = asked; j < asked + 64; ++j) visited.insert(j);
      } else if (end < 0 || asked > end) {
        close();
        start = asked;
        end = asked + 64;
      } else if (asked + 64 > end) {
        end += 64;
      }
    }
    close();
    for (std::int64_t i = m; i < std::min(m + 64, tokens); ++i) {
      for (std::int64_t j = 0; j <= i; ++j) mask[at(i)][at(j)] = visited.contains(j);
    }
  }
  return mask;
}

/// blocks[row block] = kept key blocks.
Mask block_mask(const std::vector<Set>& blocks, std::int64_t block, std::int64_t tokens) {
  Mask mask = causal_mask(tokens, 0);
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) mask[at(i)][at(j)] = blocks[at(i / block)].contains(j / block);
  }
  return mask;
}

std::vector<float> mean_of(const HeadsView& x, int head, std::int64_t begin, std::int64_t end) {
  std::vector<float> mean(at(x.head_dim));
  for (std::int64_t t = begin; t < end; ++t) {
    for (int c = 0; c < x.head_dim; ++c) mean[at(c)] += x.row(head, t)[c];
  }
  for (float& value : mean) value /= static_cast<float>(end - begin);
  return mean;
}

float dot(const std::vector<float>& a, const std::vector<float>& b) {
  float sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
  return sum;
}

/// scores[i][j]: pooled query block i against pooled key block j <= i.
std::vector<std::vector<double>> pooled_scores(const PrefillInput& input, int q_head, std::int64_t block) {
  const std::int64_t tokens = input.q.tokens, blocks = (tokens + block - 1) / block;
  std::vector<std::vector<double>> scores(at(blocks));
  for (std::int64_t i = 0; i < blocks; ++i) {
    const auto q = mean_of(input.q, q_head, i * block, std::min(tokens, (i + 1) * block));
    for (std::int64_t j = 0; j <= i; ++j) {
      const auto k =
          mean_of(input.k, input.info.kv_head_of(q_head), j * block, std::min(tokens, (j + 1) * block));
      scores[at(i)].push_back(static_cast<double>(dot(q, k)));
    }
  }
  return scores;
}

std::vector<double> softmax(std::vector<double> x) {
  const double peak = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - peak);
  for (double& v : x) v /= sum;
  return x;
}

Mask vertical_slash(const Params& params, const PrefillInput& input, int q_head) {
  const Weights p = window_weights(input, q_head, params.get_int("window"));
  const std::int64_t tokens = input.q.tokens;
  return slash_mask(best(column_sums(p, tokens), params.get_int("verticals"), 4),
                    best(diagonal_sums(p, tokens), params.get_int("slashes"), 64), tokens,
                    params.get_string("tiles") == "released");
}

Mask block_sparse(const Params& params, const PrefillInput& input, int q_head) {
  const std::int64_t block = params.get_int("chunk_size");
  std::vector<Set> kept;
  for (auto row : pooled_scores(input, q_head, block)) {
    const std::int64_t n = std::ssize(row);
    row.front() = row.back() = INFINITY;
    if (n >= 2) row[at(n - 2)] = INFINITY;
    const auto chosen = top(row, std::max(params.get_int("top_chunks"), std::min<std::int64_t>(3, n)));
    kept.emplace_back(chosen.begin(), chosen.end());
  }
  return block_mask(kept, block, input.q.tokens);
}

/// Distance between the window's block-level estimate and its truth.
double flexprefill_distance(const PrefillInput& input, int q_head, const Weights& p, std::int64_t block) {
  const std::int64_t tokens = input.q.tokens;
  const auto q = mean_of(input.q, q_head, tokens - std::ssize(p), tokens);
  std::vector<double> estimate, truth;
  for (std::int64_t begin = 0; begin < tokens; begin += block) {
    const std::int64_t end = std::min(begin + block, tokens);
    const auto k = mean_of(input.k, input.info.kv_head_of(q_head), begin, end);
    double d = 0;
    for (std::size_t c = 0; c < q.size(); ++c) d += static_cast<double>(q[c]) * static_cast<double>(k[c]);
    estimate.push_back(static_cast<double>(input.info.scale) * d);
    double mass = 0;
    for (const auto& row : p) {
      for (std::int64_t j = begin; j < end; ++j) mass += static_cast<double>(row[at(j)]);
    }
    truth.push_back(mass / static_cast<double>(p.size()));
  }
  estimate = softmax(estimate);
  double divergence = 0;
  for (std::size_t b = 0; b < truth.size(); ++b) {
    const double m = (estimate[b] + truth[b]) / 2;
    if (estimate[b] > 0) divergence += estimate[b] * std::log(estimate[b] / m) / 2;
    if (truth[b] > 0) divergence += truth[b] * std::log(truth[b] / m) / 2;
  }
  return std::sqrt(std::max(divergence, 0.0));
}

Mask flexprefill(const Params& params, const PrefillInput& input, int q_head) {
  const bool original = params.get_string("variant") == "original";
  const std::int64_t tokens = input.q.tokens, block = original ? 128 : 64;
  const double alpha = params.get_double("alpha");
  const std::int64_t min_budget = params.get_int("min_budget");
  const Weights p = window_weights(input, q_head, params.get_int("window"));
  const auto rows = static_cast<double>(p.size());

  if (params.get_double("tau") > 0 &&
      flexprefill_distance(input, q_head, p, block) < params.get_double("tau")) {
    std::vector<double> all;
    std::vector<std::pair<std::int64_t, std::int64_t>> place;
    std::vector<Set> kept;
    for (auto row : pooled_scores(input, q_head, block)) {
      for (double& s : row) s *= static_cast<double>(input.info.scale);
      row = softmax(row);
      const auto i = std::ssize(kept);
      const auto least = top(row, (min_budget + block - 1) / block);
      kept.emplace_back(least.begin(), least.end());
      kept.back().insert({0, i});
      for (std::int64_t j = 0; j <= i; ++j) {
        all.push_back(row[at(j)]);
        place.emplace_back(i, j);
      }
    }
    for (const auto n : top(all, count_above(all, alpha * static_cast<double>(kept.size())))) {
      kept[at(place[at(n)].first)].insert(place[at(n)].second);
    }
    return block_mask(kept, block, tokens);
  }

  const auto columns = column_sums(p, tokens), diagonals = diagonal_sums(p, tokens);
  const auto kept_columns = best(columns, std::max(min_budget, count_above(columns, alpha * rows)), 4);
  const auto kept_offsets = best(diagonals, std::max(min_budget, count_above(diagonals, alpha * rows)), 64);
  if (!original) return slash_mask(kept_columns, kept_offsets, tokens, true);
  std::vector<Set> kept(at((tokens + block - 1) / block));
  for (std::int64_t i = 0; i < tokens; ++i) {
    Set& row = kept[at(i / block)];
    row.insert({0, i / block});
    for (const auto j : kept_columns) row.insert(j / block);
    for (const auto o : kept_offsets) {
      if (o <= i) row.insert((i - o) / block);
    }
  }
  return block_mask(kept, block, tokens);
}

Mask xattention(const Params& params, const PrefillInput& input, int q_head) {
  const std::int64_t tokens = input.q.tokens, block = params.get_int("block"),
                     stride = params.get_int("stride");
  const std::int64_t groups = (tokens + stride - 1) / stride, per_block = block / stride;
  const int kv = input.info.kv_head_of(q_head);
  std::vector<std::vector<double>> mass;
  for (std::int64_t u = 0; u < groups; ++u) {
    std::vector<double> scores;
    for (std::int64_t v = 0; v <= u; ++v) {
      float sum =
          0;  // along the antidiagonal of the square (u, v); tokens past the end count as zero vectors
      for (std::int64_t s = 0; s < stride; ++s) {
        const std::int64_t i = u * stride + stride - 1 - s, j = v * stride + s;
        if (i >= tokens || j >= tokens) continue;
        for (int c = 0; c < input.info.head_dim; ++c)
          sum += input.q.row(q_head, i)[c] * input.k.row(kv, j)[c];
      }
      scores.push_back(static_cast<double>(sum * (input.info.scale / static_cast<float>(stride))));
    }
    scores = softmax(scores);
    if (u % per_block == 0) mass.emplace_back(at(u / per_block + 1));
    for (std::int64_t v = 0; v <= u; ++v) mass.back()[at(v / per_block)] += scores[at(v)];
  }
  std::vector<Set> kept;
  for (const auto& row : mass) {
    double total = 0, sum = 0;
    for (const double m : row) total += m;
    std::int64_t count = 0;
    std::vector<double> sorted = row;
    std::sort(sorted.rbegin(), sorted.rend());
    while (count < std::ssize(sorted) && sum < params.get_double("threshold") * total)
      sum += sorted[at(count++)];
    const auto chosen = top(row, count);
    kept.emplace_back(chosen.begin(), chosen.end());
    kept.back().insert({0, std::ssize(row) - 1});
  }
  return block_mask(kept, block, tokens);
}

Mask fixed_shape(const std::string& method, const Params& params, std::int64_t tokens) {
  Mask mask = causal_mask(tokens, 0);
  for (std::int64_t i = 0; i < tokens; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const std::int64_t sinks = params.get_int("sinks"), m = i / 64 * 64;
      bool kept = false;
      if (method == "streaming") {
        kept = j < sinks || j > m - params.get_int("window");
      } else {
        const std::int64_t local = (params.get_int("local") + 63) / 64;
        kept = j < (sinks + 63) / 64 * 64 || j / 64 > i / 64 - local;
        if (method == "tri_shape")
          kept = kept || std::min(m + 64, tokens) > tokens - params.get_int("last_queries");
      }
      mask[at(i)][at(j)] = kept;
    }
  }
  return mask;
}

Mask oracle(const Params& params, bool by_mass, const PrefillInput& input, int q_head) {
  const std::int64_t tokens = input.q.tokens, block = params.get_int("block");
  const Weights p = window_weights(input, q_head, tokens);
  std::vector<Set> kept;
  for (std::int64_t begin = 0; begin < tokens; begin += block) {
    std::vector<double> mass(at(begin / block + 1));
    for (std::int64_t i = begin; i < std::min(begin + block, tokens); ++i) {
      for (std::int64_t j = 0; j <= i; ++j) mass[at(j / block)] += static_cast<double>(p[at(i)][at(j)]);
    }
    std::int64_t count = by_mass ? 0 : params.get_int("top_k");
    if (by_mass) {
      double total = 0, sum = 0;
      for (const double m : mass) total += m;
      auto sorted = mass;
      std::sort(sorted.rbegin(), sorted.rend());
      while (count < std::ssize(sorted) && sum < params.get_double("top_p") * total)
        sum += sorted[at(count++)];
    } else {
      mass.back() = INFINITY;
    }
    const auto chosen = top(mass, count);
    kept.emplace_back(chosen.begin(), chosen.end());
    kept.back().insert(begin / block);
  }
  return block_mask(kept, block, tokens);
}

Mask random_blocks(const Params& params, const PrefillInput& input, int q_head) {
  const std::int64_t tokens = input.q.tokens, block = params.get_int("block");
  Rng rng(input.seed, stream_id("random prefill", static_cast<std::uint64_t>(input.info.layer),
                                static_cast<std::uint64_t>(input.info.q_head_begin + q_head)));
  std::vector<Set> kept;
  for (std::int64_t row = 0; row * block < tokens; ++row) {
    kept.push_back({row});
    const auto others = std::min(params.get_int("top_k") - 1, row);
    for (const auto b : rng.sample(static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(others))) {
      kept.back().insert(static_cast<std::int64_t>(b));
    }
  }
  return block_mask(kept, block, tokens);
}

}  // namespace

Mask prefill_mask(const std::string& method, const Params& params, const PrefillInput& input, int q_head) {
  if (method == "dense") return causal_mask(input.q.tokens, input.info.window);
  if (method == "vertical_slash") return vertical_slash(params, input, q_head);
  if (method == "block_sparse") return block_sparse(params, input, q_head);
  if (method == "flexprefill") return flexprefill(params, input, q_head);
  if (method == "xattention") return xattention(params, input, q_head);
  if (method == "oracle_top_k") return oracle(params, false, input, q_head);
  if (method == "oracle_top_p") return oracle(params, true, input, q_head);
  if (method == "random") return random_blocks(params, input, q_head);
  if (method == "streaming" || method == "a_shape" || method == "tri_shape") {
    return fixed_shape(method, params, input.q.tokens);
  }
  throw_internal("no reference for the prefill method {}", method);
}

}  // namespace lacuna::reference
