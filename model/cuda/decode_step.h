// Batched decoding on the GPU: page tables in device memory, one choice per group of sequences, and the
// counters of what was executed. Part of CudaOps.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "attention/cuda/context.h"
#include "attention/cuda/decode_methods.h"
#include "model/cuda/kernels.h"
#include "model/ops.h"

namespace lacuna {

class CudaDecodeStep {
 public:
  explicit CudaDecodeStep(cudaStream_t stream);
  ~CudaDecodeStep();

  /// Ops::make_sequence, begin_step, run_step and decode_layer; see model/ops.h.
  std::unique_ptr<DecodeSequence> make_sequence(const MethodSpec& method, std::span<const LayerInfo> layers,
                                                std::int64_t most_tokens);
  void begin_step(std::span<const DecodeRow> rows, const PoolView& pool);
  void run_step(bool capturable, Communicator& team, const std::function<void()>& body);
  void decode_layer(const HeadsView& q, const HeadsView& k, const HeadsView& v, const LayerInfo& info,
                    Communicator& communicator, const HeadsView& out);
  /// decode_layer in two parts: the rotated q and the rows of k and v go here, ...
  NewestSlots newest_slots(const LayerInfo& info) const;
  /// ... then this chooses and computes out.
  void attend_layer(const LayerInfo& info, Communicator& communicator, const HeadsView& out);
  /// Captured graphs hold addresses: to be called whenever memory they use may have moved.
  void forget_graphs();
  /// Bytes of device memory held for tables, states and lists.
  std::size_t bytes() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lacuna
