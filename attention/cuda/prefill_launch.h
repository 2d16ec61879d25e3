// The kernels behind attention_prefill_cuda. Each template is instantiated in one file per head size, so that
// they compile in parallel.
#pragma once

#include <cuda.h>

#include "attention/cuda/prefill_args.h"

namespace lacuna {

/// TMA descriptors over (channel, token, head), boxes of 64 channels.
struct HopperMaps {
  CUtensorMap q, k, v, column_k, column_v;
};

/// Keys of one TMA box: the tile width of the kernel.
constexpr int hopper_tile_keys(int head_dim, bool dense) {
  return dense && head_dim <= 128 ? 128 : kTileKeys;
}

template <int kHeadDim>
void launch_prefill_hopper(const PrefillArgs& args, const HopperMaps& maps, int blocks, cudaStream_t stream);
template <int kHeadDim>
void launch_prefill_portable(const PrefillArgs& args, cudaStream_t stream);

/// Lists of row blocks of 16 and 32, columns copied by launch_column_gather; the maps have boxes of
/// kPieceKeys tokens.
template <int kHeadDim>
void launch_prefill_rows16_hopper(const PrefillArgs& args, const HopperMaps& maps, int max_shared_bytes,
                                  cudaStream_t stream);
/// False when a block may not have the shared memory it needs; nothing is launched then.
template <int kHeadDim>
bool launch_prefill_rows16(const PrefillArgs& args, int max_shared_bytes, cudaStream_t stream);

/// Fills args.lists.column_masks: which columns each row block visits, that is, those not covered by its
/// ranges.
void launch_column_masks(const DeviceTileLists& lists, int window, std::uint64_t* masks, int mask_words,
                         cudaStream_t stream);
/// Copies the kept columns of k and v into args.column_k and args.column_v, padded with zeros to whole tiles.
void launch_column_gather(const PrefillArgs& args, int head_dim, cudaStream_t stream);

}  // namespace lacuna
