// The vocabulary between a transformer layer, the strategies and the kernels: plain structs, no behaviour.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/communicator.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

namespace lacuna {

/// Tokens of one physical page of the KV cache, and the smallest page a decode selector may choose.
inline constexpr int kPageTokens = 16;

/// Q, K, V or O of one layer, read or written in place whatever its layout:
/// element (head h, token t, channel c) stands at data + h*head_stride + t*token_stride + c (in elements).
/// float32 on the CPU, bfloat16 on CUDA.
struct HeadsView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Device device = Device::kCpu;
  int heads = 0;
  std::int64_t tokens = 0;
  int head_dim = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;

  /// First channel of (head, token); float32 on the CPU only.
  float* row(int head, std::int64_t token) const {
    return static_cast<float*>(data) + head * head_stride + token * token_stride;
  }
};

/// What a method may know about the layer it works in. Head numbers are global, so that per-head settings and
/// decisions across heads mean the same under every tensor-parallel degree.
struct LayerInfo {
  int layer = 0;  ///< 0-based, of `layers`.
  int layers = 1;
  int q_heads = 0;        ///< On this rank.
  int kv_heads = 0;       ///< On this rank; a kv head is replicated when there are fewer than ranks.
  int q_head_begin = 0;   ///< Global number of this rank's first query head.
  int kv_head_begin = 0;  ///< Global number of this rank's first kv head.
  int q_heads_total = 0;
  int kv_heads_total = 0;
  int head_dim = 0;
  float scale = 1.0f;    ///< Multiplies q.k; usually 1/sqrt(head_dim).
  float softcap = 0.0f;  ///< s -> softcap * tanh(s / softcap); 0: none.
  int window = 0;        ///< Sliding window: query i sees keys (i - window, i]. 0: all keys up to i.

  /// Local kv head that serves a local query head.
  int kv_head_of(int q_head) const {
    return (q_head_begin + q_head) / (q_heads_total / kv_heads_total) - kv_head_begin;
  }
};

// --- Prefill: tile lists
// ---------------------------------------------------------------------------------------

/// Keys [start, start + width) of one query row block.
struct KeyRange {
  std::int32_t start;
  std::int32_t width;
  bool operator==(const KeyRange&) const = default;
};

/// What one layer's prefill computes. Rows [b*row_block, (b+1)*row_block) of query head h visit, under the
/// causal mask (and the layer's window): every key of ranges(h, b), and every column of columns(h) that no
/// such range covers. Ranges of a block are sorted by start and do not overlap; columns are sorted and
/// distinct.
struct TileLists {
  int heads = 0;            ///< This rank's query heads.
  std::int64_t tokens = 0;  ///< Query rows = keys.
  int row_block = 64;       ///< Rows that share one list: 1, 16, 32, 64 or 128.
  bool dense = false;       ///< Everything causal is visited; the lists below are then empty.
  std::vector<KeyRange> ranges = {};
  std::vector<std::int64_t> range_begin = {};  ///< [heads * row_blocks() + 1] into ranges
  std::vector<std::int32_t> columns = {};
  std::vector<std::int64_t> column_begin = {};  ///< [heads + 1] into columns

  std::int64_t row_blocks() const { return (tokens + row_block - 1) / row_block; }
  std::span<const KeyRange> ranges_of(int head, std::int64_t block) const {
    const auto i = static_cast<std::size_t>(head * row_blocks() + block);
    return std::span(ranges).subspan(static_cast<std::size_t>(range_begin[i]),
                                     static_cast<std::size_t>(range_begin[i + 1] - range_begin[i]));
  }
  std::span<const std::int32_t> columns_of(int head) const {
    const auto i = static_cast<std::size_t>(head);
    return std::span(columns).subspan(static_cast<std::size_t>(column_begin[i]),
                                      static_cast<std::size_t>(column_begin[i + 1] - column_begin[i]));
  }
};

/// One layer of one prompt: q [q_heads, tokens, head_dim], k and v [kv_heads, tokens, head_dim], already
/// rotated.
struct PrefillInput {
  HeadsView q, k, v;
  LayerInfo info;
  Communicator* communicator = nullptr;  ///< Never null; the team of this model.
  std::uint64_t seed = 0;                ///< For methods that draw random numbers.
  ThreadPool* threads =
      nullptr;  ///< For choosing; null: on the calling thread alone. Results do not depend on it.
};

// --- Decode: page lists
// ----------------------------------------------------------------------------------------

/// The keys and values of one kv head of one sequence. Page p is k [kPageTokens, head_dim] then v
/// [kPageTokens, head_dim], at pool + page_ids[p] * page_elements. All pages are full but the last.
struct PagedHead {
  std::span<const std::int32_t> page_ids;
  std::int64_t tokens = 0;
};

/// Pages of a PagedHead to visit, as sorted indices into page_ids.
using PageList = std::vector<std::int32_t>;

// --- Accounting: from the lists that were executed, never from the intention
// -------------------------------------

/// Sums over heads, layers and steps; divide as needed. Cells are (query, key) pairs.
struct AttentionCounts {
  double visited_cells = 0;  ///< Computed under the mask.
  double causal_cells =
      0;  ///< What dense attention would compute (the window's cells in sliding-window layers).
  double computed_cells =
      0;  ///< Area of all tiles touched, masked parts included: visited/computed = tile efficiency.
  double flops = 0;        ///< 4 * head_dim per computed cell.
  double index_flops = 0;  ///< Spent on choosing.
  double index_seconds = 0;
  double kv_bytes_read = 0;  ///< K and V bytes that decode steps read.
  double index_bytes_read = 0;

  AttentionCounts& operator+=(const AttentionCounts& other);
  /// 1 - visited/causal; 0 when nothing was computed.
  double sparsity() const { return causal_cells > 0 ? 1.0 - visited_cells / causal_cells : 0.0; }
};

}  // namespace lacuna
