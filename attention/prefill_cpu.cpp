#include <algorithm>
#include <memory>
#include <vector>

#include "attention/cpu/kernels.h"
#include "attention/kernels.h"
#include "attention/key_stream.h"
#include "core/error.h"

namespace lacuna {

namespace {

constexpr int kMaxHeadDim = 256;

void check_view(const HeadsView& view, const char* name, int heads, std::int64_t tokens, int head_dim) {
  LACUNA_CHECK(view.device == Device::kCpu && view.dtype == DType::kF32, "{} must be float32 on the CPU",
               name);
  LACUNA_CHECK(view.heads == heads && view.tokens == tokens && view.head_dim == head_dim,
               "{} is [{}, {}, {}], expected [{}, {}, {}]", name, view.heads, view.tokens, view.head_dim,
               heads, tokens, head_dim);
}

/// Scratch of one thread, kept between calls: a fresh allocation per row block would cost page faults every
/// time.
struct Scratch {
  std::vector<std::int32_t> keys;
  Buffer floats;

  float* reserve(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
    if (floats.bytes() < bytes) floats = Buffer(bytes, Buffer::Kind::kHost);
    return floats.as<float>();
  }
};

}  // namespace

void attention_prefill(const PrefillInput& input, const TileLists& lists, const HeadsView& out,
                       ThreadPool& pool, AttentionCounts& counts) {
  const LayerInfo& info = input.info;
  const std::int64_t tokens = input.q.tokens;
  LACUNA_CHECK(info.head_dim >= 8 && info.head_dim <= kMaxHeadDim && info.head_dim % 8 == 0,
               "head_dim {} is not a multiple of 8 up to {}", info.head_dim, kMaxHeadDim);
  check_view(input.q, "q", info.q_heads, tokens, info.head_dim);
  check_view(input.k, "k", info.kv_heads, tokens, info.head_dim);
  check_view(input.v, "v", info.kv_heads, tokens, info.head_dim);
  check_view(out, "out", info.q_heads, tokens, info.head_dim);
  check_lists(lists, info.q_heads, tokens);

  const CpuKernels& kernels = cpu_kernels();
  const int rows_per_block = block_rows(lists);
  // Blocks smaller than a vector still make one work item each 64 rows, so that items are worth a thread's
  // while.
  const std::int64_t rows_per_item = std::max<std::int64_t>(64, rows_per_block);
  const std::int64_t items_per_head = (tokens + rows_per_item - 1) / rows_per_item;
  std::vector<AttentionCounts> item_counts(static_cast<std::size_t>(items_per_head * info.q_heads));

  pool.parallel_for(items_per_head * info.q_heads, [&](std::int64_t item) {
    thread_local Scratch scratch;
    const int head = static_cast<int>(item / items_per_head);
    const std::int64_t item_index = items_per_head - 1 - item % items_per_head;  // longest rows first
    const int kv_head = info.kv_head_of(head);
    AttentionCounts& done = item_counts[static_cast<std::size_t>(item)];
    const std::int64_t item_end = std::min(tokens, (item_index + 1) * rows_per_item);
    for (std::int64_t begin = item_index * rows_per_item; begin < item_end; begin += rows_per_block) {
      const std::int64_t end = std::min<std::int64_t>(begin + rows_per_block, item_end);
      visited_keys(lists, head, begin, end, info.window, scratch.keys);
      done += count_block(lists, head, begin, end, info.window);
      for (std::int64_t row = begin; row < end; row += kernels.max_rows) {
        kernels.prefill_rows({.q = input.q.row(head, row),
                              .q_stride = input.q.token_stride,
                              .first_row = row,
                              .rows = static_cast<int>(std::min<std::int64_t>(kernels.max_rows, end - row)),
                              .keys = scratch.keys.data(),
                              .key_count = std::ssize(scratch.keys),
                              .k = input.k.row(kv_head, 0),
                              .v = input.v.row(kv_head, 0),
                              .k_stride = input.k.token_stride,
                              .v_stride = input.v.token_stride,
                              .head_dim = info.head_dim,
                              .scale = info.scale,
                              .softcap = info.softcap,
                              .window = info.window,
                              .out = out.row(head, row),
                              .out_stride = out.token_stride,
                              .scratch = scratch.reserve(kernels.prefill_scratch(info.head_dim))});
      }
    }
  });

  AttentionCounts total;
  for (const AttentionCounts& item : item_counts) total += item;
  total.flops = 4.0 * info.head_dim * total.computed_cells;
  counts += total;
}

}  // namespace lacuna
