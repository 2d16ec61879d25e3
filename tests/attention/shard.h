// The part of a layer that one rank of a tensor-parallel team holds.
#pragma once

#include <algorithm>

#include "attention/types.h"

namespace lacuna::test {

/// The part of a layer that one rank of `ranks` holds.
inline PrefillInput shard(const PrefillInput& whole, int rank, int ranks) {
  PrefillInput input = whole;
  LayerInfo& info = input.info;
  const int group = info.q_heads_total / info.kv_heads_total;
  info.q_heads = info.q_heads_total / ranks;
  info.q_head_begin = rank * info.q_heads;
  info.kv_head_begin = info.q_head_begin / group;
  info.kv_heads = std::max(1, info.kv_heads_total / ranks);
  input.q.data = whole.q.row(info.q_head_begin, 0);
  input.q.heads = info.q_heads;
  input.k.data = whole.k.row(info.kv_head_begin, 0);
  input.v.data = whole.v.row(info.kv_head_begin, 0);
  input.k.heads = input.v.heads = info.kv_heads;
  return input;
}

}  // namespace lacuna::test
