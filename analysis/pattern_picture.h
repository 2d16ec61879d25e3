// Pictures of what a strategy keeps: queries run downwards, keys to the right, dark where a query-key cell is
// computed. `lacuna attend --picture`, `lacuna generate --picture` and the report's gallery draw with it.
// Stands alone on attention/types.h (target lacuna_picture), so that verbs link it without the analyses.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "attention/strategy.h"
#include "attention/types.h"

namespace lacuna {

/// Which keys each query keeps. Row r is the query at position first_query + r and may see the keys up to
/// itself.
struct PatternView {
  std::int64_t rows = 0;
  std::int64_t keys = 0;
  std::int64_t first_query = 0;
  std::int64_t window = 0;  ///< Sliding window of the layer; 0: none
  /// Appends the kept keys of a row as ranges: sorted, not overlapping; keys that the row may not see are cut
  /// off here.
  std::function<void(std::int64_t row, std::vector<KeyRange>& kept)> kept;
};

/// One query head of a prefill. `lists` must outlive the view. Throws kUsage when there is no such head.
PatternView view_of_prefill(const TileLists& lists, int head, std::int64_t window = 0);
/// Decode steps of one kv head: step s reads the pages lists[s] of a cache that holds prompt_tokens + s + 1
/// keys.
PatternView view_of_decode(std::int64_t prompt_tokens, std::vector<PageList> lists);
/// One decode step, per kv head (or query head) one row: the pages it reads of a cache of `tokens` keys.
PatternView view_of_pages(std::int64_t tokens, std::vector<PageList> lists);
/// What eviction leaves of a prompt, per kv head one row (all rows see the whole prompt).
PatternView view_of_eviction(std::int64_t prompt_tokens,
                             std::vector<std::vector<std::int32_t>> kept_per_head);

struct PictureOptions {
  std::string title;     ///< Method; shown as it is
  std::string subtitle;  ///< Its parameters; cut to the width
  std::string row_label = "query position";
  std::int64_t bins =
      160;  ///< Cells are merged into at most so many rows and columns; their shade is the share kept.
};

/// Title and subtitle from a method and its parameters.
PictureOptions picture_options(const MethodSpec& spec);

/// A self-contained SVG. Kept cells are counted exactly where a bin has at most 16 rows, else on 16 rows of
/// it.
std::string draw_pattern(const PatternView& view, const PictureOptions& options);

}  // namespace lacuna
