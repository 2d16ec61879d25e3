#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "attention/cpu/kernels.h"
#include "attention/kernels.h"
#include "core/error.h"

namespace lacuna {

namespace {

static_assert(kPageTokens == 16, "attention/cpu/decode_impl.h scores pages of 16 tokens");

/// Tokens that one work item reads. Fixed, so that where sums are cut does not depend on the threads.
constexpr std::int64_t kChunkPages = 128;
constexpr int kMaxRowsPerRun = 64;

/// What a few query rows of one sequence read from one kv head, in chunks.
struct Stream {
  std::size_t sequence = 0;
  int kv_head = 0, q_begin = 0, q_rows = 0;
  const std::int32_t* pages = nullptr;  // null: first_page, first_page + 1, ...
  std::int64_t first_page = 0, page_count = 0;
  std::int64_t token_begin = 0;
  std::size_t first_chunk = 0, chunks = 0;
};

/// One chunk's unnormalised result.
struct Chunk {
  std::size_t stream = 0;
  std::int64_t page_begin = 0, page_count = 0;  // within the stream's pages
  std::size_t out = 0;                          // offset into partial results
  std::size_t stats = 0;
};

Stream make_stream(const DecodeWork& work, std::size_t sequence, int kv_head, int q_begin, int q_rows,
                   const PageList* list, int window) {
  const PagedHead& head = work.heads[static_cast<std::size_t>(kv_head)];
  const std::int64_t pages = (head.tokens + kPageTokens - 1) / kPageTokens;
  LACUNA_CHECK(std::ssize(head.page_ids) >= pages, "{} tokens in {} pages", head.tokens,
               head.page_ids.size());
  Stream stream{.sequence = sequence, .kv_head = kv_head, .q_begin = q_begin, .q_rows = q_rows};
  stream.token_begin = window > 0 ? std::max<std::int64_t>(0, head.tokens - window) : 0;
  const std::int64_t first_page = stream.token_begin / kPageTokens;
  if (list == nullptr) {
    stream.first_page = first_page;
    stream.page_count = pages - first_page;
    return stream;
  }
  for (std::size_t i = 0; i < list->size(); ++i) {
    LACUNA_CHECK((*list)[i] >= 0 && (*list)[i] < pages && (i == 0 || (*list)[i] > (*list)[i - 1]),
                 "page list of kv head {}: entry {} is {}, of {} pages", kv_head, i, (*list)[i], pages);
  }
  const auto begin = std::lower_bound(list->begin(), list->end(), first_page) - list->begin();
  stream.pages = list->data() + begin;
  stream.page_count = std::ssize(*list) - begin;
  return stream;
}

std::vector<Stream> make_streams(std::span<const DecodeWork> batch, const LayerInfo& info) {
  std::vector<Stream> streams;
  for (std::size_t s = 0; s < batch.size(); ++s) {
    const DecodeWork& work = batch[s];
    LACUNA_CHECK(std::ssize(work.heads) == info.kv_heads, "{} cached heads, the layer has {}",
                 work.heads.size(), info.kv_heads);
    const auto lists = std::ssize(work.lists);
    LACUNA_CHECK(lists == 0 || lists == info.kv_heads || lists == info.q_heads,
                 "{} page lists for {} / {} heads", lists, info.q_heads, info.kv_heads);
    const bool per_kv = lists == info.kv_heads || lists == 0;
    for (int q = 0; q < info.q_heads;) {
      const int kv = info.kv_head_of(q);
      int rows = 1;
      while (per_kv && q + rows < info.q_heads && rows < kMaxRowsPerRun && info.kv_head_of(q + rows) == kv)
        ++rows;
      const PageList* list = lists == 0 ? nullptr : &work.lists[static_cast<std::size_t>(per_kv ? kv : q)];
      streams.push_back(make_stream(work, s, kv, q, rows, list, info.window));
      q += rows;
    }
  }
  return streams;
}

std::int64_t tokens_of(const Stream& stream, std::int64_t tokens) {
  std::int64_t read = 0;
  for (std::int64_t i = 0; i < stream.page_count; ++i) {
    const std::int64_t page = stream.pages != nullptr ? stream.pages[i] : stream.first_page + i;
    const std::int64_t begin = std::max(page * kPageTokens, stream.token_begin);
    read += std::max<std::int64_t>(0, std::min(tokens, (page + 1) * kPageTokens) - begin);
  }
  return read;
}

/// out = sum over chunks, in chunk order, of 2^(maximum_i - maximum) out_i / sum.
void merge(const Stream& stream, std::span<const Chunk> chunks, const float* partial, const float* stats,
           int head_dim, float* out) {
  for (int r = 0; r < stream.q_rows; ++r) {
    float* to = out + static_cast<std::int64_t>(stream.q_begin + r) * head_dim;
    float top = -FLT_MAX;
    bool undefined = false;
    for (const Chunk& chunk : chunks) {
      const float maximum = stats[chunk.stats + static_cast<std::size_t>(2 * r)];
      if (maximum > top) top = maximum;
      undefined = undefined || std::isnan(stats[chunk.stats + static_cast<std::size_t>(2 * r + 1)]);
    }
    float sum = 0;
    std::fill(to, to + head_dim, 0.0f);
    for (const Chunk& chunk : chunks) {
      const float* stat = stats + chunk.stats + 2 * r;
      const float factor = std::exp2(stat[0] - top);
      sum += stat[1] * factor;
      const float* from = partial + chunk.out + static_cast<std::int64_t>(r) * head_dim;
      for (int c = 0; c < head_dim; ++c) to[c] += from[c] * factor;
    }
    // Nothing visited: zeros, as in prefill.
    const float inverse = undefined ? NAN : (sum == 0.0f ? 0.0f : 1.0f / sum);
    for (int c = 0; c < head_dim; ++c) to[c] *= inverse;
  }
}

}  // namespace

void attention_decode(std::span<const DecodeWork> batch, const float* pool, std::int64_t page_elements,
                      const LayerInfo& info, ThreadPool& threads, std::span<AttentionCounts> counts) {
  const int head_dim = info.head_dim;
  LACUNA_CHECK(head_dim >= 8 && head_dim <= 256 && head_dim % 8 == 0,
               "head_dim {} is not a multiple of 8 up to 256", head_dim);
  LACUNA_CHECK(counts.size() == batch.size(), "{} counts for {} sequences", counts.size(), batch.size());
  std::vector<Stream> streams = make_streams(batch, info);

  std::vector<Chunk> chunks;
  std::size_t partial_size = 0, stats_size = 0;
  for (std::size_t s = 0; s < streams.size(); ++s) {
    Stream& stream = streams[s];
    stream.first_chunk = chunks.size();
    for (std::int64_t page = 0; page < stream.page_count; page += kChunkPages) {
      chunks.push_back({s, page, std::min(kChunkPages, stream.page_count - page), partial_size, stats_size});
      partial_size += static_cast<std::size_t>(stream.q_rows) * static_cast<std::size_t>(head_dim);
      stats_size += 2 * static_cast<std::size_t>(stream.q_rows);
    }
    stream.chunks = chunks.size() - stream.first_chunk;
  }
  std::vector<float> partial(partial_size), stats(stats_size);

  const CpuKernels& kernels = cpu_kernels();
  threads.parallel_for(std::ssize(chunks), [&](std::int64_t i) {
    const Chunk& chunk = chunks[static_cast<std::size_t>(i)];
    const Stream& stream = streams[chunk.stream];
    const DecodeWork& work = batch[stream.sequence];
    const PagedHead& head = work.heads[static_cast<std::size_t>(stream.kv_head)];
    float maximum[kMaxRowsPerRun], sum[kMaxRowsPerRun];
    kernels.decode_run({.q = work.q + static_cast<std::int64_t>(stream.q_begin) * head_dim,
                        .q_rows = stream.q_rows,
                        .pool = pool,
                        .page_elements = page_elements,
                        .page_ids = head.page_ids.data(),
                        .pages = stream.pages != nullptr ? stream.pages + chunk.page_begin : nullptr,
                        .first_page = stream.first_page + chunk.page_begin,
                        .page_count = chunk.page_count,
                        .token_begin = stream.token_begin,
                        .token_end = head.tokens,
                        .head_dim = head_dim,
                        .scale = info.scale,
                        .softcap = info.softcap,
                        .out = partial.data() + chunk.out,
                        .maximum = maximum,
                        .sum = sum});
    for (int r = 0; r < stream.q_rows; ++r) {
      stats[chunk.stats + static_cast<std::size_t>(2 * r)] = maximum[r];
      stats[chunk.stats + static_cast<std::size_t>(2 * r + 1)] = sum[r];
    }
  });

  for (const Stream& stream : streams) {
    const DecodeWork& work = batch[stream.sequence];
    merge(stream, std::span(chunks).subspan(stream.first_chunk, stream.chunks), partial.data(), stats.data(),
          head_dim, work.out);
    const std::int64_t cached = work.heads[static_cast<std::size_t>(stream.kv_head)].tokens;
    const std::int64_t context = std::max(cached, work.context_tokens);
    const std::int64_t visible = info.window > 0 ? std::min<std::int64_t>(context, info.window) : context;
    const auto read = static_cast<double>(tokens_of(stream, cached));
    AttentionCounts& to = counts[stream.sequence];
    to.visited_cells += stream.q_rows * read;
    to.computed_cells += stream.q_rows * static_cast<double>(stream.page_count * kPageTokens);
    to.causal_cells += stream.q_rows * static_cast<double>(visible);
    to.flops += 4.0 * head_dim * stream.q_rows * static_cast<double>(stream.page_count * kPageTokens);
    to.kv_bytes_read += read * 2.0 * head_dim * sizeof(float);
  }
}

}  // namespace lacuna
