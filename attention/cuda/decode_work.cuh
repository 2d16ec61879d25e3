// Who does what in a decode step: which heads and pages a block serves, and how partial results are joined.
#pragma once

#include "attention/cuda/decode_launch.h"
#include "attention/cuda/softmax.cuh"

namespace lacuna {

/// Query heads [head, head + rows) of one block, all served by kv_head, and the list they read.
struct DecodeSlot {
  int head, rows, kv_head, list_row;

  __device__ DecodeSlot(const DecodeArgs& args, int batch, int slot) {
    if (args.lists_per_q_head) {
      head = slot;
      rows = 1;
      kv_head = (args.head_base + head) / args.group - args.kv_base;
      list_row = batch * args.q_heads + head;
    } else {
      kv_head = slot / args.parts;
      const int begin = max(0, (kv_head + args.kv_base) * args.group - args.head_base);
      const int end = min(args.q_heads, (kv_head + args.kv_base + 1) * args.group - args.head_base);
      head = begin + slot % args.parts * kDecodeRows;
      rows = min(kDecodeRows, end - head);
      list_row = batch * args.kv_heads + kv_head;
    }
  }
};

/// How `pages` pages are cut into runs. Few: equal runs, one for each place on the device. Many: blocks that
/// all end at once would leave the memory idle while the next ones start, and multiprocessors get unequal
/// shares of its bandwidth. So the blocks of the first wave get 4, 3 and 2 parts, by thirds of the wave, 72 %
/// of all pages, and whoever is done takes short runs of what is left.
struct DecodeCut {
  int third;  ///< runs of each of the first three lengths
  int unit;   ///< 0: all runs have the length `rest`
  int rest;   ///< pages of the other runs
  int runs;

  __device__ DecodeCut(int pages, const DecodeArgs& args) : third(args.third) {
    const int wave = 3 * third;
    if (args.lists != nullptr || pages <= wave * kDecodeEnoughRunPages) {
      unit = 0;
      rest = max(kDecodeMinRunPages, (pages + wave - 1) / wave);
      runs = (pages + rest - 1) / rest;
    } else {
      unit = pages / third * 2 / 25;
      const int left = pages - 9 * unit * third, most = 5 * third;
      rest = max(min(2 * unit, kDecodeEnoughRunPages), (left + most - 1) / most);
      runs = wave + (left + rest - 1) / rest;
    }
  }
  __device__ int length(int run) const {
    return unit == 0 || run >= 3 * third ? rest : (4 - run / third) * unit;
  }
  __device__ int begin(int run) const {
    if (unit == 0) return run * rest;
    const int step = min(run / third, 3), in_step = run - step * third;
    // 4 + 3 + ... of each third before, then those of this one.
    return third * unit * (step * (9 - step) / 2) + in_step * length(run);
  }
};

/// The pages that one (sequence, head group) reads.
struct DecodePages {
  const std::int32_t* list;  ///< null: pages first_page, first_page + 1, ...
  const std::int32_t* page_ids;
  int tokens, first_key, first_page, pages;

  /// Where there are lists, after wait_for_previous() alone.
  __device__ DecodePages(const DecodeArgs& args, const DevicePagedHead& head, int list_row) {
    page_ids = head.page_ids;
    tokens = static_cast<int>(head.tokens);
    first_key = args.window > 0 ? max(0, tokens - args.window) : 0;
    list = nullptr;
    first_page = first_key / kPageTokens;
    pages = (tokens + kPageTokens - 1) / kPageTokens - first_page;
    if (args.lists != nullptr) {
      const int count = args.list_counts[list_row];
      if (count >= 0) {
        list = args.lists + list_row * args.list_stride;
        pages = count;
      }
    }
  }
  /// Of the index-th page read.
  __device__ int number(int index) const { return list != nullptr ? list[index] : first_page + index; }
};

/// Weight of a partial result whose maximum is `part` in a whole whose maximum is `whole`; nothing seen
/// weighs 0.
__device__ inline float merge_weight(float part, float whole, float scale_log2) {
  return part == -INFINITY ? 0.0f : exp2_fast((part - whole) * scale_log2);
}
__device__ inline float weight_scale(const DecodeArgs& args) {
  return (args.softcap > 0.0f ? 1.0f : args.scale) * kLog2e;
}
__device__ inline void add_weighted(float4& sum, const float4& x, float weight) {
  sum.x = fmaf(x.x, weight, sum.x);
  sum.y = fmaf(x.y, weight, sum.y);
  sum.z = fmaf(x.z, weight, sum.z);
  sum.w = fmaf(x.w, weight, sum.w);
}
__device__ inline void store_bf16(__nv_bfloat16* to, const float4& x, float factor) {
  *reinterpret_cast<uint2*>(to) =
      make_uint2(pack_bf16(x.x * factor, x.y * factor), pack_bf16(x.z * factor, x.w * factor));
}

}  // namespace lacuna
