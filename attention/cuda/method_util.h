// What the GPU methods share on the host: memory of the context, flags of scores that are not finite, tile
// lists in memory whose size is a guess that may have to grow.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <vector>

#include "attention/cuda/context.h"
#include "attention/cuda/prefill_methods.h"
#include "attention/cuda/select_cuda.h"
#include "core/error.h"

namespace lacuna {

template <class T>
T* take(const CudaContext& context, std::int64_t count) {
  return context.scratch->take_array<T>(static_cast<std::size_t>(count));
}
CudaWorkspace take_workspace(const CudaContext& context, std::size_t bytes);
/// `count` integers that are 0.
int* take_flags(const CudaContext& context, std::int64_t count);

/// Waits for the stream.
template <class T>
std::vector<T> download(const CudaContext& context, const T* from, std::int64_t count) {
  std::vector<T> to(static_cast<std::size_t>(count));
  if (count > 0)
    LACUNA_CUDA(
        cudaMemcpyAsync(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost, context.stream));
  LACUNA_CUDA(cudaStreamSynchronize(context.stream));
  return to;
}
/// From pageable memory: returns once the source has been read.
template <class T>
T* upload(const CudaContext& context, const std::vector<T>& from) {
  T* to = take<T>(context, std::ssize(from));
  LACUNA_CUDA(
      cudaMemcpyAsync(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, context.stream));
  return to;
}

/// Adds to counts.index_seconds the time that the stream takes from construction to destruction, measured by
/// events: what was enqueued before is not in it. Its end is waited for, which costs nothing after a choice,
/// because that has waited already.
class IndexSpan {
 public:
  IndexSpan(const CudaContext& context, AttentionCounts& counts);
  ~IndexSpan();
  IndexSpan(const IndexSpan&) = delete;
  IndexSpan& operator=(const IndexSpan&) = delete;

 private:
  cudaStream_t stream_;
  AttentionCounts& counts_;
  CudaEvent begin_, end_;
};

/// Throws for the first head whose flag is set.
void check_finite(const LayerInfo& info, const std::vector<int>& not_finite);

/// Lists to be made on the device.
struct ListsPlan {
  std::int64_t tokens = 0;
  int row_block = 64;
  std::int64_t max_ranges = 0;   ///< there cannot be more, all heads together
  std::int64_t max_columns = 0;  ///< of a head; 0: no columns
};
/// Ranges for which make_lists makes room at first. Neighbouring ranges join, so there are far fewer than
/// there may be.
std::int64_t first_ranges(const ListsPlan& plan);
/// Takes memory, calls `enqueue`, waits, and checks: scores that are not finite (flags [q_heads] or null, set
/// by what was enqueued until then) are an error; too little room for the ranges is not: it becomes more, and
/// `enqueue` is called again. This is the one place where choosing waits for the device.
DeviceTileLists make_lists(const CudaContext& context, const LayerInfo& info, const ListsPlan& plan,
                           const int* not_finite, const std::function<void(const TileListsOut&)>& enqueue);

/// Ranges of whole blocks with gaps between them, at most `most` of row i's i + 1 blocks, in one head.
std::int64_t most_block_ranges(std::int64_t rows, std::int64_t most);
/// Ranges from `offsets` diagonals, in one head: each starts at one, is at least 64 wide, and does not touch
/// the next.
std::int64_t most_slash_ranges(std::int64_t tokens, std::int64_t offsets);

/// Row blocks whose scores the block selectors hold at once: 64 MiB of them.
std::int64_t block_strip_rows(int heads, std::int64_t blocks, int per_block);
/// FlexPrefill: blocks of its `original` variant, and the heads whose maps of pooled blocks are held at once:
/// as many as fit into 256 MiB, and one at least.
inline constexpr int kFlexOriginalBlock = 128;
int flex_maps_at_once(int heads, std::int64_t blocks);

/// select() of every GPU selector.
class DeviceSelector : public CudaPrefillSelector {
 public:
  explicit DeviceSelector(const CudaContext& context) : context_(context) {}
  void select(const PrefillInput& input, TileLists& lists, AttentionCounts& counts) const final;

 protected:
  CudaContext context_;
};
/// xattention, oracle_top_k and oracle_top_p; flexprefill.
std::unique_ptr<CudaPrefillSelector> make_cuda_block_selector(const MethodSpec& spec,
                                                              const CudaContext& context);
std::unique_ptr<CudaPrefillSelector> make_cuda_flexprefill(const MethodSpec& spec,
                                                           const CudaContext& context);

}  // namespace lacuna
