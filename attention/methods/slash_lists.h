// From kept columns and diagonals to tile lists: shared by vertical_slash and flexprefill.
#pragma once

#include <cstdint>
#include <span>

#include "attention/methods/common.h"

namespace lacuna {

inline constexpr int kSlashRowBlock = 64;

/// How diagonals become ranges of whole tiles.
enum class SlashTiles {
  kReleased,  ///< A block that overlaps a range and ends after it extends the range by a whole 64, as the
              ///< paper's code does.
  kExact,     ///< The union of the 64-key blocks that the offsets ask for.
};

/// offsets, columns: ascending. For the rows [m, m + 64), offset o asks for keys [max(m - o, 0), + 64);
/// offsets of m + 64 and more ask for nothing.
HeadLists slash_lists(std::span<const std::int32_t> columns, std::span<const std::int32_t> offsets,
                      std::int64_t tokens, SlashTiles tiles);

}  // namespace lacuna
