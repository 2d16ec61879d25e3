// The kernel behind attention_decode_cuda, instantiated in one file per head size.
#pragma once

#include <cuda_bf16.h>
#include <vector_types.h>

#include <cstdint>

#include "attention/cuda/attention_cuda.h"

namespace lacuna {

/// A run of pages is never shorter, so that a block's start-up pays off.
inline constexpr int kDecodeMinRunPages = 8;

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
  int splits;                     ///< most runs per (sequence, head group)
  float scale, softcap;
  int window;
  int* counters;          ///< [batch, slots], zero
  float* partial_o;       ///< [batch, slots, splits, 16, head_dim]
  float2* partial_state;  ///< [batch, slots, splits, 16]: maximum of raw scores, sum of weights
};

template <int kHeadDim>
void launch_decode(const DecodeArgs& args, int batch, int slots, int grid_runs, cudaStream_t stream);

}  // namespace lacuna
