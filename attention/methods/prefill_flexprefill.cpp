// FlexPrefill (arXiv 2502.20766; rules of arXiv 2504.17768 for `variant: paper`): each head keeps as many
// columns and diagonals as a share `alpha` of its attention needs; with tau > 0, heads whose block-level
// estimate is reliable choose blocks per query instead.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attention/cpu/kernels.h"
#include "attention/methods/common.h"
#include "attention/methods/pooling.h"
#include "attention/methods/registry.h"
#include "attention/methods/slash_lists.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

constexpr int kOriginalBlock = 128;

/// Sparse sets in blocks: kept[row block] = sorted key blocks, to lists.
HeadLists block_lists(std::vector<std::vector<std::int32_t>>& kept, int block, std::int64_t tokens) {
  HeadLists lists;
  for (auto& row : kept) {
    lists.begin_block();
    std::sort(row.begin(), row.end());
    for (const std::int32_t b : row) {
      const std::int64_t start = std::int64_t{b} * block;
      lists.add(start, std::min(start + block, tokens));
    }
  }
  return lists;
}

/// Square root of the Jensen-Shannon divergence (natural logarithm) of two distributions.
double divergence(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double m = (a[i] + b[i]) / 2;
    if (a[i] > 0) sum += a[i] * std::log(a[i] / m);
    if (b[i] > 0) sum += b[i] * std::log(b[i] / m);
  }
  return std::sqrt(std::max(0.0, sum / 2));
}

void softmax(std::vector<double>& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) v /= sum;
}

class FlexPrefill final : public PrefillSelector {
 public:
  explicit FlexPrefill(const Params& params)
      : original_(params.get_string("variant") == "original"),
        block_(original_ ? kOriginalBlock : kSlashRowBlock),
        alpha_(params.get_double("alpha")),
        tau_(params.get_double("tau")),
        min_budget_(params.get_int("min_budget")),
        window_(params.get_int("window")) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    std::vector<HeadLists> heads(static_cast<std::size_t>(input.info.q_heads));
    std::vector<double> flops(heads.size());
    for_each(input.threads, std::ssize(heads), [&](std::int64_t head) {
      const auto h = static_cast<std::size_t>(head);
      heads[h] = select_head(input, static_cast<int>(head), flops[h]);
    });
    lists = join_lists(std::move(heads), input.q.tokens, block_);
    for (const double f : flops) counts.index_flops += f;
  }

 private:
  HeadLists select_head(const PrefillInput& input, int head, double& flops) const {
    const std::int64_t tokens = input.q.tokens;
    WindowScores scores = window_scores(input, head, {.window = window_, .diagonals = true});
    flops = scores.flops;
    if (tau_ > 0 && estimate_error(input, head, scores) < tau_) return query_aware(input, head, flops);
    const auto columns = best(scores.column_sum, scores.rows, kSinkColumns);
    const auto offsets = best(scores.diagonal_sum, scores.rows, kLocalOffsets);
    flops += selection_flops(tokens, std::ssize(columns) + std::ssize(offsets));
    return original_ ? slash_blocks(columns, offsets, tokens)
                     : slash_lists(columns, offsets, tokens, SlashTiles::kReleased);
  }

  /// The smallest prefix of the sorted distribution with mass above alpha, at least min_budget; of that many,
  /// the first `kept` entries are always there.
  std::vector<std::int32_t> best(std::vector<double>& sums, std::int64_t rows, int kept) const {
    const std::int64_t count =
        std::max(min_budget_, prefix_above(sums, sorted_indices(sums), alpha_, static_cast<double>(rows)));
    const auto forced =
        static_cast<std::ptrdiff_t>(std::min<std::size_t>(sums.size(), static_cast<std::size_t>(kept)));
    std::fill(sums.begin(), sums.begin() + forced, std::numeric_limits<double>::infinity());
    return top_indices(sums, std::max<std::int64_t>(count, kept));
  }

  /// How far block-level attention of the mean window query lies from the window's true attention, per key
  /// block.
  double estimate_error(const PrefillInput& input, int head, const WindowScores& scores) const {
    const int dim = input.info.head_dim;
    const std::vector<float> keys = mean_pool(input.k, input.info.kv_head_of(head), block_);
    std::vector<double> query(static_cast<std::size_t>(dim));
    for (std::int64_t t = input.q.tokens - scores.rows; t < input.q.tokens; ++t) {
      for (int c = 0; c < dim; ++c)
        query[static_cast<std::size_t>(c)] += static_cast<double>(input.q.row(head, t)[c]);
    }
    std::vector<double> estimate(keys.size() / static_cast<std::size_t>(dim)), truth(estimate.size());
    for (std::size_t b = 0; b < estimate.size(); ++b) {
      double dot = 0;
      for (std::size_t c = 0; c < query.size(); ++c)
        dot += query[c] * static_cast<double>(keys[b * query.size() + c]);
      estimate[b] = static_cast<double>(input.info.scale) * dot / static_cast<double>(scores.rows);
    }
    softmax(estimate);
    for (std::size_t j = 0; j < scores.column_sum.size(); ++j) {
      truth[j / static_cast<std::size_t>(block_)] += scores.column_sum[j] / static_cast<double>(scores.rows);
    }
    return divergence(estimate, truth);
  }

  /// Blocks chosen over the whole block map at once: smallest set with a share above alpha, the first and the
  /// diagonal block of every row, and at least min_budget tokens per row.
  HeadLists query_aware(const PrefillInput& input, int head, double& flops) const {
    const int dim = input.info.head_dim;
    const auto width = static_cast<std::size_t>(dim);
    const std::vector<float> queries = mean_pool(input.q, head, block_);
    const std::vector<float> keys = mean_pool(input.k, input.info.kv_head_of(head), block_);
    const std::size_t blocks = queries.size() / width;
    std::vector<double> mass;  // row by row, causal part only
    std::vector<std::pair<std::int32_t, std::int32_t>> place;
    std::vector<std::vector<std::int32_t>> kept(blocks);
    std::vector<std::vector<bool>> taken(blocks);
    for (std::size_t i = 0; i < blocks; ++i) {
      std::vector<double> row(i + 1);
      for (std::size_t j = 0; j <= i; ++j) {
        float dot = 0;
        for (std::size_t c = 0; c < width; ++c) dot += queries[i * width + c] * keys[j * width + c];
        row[j] = static_cast<double>(input.info.scale * dot);
      }
      softmax(row);
      taken[i].assign(i + 1, false);
      const auto take = [&](std::size_t j) {
        if (!taken[i][j]) kept[i].push_back(static_cast<std::int32_t>(j));
        taken[i][j] = true;
      };
      take(0);
      take(i);
      for (const std::int32_t j : top_indices(row, (min_budget_ + block_ - 1) / block_))
        take(static_cast<std::size_t>(j));
      for (std::size_t j = 0; j <= i; ++j) {
        mass.push_back(row[j]);
        place.emplace_back(static_cast<std::int32_t>(i), static_cast<std::int32_t>(j));
      }
    }
    flops += static_cast<double>(mass.size()) * (2.0 * dim + 5.0);
    const auto order = sorted_indices(mass);
    const std::int64_t count = prefix_above(mass, order, alpha_, static_cast<double>(blocks));
    for (std::int64_t n = 0; n < count; ++n) {
      const auto [i, j] = place[static_cast<std::size_t>(order[static_cast<std::size_t>(n)])];
      const auto row = static_cast<std::size_t>(i);
      if (!taken[row][static_cast<std::size_t>(j)]) kept[row].push_back(j);
    }
    return block_lists(kept, block_, input.q.tokens);
  }

  /// Key blocks that a kept column lies in or a kept diagonal crosses, with the first and the diagonal block.
  HeadLists slash_blocks(const std::vector<std::int32_t>& columns, const std::vector<std::int32_t>& offsets,
                         std::int64_t tokens) const {
    const std::int64_t blocks = (tokens + block_ - 1) / block_;
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(blocks));
    for (std::int64_t i = 0; i < blocks; ++i) {
      std::vector<bool> row(static_cast<std::size_t>(i + 1));
      row.front() = row.back() = true;
      for (const std::int32_t column : columns) {
        if (column / block_ <= i) row[static_cast<std::size_t>(column / block_)] = true;
      }
      const std::int64_t first = i * block_, last = std::min(first + block_, tokens) - 1;
      for (const std::int32_t offset : offsets) {
        if (last < offset) break;
        row[static_cast<std::size_t>((last - offset) / block_)] = true;
        row[static_cast<std::size_t>(std::max<std::int64_t>(first - offset, 0) / block_)] = true;
      }
      for (std::size_t j = 0; j < row.size(); ++j) {
        if (row[j]) kept[static_cast<std::size_t>(i)].push_back(static_cast<std::int32_t>(j));
      }
    }
    return block_lists(kept, block_, tokens);
  }

  bool original_;
  int block_;
  double alpha_, tau_;
  std::int64_t min_budget_, window_;
};

}  // namespace

