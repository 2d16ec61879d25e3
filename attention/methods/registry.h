// Every method, one line each, in the order of the docs. A new method is one file and one line here.
#pragma once

#include "attention/methods/method.h"

#define LACUNA_METHODS(X)   \
  X(prefill_dense)          \
  X(prefill_vertical_slash) \
  X(prefill_block_sparse)   \
  X(evict_none)             \
  X(evict_snapkv)           \
  X(evict_ada_snapkv)       \
  X(decode_dense)           \
  X(decode_quest)

namespace lacuna {

#define LACUNA_DECLARE_METHOD(name) Method name();
LACUNA_METHODS(LACUNA_DECLARE_METHOD)
#undef LACUNA_DECLARE_METHOD

}  // namespace lacuna
