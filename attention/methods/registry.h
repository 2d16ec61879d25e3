// Every method, one line each, in the order of the docs. A new method is one file and one line here.
#pragma once

#include "attention/methods/method.h"

#define LACUNA_METHODS(X)     \
  X(prefill_dense)            \
  X(prefill_vertical_slash)   \
  X(prefill_block_sparse)     \
  X(prefill_flexprefill)      \
  X(prefill_xattention)       \
  X(prefill_streaming)        \
  X(prefill_a_shape)          \
  X(prefill_tri_shape)        \
  X(prefill_oracle_top_k)     \
  X(prefill_oracle_top_p)     \
  X(prefill_random)           \
  X(evict_none)               \
  X(evict_snapkv)             \
  X(evict_ada_snapkv)         \
  X(evict_pyramidkv)          \
  X(evict_tova)               \
  X(evict_expected_attention) \
  X(evict_streaming)          \
  X(evict_random)             \
  X(decode_dense)             \
  X(decode_quest)             \
  X(decode_twilight)          \
  X(decode_streaming)         \
  X(decode_oracle_top_k)      \
  X(decode_oracle_top_p)

namespace lacuna {

#define LACUNA_DECLARE_METHOD(name) Method name();
LACUNA_METHODS(LACUNA_DECLARE_METHOD)
#undef LACUNA_DECLARE_METHOD

}  // namespace lacuna
