// Vertical-Slash (MInference, arXiv 2407.02490; rules of arXiv 2504.17768): the best columns and diagonals of
// each head, judged by the attention of the last queries.
#include <algorithm>
#include <limits>

#include "attention/methods/common.h"
#include "attention/methods/registry.h"
#include "attention/methods/slash_lists.h"
#include "attention/methods/window_scores.h"

namespace lacuna {

namespace {

class VerticalSlash final : public PrefillSelector {
 public:
  explicit VerticalSlash(const Params& params)
      : verticals_(params.get_int("verticals")),
        slashes_(params.get_int("slashes")),
        window_(params.get_int("window")),
        tiles_(params.get_string("tiles") == "released" ? SlashTiles::kReleased : SlashTiles::kExact) {}

  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override {
    const IndexTimer timer(counts);
    std::vector<HeadLists> heads(static_cast<std::size_t>(input.info.q_heads));
    std::vector<double> flops(heads.size());
    for_each(input.threads, std::ssize(heads), [&](std::int64_t head) {
      const auto h = static_cast<std::size_t>(head);
      WindowScores scores =
          window_scores(input, static_cast<int>(head), {.window = window_, .diagonals = true});
      const auto columns = best(scores.column_sum, verticals_, kSinkColumns);
      const auto offsets = best(scores.diagonal_sum, slashes_, kLocalOffsets);
      heads[h] = slash_lists(columns, offsets, input.q.tokens, tiles_);
      flops[h] = scores.flops + selection_flops(input.q.tokens, std::ssize(columns) + std::ssize(offsets));
    });
    lists = join_lists(std::move(heads), input.q.tokens, kSlashRowBlock);
    for (const double f : flops) counts.index_flops += f;
  }

 private:
  /// The first `kept` entries and the best others, `budget` in all (at least `kept`).
  static std::vector<std::int32_t> best(std::vector<double>& scores, std::int64_t budget, int kept) {
    const auto forced =
        static_cast<std::ptrdiff_t>(std::min<std::size_t>(scores.size(), static_cast<std::size_t>(kept)));
    std::fill(scores.begin(), scores.begin() + forced, std::numeric_limits<double>::infinity());
    return top_indices(scores, std::max<std::int64_t>(budget, kept));
  }

  std::int64_t verticals_, slashes_, window_;
  SlashTiles tiles_;
};

}  // namespace

Method prefill_vertical_slash() {
  return {
      .info = {.name = "vertical_slash",
               .slot = Slot::kPrefill,
               .summary =
                   "Keeps the key columns and the diagonals to which the last queries attend most, per query "
                   "head.",
               .reference = "arXiv 2407.02490",
               .params =
                   {{.name = "verticals",
                     .default_value = std::int64_t{512},
                     .help = "Key columns kept; the first 4 are always among them",
                     .unit = "columns",
                     .min = 1},
                    {.name = "slashes",
                     .default_value = std::int64_t{512},
                     .help = "Diagonals kept; the offsets 0 to 63 are always among them",
                     .unit = "diagonals",
                     .min = 1},
                    {.name = "window",
                     .default_value = std::int64_t{256},
                     .help = "Last queries whose attention judges columns and diagonals",
                     .unit = "tokens",
                     .min = 1,
                     .max = 4096},
                    {.name = "tiles",
                     .default_value = std::string("released"),
                     .help = "How diagonals become tiles of 64 keys: as the paper's released code, or their "
                             "exact union",
                     .choices = {"released", "exact"}}},
               .budget_param = "verticals"},
      .make_prefill = [](const Params& params) -> std::unique_ptr<PrefillSelector> {
        return std::make_unique<VerticalSlash>(params);
      }};
}

}  // namespace lacuna
