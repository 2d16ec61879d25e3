#include "attention/cuda/method_memory.h"

#include <algorithm>

#include "attention/cuda/decode_methods.h"
#include "attention/cuda/method_util.h"
#include "attention/cuda/select_cuda.h"
#include "attention/methods/common.h"
#include "attention/methods/eviction.h"
#include "attention/methods/slash_lists.h"
#include "attention/methods/snapkv_params.h"
#include "core/cuda.h"

namespace lacuna {

namespace {

/// Adds up pieces as DeviceScratch hands them out.
class Sum {
 public:
  template <class T>
  Sum& of(std::int64_t count) {
    return bytes(static_cast<std::size_t>(std::max<std::int64_t>(0, count)) * sizeof(T));
  }
  Sum& bytes(std::size_t more) {
    constexpr std::size_t kAlign = 256;
    total_ += (more + kAlign - 1) / kAlign * kAlign;
    return *this;
  }
  std::size_t total() const { return total_; }

 private:
  std::size_t total_ = 0;
};

std::int64_t blocks_of(std::int64_t tokens, std::int64_t block) { return (tokens + block - 1) / block; }

/// What make_lists takes.
void add_lists(Sum& sum, const LayerInfo& info, const ListsPlan& plan) {
  const std::int64_t row_blocks = blocks_of(plan.tokens, plan.row_block);
  sum.of<std::int64_t>(info.q_heads * row_blocks + 1);
  if (plan.max_columns > 0)
    sum.of<std::int32_t>(info.q_heads * plan.max_columns).of<std::int64_t>(info.q_heads + 1);
  sum.of<KeyRange>(first_ranges(plan)).of<int>(1);
}

/// What attention over such lists and counting their cells take.
void add_attention(Sum& sum, const LayerInfo& info, const ListsPlan& plan, bool dense) {
  const DeviceTileLists lists{.heads = info.q_heads,
                              .tokens = plan.tokens,
                              .row_block = plan.row_block,
                              .dense = dense,
                              .max_columns = static_cast<int>(plan.max_columns)};
  sum.bytes(prefill_workspace_bytes(lists, info.head_dim));
  if (!dense) sum.of<unsigned long long>(3);
}

void add_window_scores(Sum& sum, const LayerInfo& info, std::int64_t tokens, std::int64_t window,
                       bool diagonals) {
  sum.bytes(window_scores_workspace_bytes(info, tokens, static_cast<int>(window), diagonals));
}

/// Lists that follow from positions: at most `most` ranges in each row block of each head.
void add_position_lists(Sum& sum, const LayerInfo& info, const ListsPlan& plan, std::int64_t most) {
  const std::int64_t rows = info.q_heads * blocks_of(plan.tokens, plan.row_block);
  sum.of<KeyRange>(rows * most).of<std::int64_t>(rows + 1);
  add_attention(sum, info, plan, false);
}

void add_vertical_slash(Sum& sum, const Params& params, const LayerInfo& info, std::int64_t tokens) {
  const std::int64_t columns =
      std::min(tokens, std::max<std::int64_t>(params.get_int("verticals"), kSinkColumns));
  const std::int64_t offsets =
      std::min(tokens, std::max<std::int64_t>(params.get_int("slashes"), kLocalOffsets));
  sum.of<float>(info.q_heads * tokens).of<float>(info.q_heads * tokens).of<int>(info.q_heads);
  add_window_scores(sum, info, tokens, params.get_int("window"), true);
  sum.of<int>(info.q_heads).of<int>(info.q_heads);
  sum.of<std::int32_t>(info.q_heads * columns).of<std::int32_t>(info.q_heads * offsets);
  sum.bytes(top_k_workspace_bytes(2 * info.q_heads, tokens, false));
  sum.bytes(slash_lists_workspace_bytes(info.q_heads, tokens, offsets));
  const ListsPlan plan{.tokens = tokens,
                       .row_block = kSlashRowBlock,
                       .max_ranges = info.q_heads * most_slash_ranges(tokens, offsets),
                       .max_columns = columns};
  add_lists(sum, info, plan);
  add_attention(sum, info, plan, false);
}

void add_block_sparse(Sum& sum, const Params& params, const LayerInfo& info, std::int64_t tokens) {
  const int block = static_cast<int>(params.get_int("chunk_size"));
  const std::int64_t blocks = blocks_of(tokens, block);
  const auto top =
      static_cast<int>(std::min(blocks, std::max<std::int64_t>(params.get_int("top_chunks"), 3)));
  sum.bytes(block_sparse_workspace_bytes(info, tokens, block, top)).of<int>(info.q_heads);
  const ListsPlan plan{
      .tokens = tokens, .row_block = block, .max_ranges = info.q_heads * most_block_ranges(blocks, top)};
  add_lists(sum, info, plan);
  add_attention(sum, info, plan, false);
}

void add_block_selector(Sum& sum, const MethodSpec& spec, const LayerInfo& info, std::int64_t tokens) {
  const int block = static_cast<int>(spec.params.get_int("block"));
  const std::int64_t blocks = blocks_of(tokens, block);
  const int stride = spec.method == "xattention" ? static_cast<int>(spec.params.get_int("stride")) : 1;
  sum.of<std::uint32_t>(info.q_heads * blocks * ((blocks + 31) / 32)).of<int>(info.q_heads);
  sum.of<float>(info.q_heads * block_strip_rows(info.q_heads, blocks, block / stride) * blocks);
  const std::int64_t most = spec.method == "oracle_top_k" ? spec.params.get_int("top_k") + 2 : blocks;
  const ListsPlan plan{
      .tokens = tokens, .row_block = block, .max_ranges = info.q_heads * most_block_ranges(blocks, most)};
  add_lists(sum, info, plan);
  add_attention(sum, info, plan, false);
}

/// How many columns and diagonals stay depends on the data: a quarter of what there is, and the budget at
/// least.
void add_flexprefill(Sum& sum, const Params& params, const LayerInfo& info, std::int64_t tokens) {
  const bool original = params.get_string("variant") == "original", by_blocks = params.get_double("tau") > 0;
  const int block = original ? kFlexOriginalBlock : kSlashRowBlock;
  const std::int64_t blocks = blocks_of(tokens, block), words = (blocks + 31) / 32, dim = info.head_dim;
  sum.of<float>(info.q_heads * tokens).of<float>(info.q_heads * tokens).of<int>(4 * info.q_heads);
  add_window_scores(sum, info, tokens, params.get_int("window"), true);
  if (original || by_blocks) sum.of<std::uint32_t>(info.q_heads * blocks * words);
  if (by_blocks) {
    sum.of<float>(info.kv_heads * blocks * dim).of<float>(info.q_heads * blocks * dim);
    sum.of<double>(info.q_heads * (dim + 2 * blocks));
    const std::int64_t at_once = flex_maps_at_once(info.q_heads, blocks), map = blocks * words * 32;
    sum.of<float>(at_once * map).bytes(top_k_workspace_bytes(at_once, map, true));
  }
  sum.of<std::int32_t>(info.q_heads * tokens).of<std::int32_t>(info.q_heads * tokens);
  sum.bytes(top_k_workspace_bytes(2 * info.q_heads, tokens, true));
  if (!original) sum.bytes(slash_lists_workspace_bytes(info.q_heads, tokens, tokens));
  const std::int64_t kept = std::min(tokens, std::max(params.get_int("min_budget"), tokens / 4));
  const ListsPlan plan{.tokens = tokens,
                       .row_block = block,
                       .max_ranges = info.q_heads * (original ? most_block_ranges(blocks, blocks)
                                                              : most_slash_ranges(tokens, kept)),
                       .max_columns = original ? 0 : kept};
  add_lists(sum, info, plan);
  add_attention(sum, info, plan, false);
}

void add_attended(Sum& sum, const MethodSpec& spec, const LayerInfo& info, std::int64_t tokens) {
  const AttendedRequest request = attended_request(spec.params);
  const bool ada = spec.method == "ada_snapkv";
  sum.of<float>(info.q_heads * tokens).of<int>(info.q_heads);
  add_window_scores(sum, info, tokens, request.window, false);
  const int heads = ada ? info.kv_heads_total : info.kv_heads;
  sum.of<float>(heads * tokens);
  if (ada) {
    sum.of<std::int32_t>(heads * tokens).of<std::int32_t>(heads);
    sum.bytes(shared_budget_workspace_bytes(heads, tokens));
    return;
  }
  const std::int64_t capacity =
      spec.method == "pyramidkv"
          ? pyramid_capacity(request.capacity, spec.params.get_double("beta"), info, tokens)
          : request.capacity;
  sum.of<std::int32_t>(heads * std::min(tokens, std::max(capacity, request.first + request.last)));
  sum.of<std::int32_t>(heads).bytes(top_k_workspace_bytes(heads, tokens, false));
}

}  // namespace

std::size_t prefill_scratch_bytes(const MethodSpec& spec, const LayerInfo& info, std::int64_t tokens) {
  Sum sum;
  const ListsPlan positions{.tokens = tokens, .row_block = kSlashRowBlock};
  if (spec.method.empty() || spec.method == "dense") {
    add_attention(sum, info, positions, true);
  } else if (spec.method == "vertical_slash") {
    add_vertical_slash(sum, spec.params, info, tokens);
  } else if (spec.method == "block_sparse") {
    add_block_sparse(sum, spec.params, info, tokens);
  } else if (spec.method == "flexprefill") {
    add_flexprefill(sum, spec.params, info, tokens);
  } else if (spec.method == "random") {
    const ListsPlan plan{.tokens = tokens, .row_block = static_cast<int>(spec.params.get_int("block"))};
    add_position_lists(sum, info, plan, spec.params.get_int("top_k") + 2);
  } else if (spec.method == "streaming" || spec.method == "a_shape" || spec.method == "tri_shape") {
    add_position_lists(sum, info, positions, 2);
  } else {
    add_block_selector(sum, spec, info, tokens);
  }
  return sum.total();
}

std::size_t evict_scratch_bytes(const MethodSpec& spec, const LayerInfo& info, std::int64_t tokens) {
  Sum sum;
  if (spec.method.empty() || spec.method == "none" || spec.method == "streaming" || spec.method == "random" ||
      spec.params.get_int("capacity") >= tokens)
    return 0;
  const std::int64_t capacity = spec.params.get_int("capacity");
  if (spec.method == "tova") {
    sum.of<float>(info.q_heads * tokens).of<int>(info.q_heads);
    add_window_scores(sum, info, tokens, 1, false);
    sum.of<double>(tokens).of<std::int32_t>(capacity);
    sum.bytes(double_top_k_workspace_bytes(1, tokens));
  } else if (spec.method == "expected_attention") {
    sum.of<double>(info.q_heads * tokens).of<int>(info.q_heads);
    sum.bytes(expected_attention_workspace_bytes(info, tokens));
    sum.of<double>(info.kv_heads * tokens).of<std::int32_t>(info.kv_heads * capacity);
    sum.bytes(double_top_k_workspace_bytes(info.kv_heads, tokens));
  } else {
    add_attended(sum, spec, info, tokens);
  }
  return sum.total();
}

namespace {

/// decode_workspace_bytes where there is no device to ask: eight runs per multiprocessor of a Hopper GPU for
/// one sequence, fewer when there are not four pages for each.
std::size_t guessed_decode_bytes(const DecodeParams& params) {
  constexpr std::int64_t kRuns = 8 * 132, kRunPages = 4, kRows = 16;
  const LayerInfo& info = params.info;
  const std::int64_t pages = (params.max_tokens + kPageTokens - 1) / kPageTokens;
  const std::int64_t runs = std::min(kRuns, info.kv_heads * ((pages + kRunPages - 1) / kRunPages));
  const std::int64_t rows =
      params.batch * runs * std::min<std::int64_t>(info.q_heads_total / info.kv_heads_total, kRows);
  return Sum().of<float>(2 * rows).of<float>(rows * info.head_dim).total();
}

}  // namespace

DecodeMethodMemory decode_method_memory(const MethodSpec& spec, const LayerInfo& info, int rows,
                                        std::int64_t max_tokens) {
  DecodeMethodMemory memory;
  const auto selector = spec.method.empty() ? nullptr : make_cuda_decode_selector(spec);
  const std::int64_t pages = (max_tokens + kPageTokens - 1) / kPageTokens;
  DecodeParams params;
  params.batch = rows;
  params.info = info;
  params.max_tokens = max_tokens;
  if (selector != nullptr) {
    memory.state = selector->state_bytes(info, max_tokens);
    params.lists_per_q_head = selector->lists_per_q_head();
    static constexpr std::int32_t kSomeList = 0;
    params.lists = &kSomeList;  // never read: that there are lists is what counts
    memory.lists_per_row = params.lists_per_q_head ? info.q_heads : info.kv_heads;
    DecodeChoice choice;
    choice.rows = rows;
    choice.info = info;
    choice.max_tokens = max_tokens;
    choice.list_stride = pages;
    memory.choice = selector->workspace_bytes(choice);
  }
  memory.attention = cuda_device_count() > 0 ? decode_workspace_bytes(params) : guessed_decode_bytes(params);
  return memory;
}

}  // namespace lacuna
