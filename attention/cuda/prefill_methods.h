// The prefill selectors and evictors on the GPU: the rules of attention/methods, scores in device memory.
#pragma once

#include <memory>

#include "attention/cuda/attention_cuda.h"
#include "attention/cuda/context.h"
#include "attention/strategy.h"

namespace lacuna {

/// A prefill selector whose lists are made in device memory.
class CudaPrefillSelector : public PrefillSelector {
 public:
  /// Lists for input.q (bfloat16 on the device), in memory of the context's scratch. Adds index_flops and
  /// index_seconds. Throws kUsage naming layer and head when scores are not finite.
  virtual DeviceTileLists select_on_device(const PrefillInput& input, AttentionCounts& counts) const = 0;
  /// Lists on the host: select_on_device and a copy. For captures and tests.
  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const override = 0;
};

std::unique_ptr<CudaPrefillSelector> make_cuda_prefill_selector(const MethodSpec& spec, CudaContext context);
/// Scores and choice on the device; only the kept positions come to the host, which owns the page tables.
std::unique_ptr<Evictor> make_cuda_evictor(const MethodSpec& spec, CudaContext context);

}  // namespace lacuna
