// Device memory that the methods take, known before they run: for the memory plan, and so that an engine can
// take it once, ahead of a job.
#pragma once

#include "attention/strategy.h"

namespace lacuna {

/// Scratch memory of one layer's prefill: choosing, lists and attention, in the pieces that the selector and
/// attention_prefill_cuda take one after the other. For methods whose lists depend on the data (flexprefill)
/// what is usual; scratch grows where it is more.
std::size_t prefill_scratch_bytes(const MethodSpec& prefill, const LayerInfo& info, std::int64_t tokens);
/// Scratch memory of one layer's eviction.
std::size_t evict_scratch_bytes(const MethodSpec& evict, const LayerInfo& info, std::int64_t tokens);

/// What a decode method holds beside the cache.
struct DecodeMethodMemory {
  std::size_t state = 0;      ///< of one layer of one sequence
  std::size_t choice = 0;     ///< workspace of `rows` sequences that are chosen for together
  int lists_per_row = 0;      ///< page lists of one sequence; 0: reads every page
  std::size_t attention = 0;  ///< workspace of `rows` sequences
};
/// Heads of up to max_tokens, on the current device; where there is none, on a Hopper GPU.
DecodeMethodMemory decode_method_memory(const MethodSpec& decode, const LayerInfo& info, int rows,
                                        std::int64_t max_tokens);

}  // namespace lacuna
