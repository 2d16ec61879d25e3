#include "attention/types.h"

namespace lacuna {

AttentionCounts& AttentionCounts::operator+=(const AttentionCounts& other) {
  visited_cells += other.visited_cells;
  causal_cells += other.causal_cells;
  computed_cells += other.computed_cells;
  flops += other.flops;
  index_flops += other.index_flops;
  index_seconds += other.index_seconds;
  kv_bytes_read += other.kv_bytes_read;
  index_bytes_read += other.index_bytes_read;
  return *this;
}

}  // namespace lacuna
