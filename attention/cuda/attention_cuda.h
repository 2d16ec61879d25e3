// Attention on CUDA: prefill over tile lists, decode over page lists. Everything here is asynchronous on
// `stream`, allocates nothing, and gives the same bits for the same input on the same kind of GPU. Tensors
// are bfloat16, scores and sums float32. See docs/kernels.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/types.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace lacuna {

class DeviceArena;
class DeviceScratch;

/// A TileLists in device memory; the meaning of every field is that of TileLists.
struct DeviceTileLists {
  int heads = 0;
  std::int64_t tokens = 0;
  int row_block = 64;  ///< 16, 32, 64 or 128.
  bool dense = false;
  const KeyRange* ranges = nullptr;            ///< sorted and disjoint within a row block
  const std::int64_t* range_begin = nullptr;   ///< [heads * row_blocks() + 1]
  const std::int32_t* columns = nullptr;       ///< sorted and distinct within a head
  const std::int64_t* column_begin = nullptr;  ///< [heads + 1]; null: no columns
  int max_columns = 0;  ///< No head has more columns than this; known on the host, so that no launch waits.

  std::int64_t row_blocks() const { return (tokens + row_block - 1) / row_block; }
};

/// Copies lists made on the CPU into `arena`, which needs tile_list_bytes() of room. The host lists may go
/// away at once.
DeviceTileLists upload_tile_lists(const TileLists& lists, DeviceArena& arena, cudaStream_t stream);
DeviceTileLists upload_tile_lists(const TileLists& lists, DeviceScratch& scratch, cudaStream_t stream);
std::size_t tile_list_bytes(const TileLists& lists);

/// Which kernel runs. kAuto takes the Hopper one on compute capability 9.0.
enum class CudaPath { kAuto, kPortable, kHopper };

/// Device memory that a call may use until the stream has passed it. Aligned to 256 bytes.
struct CudaWorkspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

/// out = attention of input under the lists, causal mask, window and soft cap: see attention_prefill in
/// kernels.h. q [q_heads, tokens, head_dim], k, v [kv_heads, tokens, head_dim], out like q: bfloat16 on CUDA,
/// strides multiples of 8 elements, data aligned to 16 bytes. head_dim 64, 96, 128 or 256. Throws kUsage for
/// anything else, kResource when the workspace is smaller than prefill_workspace_bytes().
void attention_prefill_cuda(const PrefillInput& input, const DeviceTileLists& lists, const HeadsView& out,
                            CudaWorkspace workspace, cudaStream_t stream, CudaPath path = CudaPath::kAuto);
std::size_t prefill_workspace_bytes(const DeviceTileLists& lists, int head_dim);

/// What the lists visit, counted on the device into counts[0] = visited cells, counts[1] = causal cells
/// (window applied), counts[2] = cells of the 64-wide tiles touched by each 16-row slice. All heads together.
void count_tile_cells_cuda(const DeviceTileLists& lists, int window, unsigned long long* counts,
                           CudaWorkspace workspace, cudaStream_t stream);

// --- Decode
// ------------------------------------------------------------------------------------------------------

/// One PagedHead in device memory.
struct DevicePagedHead {
  const std::int32_t* page_ids = nullptr;  ///< device, [ceil(tokens / kPageTokens)]
  std::int64_t tokens = 0;
};

/// One decode step of a batch in one layer. All pointers are device memory; the arrays may change between
/// replays of a captured graph, the host fields may not.
struct DecodeParams {
  const void* q = nullptr;                 ///< bf16 [batch, q_heads, head_dim]
  void* out = nullptr;                     ///< bf16 [batch, q_heads, head_dim]
  const void* pool = nullptr;              ///< bf16, page p at p * page_elements
  std::int64_t page_elements = 0;          ///< at least 2 * kPageTokens * head_dim, a multiple of 8
  const DevicePagedHead* heads = nullptr;  ///< [batch, kv_heads]
  /// Page lists, sorted indices into page_ids; null: every page. Row r has list_counts[r] entries from
  /// lists + r * list_stride; a negative count means every page. Rows: [batch, kv_heads], or [batch, q_heads]
  /// when lists_per_q_head.
  const std::int32_t* lists = nullptr;
  const std::int32_t* list_counts = nullptr;
  std::int64_t list_stride = 0;
  bool lists_per_q_head = false;
  int batch = 0;
  LayerInfo info;
  std::int64_t max_tokens = 0;  ///< No head is longer; bounds the grid.
  /// Promises that no kernel which the stream has started since its last copy writes `heads`, page ids, or
  /// any page but each head's last: these may then be read before the previous kernel has finished.
  bool settled = false;
};

/// Grid and memory are chosen from host fields alone. A sequence's bits do not depend on the rest of the
/// batch.
void attention_decode_cuda(const DecodeParams& params, CudaWorkspace workspace, cudaStream_t stream);
std::size_t decode_workspace_bytes(const DecodeParams& params);

}  // namespace lacuna