Method prefill_flexprefill() {
  return {
      .info =
          {.name = "flexprefill",
           .slot = Slot::kPrefill,
           .summary = "Keeps, per query head, as many columns and diagonals as a share of the last queries' "
                      "attention needs.",
           .reference = "arXiv 2502.20766",
           .params =
               {{.name = "variant",
                 .default_value = std::string("paper"),
                 .help = "`paper`: tiles as in vertical_slash; `original`: blocks of 128 x 128 that a kept "
                         "column or diagonal touches",
                 .choices = {"paper", "original"}},
                {.name = "alpha",
                 .default_value = 0.9,
                 .help = "Share of the attention that the kept columns, and the kept diagonals, exceed; 0 "
                         "keeps min_budget of each",
                 .unit = "probability",
                 .min = 0,
                 .max = 1},
                {.name = "min_budget",
                 .default_value = std::int64_t{512},
                 .help = "Least number of columns and of diagonals kept (of tokens, for heads that choose "
                         "blocks)",
                 .unit = "tokens",
                 .min = 1},
                {.name = "window",
                 .default_value = std::int64_t{512},
                 .help = "Last queries whose attention is looked at",
                 .unit = "tokens",
                 .min = 1,
                 .max = 4096},
                {.name = "tau",
                 .default_value = 0.0,
                 .help = "Heads whose block-level estimate is nearer to the truth than this (square root of "
                         "the Jensen-Shannon divergence) choose blocks per query; 0: none",
                 .unit = "distance",
                 .min = 0,
                 .max = 1}},
           .budget_param = "min_budget"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<FlexPrefill>(params);
      }};
}

}  // namespace lacuna
