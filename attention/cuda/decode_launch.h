// The kernel behind attention_decode_cuda, instantiated in one file per head size.
#pragma once

#include <cuda_bf16.h>
#include <vector_types.h>

#include <cstdint>

#include "attention/cuda/attention_cuda.h"

namespace lacuna {

inline constexpr int kDecodeRows = 16;      ///< query heads of a block: the rows of an mma
inline constexpr int kDecodeMaxRuns = 512;  ///< of one (sequence, head group)

/// Pages of a run: see DecodeCut.
inline constexpr int kDecodeMinRunPages = 4, kDecodeEnoughRunPages = 16;

struct DecodeArgs {
  const __nv_bfloat16* q;  ///< [batch, q_heads, head_dim]
  __nv_bfloat16* out;
  const __nv_bfloat16* pool;
  std::int64_t page_elements;
  const DevicePagedHead* heads;  ///< [batch, kv_heads]
  const std::int32_t* lists;     ///< null: every page
  const std::int32_t* list_counts;
  std::int64_t list_stride;
  bool lists_per_q_head;
  int q_heads, kv_heads;
  int group, head_base, kv_base;  ///< kv head of q head h: (head_base + h) / group - kv_base
  int parts;                      ///< blocks of 16 query heads per kv head
  int third;                      ///< see DecodeCut
  int runs;                       ///< of the grid: no (sequence, head group) has more
  int rows;                       ///< most query heads of a block
  float scale, softcap;
  int window;
  bool settled;           ///< DecodeParams::settled
  float* partial_o;       ///< [batch, slots, runs, rows, head_dim]
  float2* partial_state;  ///< [batch, slots, rows, runs]: maximum of raw scores, sum of weights
};

template <int kHeadDim>
void launch_decode(const DecodeArgs& args, int batch, int slots, cudaStream_t stream);
/// Adds up what the runs left; after launch_decode, where there is more than one run.
void launch_combine(const DecodeArgs& args, int head_dim, int batch, cudaStream_t stream);

}  // namespace lacuna
