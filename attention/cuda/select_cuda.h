// Choosing on the GPU what attention computes: the kernels behind the strategies. Asynchronous on `stream`,
// no allocation, the same bits every time. The rules are those of docs/attention.md and of the CPU methods.
#pragma once

#include "attention/cuda/attention_cuda.h"

namespace lacuna {

// --- Attention weights of the last queries
// -------------------------------------------------------------------------

/// What window_scores_cuda writes; null: not wanted. P[i][j] is the softmax weight of the last min(window,
/// tokens) queries i, as in methods/window_scores.h.
struct WindowScoresOut {
  float* column_sum = nullptr;    ///< [q_heads, tokens]: sum over i of P[i][j]
  float* column_max = nullptr;    ///< [q_heads, tokens]: max over i of P[i][j]
  float* diagonal_sum = nullptr;  ///< [q_heads, tokens]: sum over i of P[i][i - offset]
  int* not_finite = nullptr;      ///< [q_heads]: set to 1 where a score is NaN or infinite (never cleared)
};
void window_scores_cuda(const PrefillInput& input, int window, const WindowScoresOut& out,
                        CudaWorkspace workspace, cudaStream_t stream);
std::size_t window_scores_workspace_bytes(const LayerInfo& info, std::int64_t tokens, int window,
                                          bool diagonals);

// --- Top-k and top-p
// -----------------------------------------------------------------------------------------------

/// Per row, the k largest of n scores; equal scores: the lower index wins. The first `first` and the last
/// `last` entries count as infinite, so they are always taken. Indices come out ascending.
struct TopKParams {
  const float* scores = nullptr;  ///< [rows, n] with stride score_stride
  std::int64_t score_stride = 0;
  int rows = 0;
  int n = 0;
  const std::int32_t* row_n = nullptr;  ///< device, [rows]: scores of each row, at most n; null: all have n
  int k = 0;                            ///< clamped to what a row has
  int first = 0, last = 0;
  /// Top-p beside k: when mass >= 0, k rises to the length of the smallest prefix of the sorted row whose sum
  /// is above mass * mass_total. The order for that knows no forced entries; the choice of that many then
  /// does.
  double mass = -1.0;
  double mass_total = 0.0;          ///< 0: the sum of the row
  const int* only_rows = nullptr;   ///< device, [rows]: rows with 0 are left alone; null: none are
  std::int32_t* indices = nullptr;  ///< [rows, index_stride] or null
  std::int64_t index_stride = 0;
  std::int32_t* counts = nullptr;  ///< [rows] or null
  std::uint32_t* bits =
      nullptr;  ///< [rows, bit_words] or null: one bit per chosen entry, added to what is there
  std::int64_t bit_words = 0;
};
/// The workspace may be used again as soon as what comes after it is enqueued.
void top_k_cuda(const TopKParams& params, CudaWorkspace workspace, cudaStream_t stream);
/// Both choices in the time of one.
void top_k_pair_cuda(const TopKParams& first, const TopKParams& second, CudaWorkspace workspace,
                     cudaStream_t stream);
/// For rows of at most n entries; `mass`: whether some are chosen by mass.
std::size_t top_k_workspace_bytes(std::int64_t rows, std::int64_t n, bool mass);

// --- Tile lists
// ----------------------------------------------------------------------------------------------------

/// Device memory for the lists that a selector makes.
struct TileListsOut {
  KeyRange* ranges = nullptr;
  std::int64_t max_ranges = 0;           ///< capacity of ranges; see overflow
  std::int64_t* range_begin = nullptr;   ///< [heads * row_blocks + 1]
  std::int32_t* columns = nullptr;       ///< [heads * max_columns]
  std::int64_t* column_begin = nullptr;  ///< [heads + 1]
  int* overflow = nullptr;  ///< set to 1 when max_ranges was too small; the lists are then cut short
};

/// Kept columns and diagonals (ascending, [heads, stride] with counts) to lists of 64-row blocks by the
/// released rule
/// (`exact`: the union of the blocks asked for): see methods/slash_lists.h.
struct SlashListsParams {
  const std::int32_t* columns = nullptr;
  const std::int32_t* column_counts = nullptr;
  std::int64_t column_stride = 0;
  const std::int32_t* offsets = nullptr;
  const std::int32_t* offset_counts = nullptr;
  std::int64_t offset_stride = 0;
  int heads = 0;
  std::int64_t tokens = 0;
  bool exact = false;
  /// Heads for which by_bits (device, [heads]) is not 0 take their ranges from bits (see BlockBits, block 64)
  /// instead, and have no columns. Null: none.
  const int* by_bits = nullptr;
  const std::uint32_t* bits = nullptr;
  std::int64_t bit_words = 0;
};
void slash_lists_cuda(const SlashListsParams& params, const TileListsOut& out, CudaWorkspace workspace,
                      cudaStream_t stream);
std::size_t slash_lists_workspace_bytes(int heads, std::int64_t tokens, std::int64_t offset_stride);

/// Block-sparse: mean-pools q and k over blocks of `block` rows, scores causal block pairs and keeps the
/// first, the last two and the best others, `top` in all: see methods/prefill_block_sparse.cpp. not_finite
/// [q_heads] (or null): set to 1 where a score is NaN or infinite, never cleared.
void block_sparse_lists_cuda(const PrefillInput& input, int block, int top, const TileListsOut& out,
                             CudaWorkspace workspace, cudaStream_t stream, int* not_finite = nullptr);
std::size_t block_sparse_workspace_bytes(const LayerInfo& info, std::int64_t tokens, int block, int top);

/// Sets of key blocks: bit j of row block i of a head says that rows of i visit key block j <= i. Bits after
/// the diagonal are ignored. The lists have row blocks of `block` and no columns.
struct BlockBits {
  const std::uint32_t* bits = nullptr;  ///< [heads, row blocks, words]
  std::int64_t words = 0;               ///< of a row: row blocks / 32, rounded up
  int heads = 0;
  std::int64_t tokens = 0;
  int block = 64;
};
void block_lists_cuda(const BlockBits& params, const TileListsOut& out, cudaStream_t stream);

/// Bits from scores: row r of a strip of each head is row block first_row + r, with one score per causal key
/// block. Equal scores: the lower index wins.
struct BlockChoiceParams {
  const float* scores = nullptr;  ///< [heads, strip_rows, score_stride]
  std::int64_t score_stride = 0, strip_rows = 0;
  int first_row = 0;
  int row_entries = 0;  ///< scores of every row; 0: one more than its index
  /// count: that many of the best, forced ones among them. mass >= 0: the shortest prefix of the sorted row
  /// whose sum reaches (`strictly`: is above) mass * mass_total (0: the sum of the row), forced ones beside
  /// it.
  int count = 0;
  double mass = -1, mass_total = 0;
  bool strictly = false;
  int force_first = 0, force_last = 0;  ///< so many at the ends are taken in any case
  bool add = false;                     ///< to the bits that are there
  const int* only_heads = nullptr;      ///< device, [heads]: heads with 0 are left alone; null: none are
  std::uint32_t* bits = nullptr;        ///< [heads, row_blocks, words]; whole words are written
  int row_blocks = 0;
  std::int64_t words = 0;
};
void choose_blocks_cuda(const BlockChoiceParams& params, int heads, int rows, cudaStream_t stream);

/// Attention summed over blocks, exact (oracles, stride 1) or estimated along antidiagonals (xattention): the
/// rows of methods/prefill_oracle.cpp and prefill_xattention.cpp. Rows are groups of `stride` tokens, weights
/// are summed over squares of per_block x per_block groups; row blocks [first, first + count) are written.
struct BlockMassParams {
  int stride = 1;
  int per_block = 64;  ///< groups of a block: a power of two up to 128
  int first = 0, count = 0;
  float* mass = nullptr;  ///< [q_heads, count, mass_stride]; entries after the diagonal are not written
  std::int64_t mass_stride = 0;
  int* not_finite = nullptr;  ///< [q_heads]: set to 1 where a score is NaN or infinite, never cleared
};
/// `first` * per_block must be a multiple of kMassRows.
inline constexpr int kMassRows = 128;
void block_mass_cuda(const PrefillInput& input, const BlockMassParams& params, cudaStream_t stream);

// --- Eviction
// ------------------------------------------------------------------------------------------------------

/// Importance per kv head and token: mean (or maximum) over the query heads of the group, then an average
/// pool of `kernel` tokens, absent terms zero. from [q_heads, tokens], to [kv_heads, tokens].
void pool_importance_cuda(const float* from, const LayerInfo& info, std::int64_t tokens, bool maximum,
                          int kernel, float* to, cudaStream_t stream);

/// Ada-SnapKV's choice: every head keeps its best `floor` tokens (forced ends among them), and the best
/// (head, token) pairs share what capacity * kv_heads leaves. For one rank: under tensor parallelism
/// importance must hold all heads.
struct SharedBudgetParams {
  float* importance = nullptr;  ///< [kv_heads, tokens]; overwritten
  int kv_heads = 0;
  std::int64_t tokens = 0;
  std::int64_t capacity = 0;  ///< per head, on average
  int floor = 0;
  int first = 0, last = 0;
  std::int32_t* kept = nullptr;  ///< [kv_heads, kept_stride], kept_stride >= tokens
  std::int64_t kept_stride = 0;
  std::int32_t* counts = nullptr;  ///< [kv_heads]
};
void shared_budget_cuda(const SharedBudgetParams& params, CudaWorkspace workspace, cudaStream_t stream);
std::size_t shared_budget_workspace_bytes(int kv_heads, std::int64_t tokens);

/// Expected Attention's (expected weight + epsilon) * |v| per query head and token: see
/// methods/evict_expected_attention.cpp.
struct ExpectedAttentionParams {
  int window = 0;
  double epsilon = 0;
  bool value_norm = true;
  double* importance = nullptr;  ///< [q_heads, tokens]
  int* not_finite = nullptr;     ///< [q_heads]: set to 1 where a score is NaN or infinite, never cleared
};
void expected_attention_cuda(const PrefillInput& input, const ExpectedAttentionParams& params,
                             CudaWorkspace workspace, cudaStream_t stream);
std::size_t expected_attention_workspace_bytes(const LayerInfo& info, std::int64_t tokens);

/// The mean over the query heads of each kv head, heads in ascending order: from [q_heads, tokens], to
/// [kv_heads, tokens].
void group_means_cuda(const double* from, const LayerInfo& info, std::int64_t tokens, double* to,
                      cudaStream_t stream);
/// The sum of `rows` rows in row order, for TOVA: from [rows, tokens], to [tokens].
void sum_rows_cuda(const float* from, int rows, std::int64_t tokens, double* to, cudaStream_t stream);

/// top_k_cuda's choice among doubles: exactly k per row, ascending. At least first + last, at most n.
struct DoubleTopKParams {
  const double* scores = nullptr;  ///< [rows, n]
  int rows = 0, n = 0, k = 0;
  int first = 0, last = 0;
  std::int32_t* indices = nullptr;  ///< [rows, index_stride]
  std::int64_t index_stride = 0;
};
void double_top_k_cuda(const DoubleTopKParams& params, CudaWorkspace workspace, cudaStream_t stream);
std::size_t double_top_k_workspace_bytes(std::int64_t rows, std::int64_t n);

/// Copies kept tokens of contiguous k and v into pages: kept [kv_heads, kept_stride] ascending with counts;
/// page_ids [kv_heads, id_stride] give each head's pages.
struct CompactParams {
  HeadsView k, v;
  const std::int32_t* kept = nullptr;
  const std::int32_t* counts = nullptr;
  std::int64_t kept_stride = 0;
  int max_kept = 0;  ///< host bound of counts
  void* pool = nullptr;
  std::int64_t page_elements = 0;
  const std::int32_t* page_ids = nullptr;
  std::int64_t id_stride = 0;
};
void compact_cache_cuda(const CompactParams& params, cudaStream_t stream);

}  // namespace lacuna
