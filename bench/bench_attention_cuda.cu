// Times the CUDA attention kernels on random data: Qwen2.5-7B heads (28 query, 4 kv, head_dim 128), bfloat16.
//   bench_attention_cuda [dense|lists|decode|index|all] [longest tokens] [once]
// "once" calls everything a single time and times nothing: for a profiler.
// Prints milliseconds (median), TFLOP/s of visited tiles or GB/s, and the share of the floor in
// docs/performance.md.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "attention/cuda/attention_cuda.h"
#include "attention/cuda/page_choice.h"
#include "attention/cuda/select_cuda.h"
#include "core/cuda.h"
#include "core/tensor.h"

namespace lacuna {
namespace {

constexpr int kQHeads = 28, kKvHeads = 4, kHeadDim = 128;
constexpr double kPeakFlops = 790e12;  ///< measured bf16 matrix product on one H200
constexpr double kPeakBytes = 4.3e12;  ///< measured device memory

/// Sums of four uniforms, near normal with deviation 1.
__global__ void fill_random(std::uint16_t* to, std::size_t count, unsigned seed) {
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    unsigned long long x = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
    x ^= x >> 31, x *= 0xBF58476D1CE4E5B9ull, x ^= x >> 29, x *= 0x94D049BB133111EBull, x ^= x >> 32;
    float sum = 0.0f;
    for (int part = 0; part < 4; ++part)
      sum += static_cast<float>((x >> (16 * part)) & 0xFFFF) / 65536.0f - 0.5f;
    to[i] = static_cast<std::uint16_t>(__float_as_uint(sum * 1.73f) >> 16);
  }
}

Buffer random_bf16(std::size_t count, unsigned seed) {
  Buffer buffer(count * 2, Buffer::Kind::kDevice);
  fill_random<<<1024, 256>>>(buffer.as<std::uint16_t>(), count, seed);
  LACUNA_CUDA_TRY(cudaGetLastError());
  return buffer;
}

bool g_once = false;

/// Median milliseconds of one call, over about `budget_ms` of calls.
double time_ms(const std::function<void(cudaStream_t)>& call, double budget_ms = 400) {
  CudaStream stream;
  CudaEvent begin, end;
  call(stream);
  if (g_once) {
    stream.synchronize();
    return 1.0;
  }
  begin.record(stream);
  call(stream);
  end.record(stream);
  end.synchronize();
  const int rounds = std::clamp(static_cast<int>(budget_ms / std::max(0.01f, end.since(begin))), 3, 200);
  std::vector<float> times;
  for (int i = 0; i < rounds; ++i) {
    begin.record(stream);
    call(stream);
    end.record(stream);
    end.synchronize();
    times.push_back(end.since(begin));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

/// Microseconds of one call inside a replayed graph of `repeat` calls: no launch gaps.
double time_graph_us(const std::function<void(cudaStream_t, int)>& call, int repeat = 20) {
  CudaStream stream;
  call(stream, 0);
  stream.synchronize();
  if (g_once) return 1.0;
  cudaGraph_t graph{};
  cudaGraphExec_t executable{};
  LACUNA_CUDA_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < repeat; ++i) call(stream, i);
  LACUNA_CUDA_TRY(cudaStreamEndCapture(stream, &graph));
  LACUNA_CUDA_TRY(cudaGraphInstantiate(&executable, graph, 0));
  const double ms = time_ms([&](cudaStream_t s) { LACUNA_CUDA_TRY(cudaGraphLaunch(executable, s)); }, 100);
  LACUNA_CUDA_TRY(cudaGraphExecDestroy(executable));
  LACUNA_CUDA_TRY(cudaGraphDestroy(graph));
  return ms * 1000 / repeat;
}

struct PrefillData {
  std::int64_t tokens;
  Buffer q, k, v, out;
  PrefillInput input;
  HeadsView out_view;

  explicit PrefillData(std::int64_t n)
      : tokens(n),
        q(random_bf16(static_cast<std::size_t>(n) * kQHeads * kHeadDim, 1)),
        k(random_bf16(static_cast<std::size_t>(n) * kKvHeads * kHeadDim, 2)),
        v(random_bf16(static_cast<std::size_t>(n) * kKvHeads * kHeadDim, 3)),
        out(static_cast<std::size_t>(n) * kQHeads * kHeadDim * 2, Buffer::Kind::kDevice) {
    // The layout of a projection's output: [tokens, heads, head_dim].
    const auto view = [n](const Buffer& buffer, int heads) {
      HeadsView v{buffer.data(), DType::kBF16, Device::kCuda, heads, n, kHeadDim, kHeadDim, heads * kHeadDim};
      return v;
    };
    input.q = view(q, kQHeads), input.k = view(k, kKvHeads), input.v = view(v, kKvHeads);
    out_view = view(out, kQHeads);
    LayerInfo& info = input.info;
    info.q_heads = info.q_heads_total = kQHeads;
    info.kv_heads = info.kv_heads_total = kKvHeads;
    info.head_dim = kHeadDim;
    info.scale = 0.08838834764f;
  }
};

template <class T>
Buffer upload(const std::vector<T>& from) {
  Buffer buffer(from.size() * sizeof(T) + 16, Buffer::Kind::kDevice);
  LACUNA_CUDA_TRY(cudaMemcpy(buffer.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  return buffer;
}

struct UploadedLists {
  Buffer ranges, range_begin, columns, column_begin;
  DeviceTileLists lists;
  explicit UploadedLists(const TileLists& host)
      : ranges(upload(host.ranges)),
        range_begin(upload(host.range_begin)),
        columns(upload(host.columns)),
        column_begin(upload(host.column_begin)) {
    lists.heads = host.heads, lists.tokens = host.tokens, lists.row_block = host.row_block;
    lists.ranges = ranges.as<KeyRange>(), lists.range_begin = range_begin.as<std::int64_t>();
    if (!host.column_begin.empty()) {
      lists.columns = columns.as<std::int32_t>(), lists.column_begin = column_begin.as<std::int64_t>();
      for (int h = 0; h < host.heads; ++h)
        lists.max_columns = std::max(lists.max_columns, static_cast<int>(host.columns_of(h).size()));
    }
  }
};

struct Random {
  std::uint64_t state = 88172645463325252ull;
  std::uint64_t operator()(std::uint64_t n) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (state >> 11) % n;
  }
};

/// Each query block keeps block 0, the last two and `keep` random ones.
TileLists random_blocks(std::int64_t tokens, int block, std::int64_t keep) {
  TileLists lists;
  lists.heads = kQHeads, lists.tokens = tokens, lists.row_block = block;
  lists.range_begin.push_back(0);
  Random random;
  std::vector<std::int32_t> kept;
  for (int h = 0; h < kQHeads; ++h)
    for (std::int64_t b = 0; b < lists.row_blocks(); ++b) {
      kept.clear();
      if (b + 1 <= keep) {
        for (std::int64_t j = 0; j <= b; ++j) kept.push_back(static_cast<std::int32_t>(j));
      } else {
        kept = {0, static_cast<std::int32_t>(b - 1), static_cast<std::int32_t>(b)};
        while (static_cast<std::int64_t>(kept.size()) < keep) {
          for (auto left = keep - static_cast<std::int64_t>(kept.size()); left > 0; --left)
            kept.push_back(static_cast<std::int32_t>(random(static_cast<std::uint64_t>(b))));
          std::sort(kept.begin(), kept.end());
          kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
        }
      }
      for (const auto j : kept) lists.ranges.push_back({j * block, block});
      lists.range_begin.push_back(static_cast<std::int64_t>(lists.ranges.size()));
    }
  return lists;
}

/// Random verticals and slashes turned into tiles by the released rule.
TileLists random_vertical_slash(std::int64_t tokens, int verticals, int slashes) {
  TileLists lists;
  lists.heads = kQHeads, lists.tokens = tokens, lists.row_block = 64;
  lists.range_begin.push_back(0);
  lists.column_begin.push_back(0);
  Random random;
  const auto draw = [&](int count, int first) {
    std::vector<std::int32_t> kept;
    for (int i = 0; i < first; ++i) kept.push_back(i);
    for (int i = first; i < count; ++i)
      kept.push_back(static_cast<std::int32_t>(random(static_cast<std::uint64_t>(tokens))));
    std::sort(kept.begin(), kept.end());
    kept.erase(std::unique(kept.begin(), kept.end()), kept.end());
    return kept;
  };
  for (int h = 0; h < kQHeads; ++h) {
    const auto columns = draw(verticals, 4), offsets = draw(slashes, 64);
    for (std::int64_t m = 0; m < tokens; m += 64) {
      std::int64_t start = -1, end = -1;
      for (auto o = offsets.rbegin(); o != offsets.rend(); ++o) {
        if (*o >= m + 64) continue;
        const std::int64_t s = std::max<std::int64_t>(0, m - *o), e = s + 64;
        if (start >= 0 && s <= end && e > end) {
          end += 64;
        } else if (start < 0 || s > end) {
          if (start >= 0)
            lists.ranges.push_back(
                {static_cast<std::int32_t>(start), static_cast<std::int32_t>(end - start)});
          start = s, end = e;
        }
      }
      if (start >= 0)
        lists.ranges.push_back({static_cast<std::int32_t>(start), static_cast<std::int32_t>(end - start)});
      lists.range_begin.push_back(static_cast<std::int64_t>(lists.ranges.size()));
    }
    lists.columns.insert(lists.columns.end(), columns.begin(), columns.end());
    lists.column_begin.push_back(static_cast<std::int64_t>(lists.columns.size()));
  }
  return lists;
}

void report_prefill(const char* what, const PrefillData& data, const DeviceTileLists& lists, CudaPath path) {
  const Buffer workspace(prefill_workspace_bytes(lists, kHeadDim), Buffer::Kind::kDevice);
  Buffer counts(64, Buffer::Kind::kDevice);
  const CudaWorkspace space{workspace.data(), workspace.bytes()};
  count_tile_cells_cuda(lists, 0, counts.as<unsigned long long>(), space, nullptr);
  unsigned long long cells[3];
  LACUNA_CUDA_TRY(cudaMemcpy(cells, counts.data(), sizeof cells, cudaMemcpyDeviceToHost));
  const double ms = time_ms(
      [&](cudaStream_t s) { attention_prefill_cuda(data.input, lists, data.out_view, space, s, path); });
  const double flops = 4.0 * kHeadDim * static_cast<double>(cells[0]);
  std::printf(
      "%-36s %7lld  %-8s %9.3f ms  %6.1f TFLOP/s visited  density %5.1f %%  floor %8.3f ms (%4.1f %%)\n",
      what, static_cast<long long>(data.tokens), path == CudaPath::kPortable ? "portable" : "auto", ms,
      flops / ms * 1e-9, 100.0 * static_cast<double>(cells[0]) / static_cast<double>(cells[1]),
      flops / kPeakFlops * 1e3, 100 * flops / kPeakFlops * 1e3 / ms);
  std::fflush(stdout);
}

void bench_dense(std::int64_t longest) {
  for (std::int64_t tokens = 16384; tokens <= longest; tokens *= 2) {
    const PrefillData data(tokens);
    DeviceTileLists lists;
    lists.heads = kQHeads, lists.tokens = tokens, lists.dense = true;
    report_prefill("dense", data, lists, CudaPath::kAuto);
    if (tokens == 32768) report_prefill("dense", data, lists, CudaPath::kPortable);
  }
}

void bench_lists(std::int64_t tokens) {
  const PrefillData data(tokens);
  const auto run = [&](const char* what, const TileLists& host, bool portable) {
    const UploadedLists lists(host);
    report_prefill(what, data, lists.lists, CudaPath::kAuto);
    if (portable) report_prefill(what, data, lists.lists, CudaPath::kPortable);
  };
  run("block_sparse 64, 10 % kept", random_blocks(tokens, 64, tokens / 640), false);
  run("block_sparse 128, 10 % kept", random_blocks(tokens, 128, tokens / 1280), false);
  run("block_sparse 16, 5 % kept", random_blocks(tokens, 16, tokens / 320), true);
  run("block_sparse 16, 10 % kept", random_blocks(tokens, 16, tokens / 160), false);
  run("block_sparse 32, 10 % kept", random_blocks(tokens, 32, tokens / 320), false);
  run("vertical_slash 512 512, random", random_vertical_slash(tokens, 512, 512), true);
  run("vertical_slash 1024 2048, random", random_vertical_slash(tokens, 1024, 2048), false);
}

/// What vertical_slash (k of each) or flexprefill (mass) do before attention, step by step.
void bench_slash_index(std::int64_t tokens, int window, int k, float mass) {
  const PrefillData data(tokens);
  const auto n = static_cast<std::size_t>(tokens);
  const std::size_t cells = n * kQHeads;
  const std::int64_t blocks = (tokens + 63) / 64;
  const Buffer sums(cells * 4, Buffer::Kind::kDevice), diagonals(cells * 4, Buffer::Kind::kDevice);
  const Buffer columns(cells * 4, Buffer::Kind::kDevice), offsets(cells * 4, Buffer::Kind::kDevice);
  const Buffer packed(cells * 4, Buffer::Kind::kDevice), counts(4096, Buffer::Kind::kDevice);
  const std::int64_t max_ranges = kQHeads * blocks * std::min<std::int64_t>(blocks, 4 * k);
  const Buffer ranges(static_cast<std::size_t>(max_ranges) * sizeof(KeyRange), Buffer::Kind::kDevice);
  const Buffer begin(static_cast<std::size_t>(kQHeads * blocks + 1) * 8, Buffer::Kind::kDevice);
  const std::size_t bytes = window_scores_workspace_bytes(data.input.info, tokens, window, true);
  const Buffer workspace(bytes, Buffer::Kind::kDevice);
  LACUNA_CUDA_TRY(cudaMemset(counts.data(), 0, counts.bytes()));
  const auto scores = [&](cudaStream_t s) {
    window_scores_cuda(data.input, window,
                       {.column_sum = sums.as<float>(), .diagonal_sum = diagonals.as<float>()},
                       {workspace.data(), workspace.bytes()}, s);
  };
  const Buffer search(top_k_workspace_bytes(2 * kQHeads, tokens, mass >= 0), Buffer::Kind::kDevice);
  const auto choose = [&](cudaStream_t s) {
    TopKParams vertical;
    vertical.scores = sums.as<float>(), vertical.score_stride = tokens, vertical.rows = kQHeads,
    vertical.n = static_cast<int>(tokens);
    vertical.k = k, vertical.first = 4, vertical.mass = mass, vertical.mass_total = window;
    vertical.indices = columns.as<std::int32_t>(), vertical.index_stride = tokens,
    vertical.counts = counts.as<std::int32_t>();
    TopKParams slash = vertical;
    slash.scores = diagonals.as<float>(), slash.first = 64;
    slash.indices = offsets.as<std::int32_t>(), slash.counts = counts.as<std::int32_t>() + 64;
    top_k_pair_cuda(vertical, slash, {search.data(), search.bytes()}, s);
  };
  const Buffer list_space(slash_lists_workspace_bytes(kQHeads, tokens, tokens), Buffer::Kind::kDevice);
  const auto lists = [&](cudaStream_t s) {
    SlashListsParams params;
    params.columns = columns.as<std::int32_t>(), params.column_counts = counts.as<std::int32_t>();
    params.offsets = offsets.as<std::int32_t>(), params.offset_counts = counts.as<std::int32_t>() + 64;
    params.column_stride = params.offset_stride = tokens;
    params.heads = kQHeads, params.tokens = tokens;
    TileListsOut out;
    out.ranges = ranges.as<KeyRange>(), out.max_ranges = max_ranges,
    out.range_begin = begin.as<std::int64_t>();
    out.columns = packed.as<std::int32_t>(), out.column_begin = counts.as<std::int64_t>() + 128;
    out.overflow = counts.as<int>() + 512;
    slash_lists_cuda(params, out, {list_space.data(), list_space.bytes()}, s);
  };
  const double score_ms = time_ms(scores, 60), choose_ms = time_ms(choose, 60), list_ms = time_ms(lists, 60);
  std::printf(
      "index %-14s W %4d          %7lld  scores %7.3f ms  top %7.3f ms  lists %7.3f ms  total %7.3f ms\n",
      mass < 0 ? "vertical_slash" : "flexprefill", window, static_cast<long long>(tokens), score_ms,
      choose_ms, list_ms, score_ms + choose_ms + list_ms);
  std::fflush(stdout);
}

/// Two steps of block_sparse's index by themselves, on random scores: the choice of all rows and their lists.
void bench_block_choice(std::int64_t tokens, int block, int top) {
  constexpr int kStrip = 128;
  const std::int64_t blocks = (tokens + block - 1) / block, words = (blocks + 31) / 32;
  // The upper half of each float is a near normal bfloat16.
  const Buffer scores = random_bf16(static_cast<std::size_t>(kQHeads * kStrip * blocks * 2), 7);
  const Buffer bits(static_cast<std::size_t>(kQHeads * blocks * words) * 4, Buffer::Kind::kDevice);
  const Buffer ranges(static_cast<std::size_t>(kQHeads * blocks * top) * sizeof(KeyRange),
                      Buffer::Kind::kDevice);
  const Buffer begin(static_cast<std::size_t>(kQHeads * blocks + 1) * 8, Buffer::Kind::kDevice);
  const Buffer overflow(64, Buffer::Kind::kDevice);
  BlockChoiceParams choice;
  choice.scores = scores.as<float>(), choice.score_stride = blocks, choice.strip_rows = kStrip;
  choice.count = top, choice.force_first = 1, choice.force_last = 2;
  choice.bits = bits.as<std::uint32_t>(), choice.row_blocks = static_cast<int>(blocks), choice.words = words;
  const double choice_ms = time_ms(
      [&](cudaStream_t s) {
        for (std::int64_t first = 0; first < blocks; first += kStrip) {
          choice.first_row = static_cast<int>(first);
          choose_blocks_cuda(choice, kQHeads,
                             static_cast<int>(std::min<std::int64_t>(kStrip, blocks - first)), s);
        }
      },
      60);
  TileListsOut out;
  out.ranges = ranges.as<KeyRange>(), out.max_ranges = kQHeads * blocks * top;
  out.range_begin = begin.as<std::int64_t>(), out.overflow = overflow.as<int>();
  const double list_ms = time_ms(
      [&](cudaStream_t s) {
        block_lists_cuda({.bits = bits.as<std::uint32_t>(),
                          .words = words,
                          .heads = kQHeads,
                          .tokens = tokens,
                          .block = block},
                         out, s);
      },
      60);
  std::printf("index block_sparse %-4d top %-5d       %7lld  of it: choice %7.3f ms  lists %7.3f ms\n", block,
              top, static_cast<long long>(tokens), choice_ms, list_ms);
  std::fflush(stdout);
}

/// What snapkv (sums) and ada_snapkv (maxima) do, step by step.
void bench_evict(std::int64_t tokens, int window, int capacity) {
  const PrefillData data(tokens);
  const LayerInfo& info = data.input.info;
  const std::size_t cells = static_cast<std::size_t>(tokens) * kQHeads;
  const Buffer rows(cells * 4, Buffer::Kind::kDevice), pooled(cells * 4, Buffer::Kind::kDevice);
  const Buffer kept(cells * 4, Buffer::Kind::kDevice), counts(256, Buffer::Kind::kDevice);
  const Buffer space(std::max({window_scores_workspace_bytes(info, tokens, window, false),
                               top_k_workspace_bytes(kKvHeads, tokens, false),
                               shared_budget_workspace_bytes(kKvHeads, tokens)}),
                     Buffer::Kind::kDevice);
  const CudaWorkspace workspace{space.data(), space.bytes()};
  for (const bool maximum : {false, true}) {
    const double score_ms = time_ms(
        [&](cudaStream_t s) {
          WindowScoresOut out;
          (maximum ? out.column_max : out.column_sum) = rows.as<float>();
          window_scores_cuda(data.input, window, out, workspace, s);
        },
        60);
    const double pool_ms = time_ms(
        [&](cudaStream_t s) {
          pool_importance_cuda(rows.as<float>(), info, tokens, maximum, 21, pooled.as<float>(), s);
        },
        60);
    const double choice_ms = time_ms(
        [&](cudaStream_t s) {
          if (maximum) {
            SharedBudgetParams budget;
            budget.importance = pooled.as<float>(), budget.kv_heads = kKvHeads, budget.tokens = tokens;
            budget.capacity = capacity, budget.floor = capacity / 5, budget.first = 4, budget.last = 128;
            budget.kept = kept.as<std::int32_t>(), budget.kept_stride = tokens;
            budget.counts = counts.as<std::int32_t>();
            shared_budget_cuda(budget, workspace, s);
          } else {
            TopKParams top;
            top.scores = pooled.as<float>(), top.score_stride = tokens, top.rows = kKvHeads;
            top.n = static_cast<int>(tokens), top.k = capacity, top.first = 4, top.last = 128;
            top.indices = kept.as<std::int32_t>(), top.index_stride = tokens;
            top.counts = counts.as<std::int32_t>();
            top_k_cuda(top, workspace, s);
          }
        },
        60);
    std::printf("choosing for %-12s W %4d      %7lld  scores %7.3f ms  pool %7.3f ms  choice %7.3f ms\n",
                maximum ? "ada_snapkv" : "snapkv", window, static_cast<long long>(tokens), score_ms, pool_ms,
                choice_ms);
    std::fflush(stdout);
  }
}

/// block_sparse with its index, as a layer runs it.
void bench_block_sparse(std::int64_t tokens, int block, int top) {
  const PrefillData data(tokens);
  const std::int64_t blocks = (tokens + block - 1) / block;
  const LayerInfo& info = data.input.info;
  const std::int64_t capacity = kQHeads * blocks * top;
  const Buffer ranges(static_cast<std::size_t>(capacity) * sizeof(KeyRange), Buffer::Kind::kDevice);
  const Buffer begin(static_cast<std::size_t>(kQHeads * blocks + 1) * 8, Buffer::Kind::kDevice);
  const Buffer overflow(64, Buffer::Kind::kDevice);
  const Buffer workspace(block_sparse_workspace_bytes(info, tokens, block, top), Buffer::Kind::kDevice);
  TileListsOut out;
  out.ranges = ranges.as<KeyRange>(), out.max_ranges = capacity, out.range_begin = begin.as<std::int64_t>();
  out.overflow = overflow.as<int>();
  const double index_ms = time_ms(
      [&](cudaStream_t s) {
        block_sparse_lists_cuda(data.input, block, top, out, {workspace.data(), workspace.bytes()}, s);
      },
      60);
  std::printf("index block_sparse %-4d top %-5d       %7lld  total %7.3f ms\n", block, top,
              static_cast<long long>(tokens), index_ms);
  DeviceTileLists lists;
  lists.heads = kQHeads, lists.tokens = tokens, lists.row_block = block;
  lists.ranges = ranges.as<KeyRange>(), lists.range_begin = begin.as<std::int64_t>();
  report_prefill("block_sparse, own lists", data, lists, CudaPath::kAuto);
}

/// One step of Quest: the newest page's bounds and all scores, the best pages, attention.
void bench_quest(std::int64_t tokens, int budget) {
  constexpr std::int64_t kPageElements = 2 * kPageTokens * kHeadDim;
  constexpr int kCopies = 4;
  const std::int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
  const Buffer pool = random_bf16(static_cast<std::size_t>(kCopies * kKvHeads * pages * kPageElements), 5);
  const Buffer q = random_bf16(kCopies * kQHeads * kHeadDim, 6);
  const Buffer out(kQHeads * kHeadDim * 2, Buffer::Kind::kDevice);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(kCopies * kKvHeads * pages));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  const Buffer device_ids = upload(ids);
  std::vector<DevicePagedHead> heads;
  for (int i = 0; i < kCopies * kKvHeads; ++i)
    heads.push_back({device_ids.as<std::int32_t>() + i * pages, tokens});
  const Buffer device_heads = upload(heads);
  const std::size_t state_elements = static_cast<std::size_t>(pages * kKvHeads * 2 * kHeadDim);
  const Buffer state(kCopies * state_elements * 2, Buffer::Kind::kDevice);
  std::vector<void*> states;
  for (std::size_t i = 0; i < kCopies; ++i) states.push_back(state.as<std::uint16_t>() + i * state_elements);
  const Buffer device_states = upload(states);
  const Buffer budgets = upload(std::vector<DecodeBudget>(kCopies, {.pages = budget / kPageTokens}));
  const Buffer not_finite = upload(std::vector<int>(kCopies, 0));
  const Buffer scores(static_cast<std::size_t>(kKvHeads * page_score_stride(tokens)) * 4,
                      Buffer::Kind::kDevice);
  const Buffer lists(static_cast<std::size_t>(kKvHeads * pages) * 4, Buffer::Kind::kDevice);
  const Buffer counts(256, Buffer::Kind::kDevice);

  DecodeChoice choice;
  choice.q = q.data(), choice.pool = pool.data(), choice.page_elements = kPageElements;
  choice.heads = device_heads.as<DevicePagedHead>(), choice.states = device_states.as<void*>();
  choice.budgets = budgets.as<DecodeBudget>(), choice.not_finite = not_finite.as<int>();
  choice.rows = kCopies;
  choice.info.q_heads = choice.info.q_heads_total = kQHeads;
  choice.info.kv_heads = choice.info.kv_heads_total = kKvHeads;
  choice.info.head_dim = kHeadDim;
  choice.info.scale = 0.088f;
  choice.max_tokens = tokens;
  choice.lists = lists.as<std::int32_t>(), choice.counts = counts.as<std::int32_t>(),
  choice.list_stride = pages;
  prepare_page_bounds_cuda(choice, nullptr);
  choice.rows = 1;
  LACUNA_CUDA_TRY(cudaDeviceSynchronize());
  choice.settled = true;  // as the engine promises

  DecodeParams decode;
  decode.q = q.data(), decode.out = out.data(), decode.pool = pool.data(),
  decode.page_elements = kPageElements;
  decode.batch = 1, decode.info = choice.info;
  decode.lists = choice.lists, decode.list_counts = choice.counts, decode.list_stride = pages;
  decode.max_tokens = tokens, decode.settled = true;
  const Buffer workspace(decode_workspace_bytes(decode), Buffer::Kind::kDevice);
  LACUNA_CUDA_TRY(cudaMemset(workspace.data(), 0, workspace.bytes()));
  const auto step = [&](int parts) {
    return time_graph_us([&](cudaStream_t s, int i) {
      const int copy = i % kCopies;
      choice.heads = decode.heads = device_heads.as<DevicePagedHead>() + copy * kKvHeads;
      choice.states = device_states.as<void*>() + copy;
      page_bound_scores_cuda(choice, true, scores.as<float>(), s);
      if (parts > 1)
        choose_pages_cuda(choice, PageRule::kBest, kKvHeads, scores.as<float>(), {}, choice.lists,
                          choice.counts, pages, s);
      if (parts > 2) attention_decode_cuda(decode, {workspace.data(), workspace.bytes()}, s);
    });
  };
  const double score_us = step(1), choice_us = step(2), all_us = step(3);
  std::printf(
      "quest decode, budget %-5d            %7lld  scores %5.2f us  choice %5.2f us  attention %5.2f us  "
      "total %6.2f us\n",
      budget, static_cast<long long>(tokens), score_us, choice_us - score_us, all_us - choice_us, all_us);
  std::fflush(stdout);
}

void bench_decode(std::int64_t tokens) {
  constexpr std::int64_t kPageElements = 2 * kPageTokens * kHeadDim;
  constexpr int kCopies = 4;  // rotated, so that the L2 cache cannot hold the pages
  const std::int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
  const Buffer pool = random_bf16(static_cast<std::size_t>(kCopies * kKvHeads * pages * kPageElements), 5);
  const Buffer q = random_bf16(kQHeads * kHeadDim, 6);
  const Buffer out(kQHeads * kHeadDim * 2, Buffer::Kind::kDevice);
  Random random;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(kCopies * kKvHeads * pages));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  for (std::size_t i = ids.size() - 1; i > 0; --i) std::swap(ids[i], ids[random(i + 1)]);
  const Buffer device_ids = upload(ids);
  std::vector<DevicePagedHead> heads;
  for (int i = 0; i < kCopies * kKvHeads; ++i)
    heads.push_back({device_ids.as<std::int32_t>() + i * pages, tokens});
  const Buffer device_heads = upload(heads);

  DecodeParams params;
  params.q = q.data(), params.out = out.data(), params.pool = pool.data();
  params.page_elements = kPageElements;
  params.batch = 1;
  params.info.q_heads = params.info.q_heads_total = kQHeads;
  params.info.kv_heads = params.info.kv_heads_total = kKvHeads;
  params.info.head_dim = kHeadDim;
  params.info.scale = 0.088f;
  params.max_tokens = tokens, params.settled = true;
  const Buffer workspace(decode_workspace_bytes(params), Buffer::Kind::kDevice);
  LACUNA_CUDA_TRY(cudaMemset(workspace.data(), 0, workspace.bytes()));
  const auto report = [&](const char* what, std::int64_t kept) {
    const double us = time_graph_us([&](cudaStream_t s, int i) {
      params.heads = device_heads.as<DevicePagedHead>() + i % kCopies * kKvHeads;
      attention_decode_cuda(params, {workspace.data(), workspace.bytes()}, s);
    });
    const double bytes = 4.0 * static_cast<double>(kept) * kHeadDim * kKvHeads;
    std::printf("%-36s %7lld  batch 1  %9.2f us  %6.2f TB/s  floor %7.2f us\n", what,
                static_cast<long long>(tokens), us, bytes / us * 1e-6, bytes / kPeakBytes * 1e6);
    std::fflush(stdout);
  };
  report("decode dense", tokens);
  params.settled = false;
  report("decode dense, start not overlapped", tokens);
  params.settled = true;
  const std::int64_t kept = std::min<std::int64_t>(pages, 128);
  std::vector<std::int32_t> lists;
  for (int h = 0; h < kKvHeads; ++h)
    for (std::int64_t i = 0; i < kept; ++i) lists.push_back(static_cast<std::int32_t>(i * pages / kept));
  const Buffer device_lists = upload(lists);
  const Buffer counts = upload(std::vector<std::int32_t>(kKvHeads, static_cast<std::int32_t>(kept)));
  params.lists = device_lists.as<std::int32_t>(), params.list_counts = counts.as<std::int32_t>();
  params.list_stride = kept;
  params.max_tokens = kept * kPageTokens;
  report("decode, 128 pages listed", kept * kPageTokens);
}

int main_of(int argc, char** argv) {
  if (cuda_device_count() == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  const std::string what = argc > 1 ? argv[1] : "all";
  const std::int64_t longest = argc > 2 ? std::atoll(argv[2]) : 131072;
  g_once = argc > 3 && std::string_view(argv[3]) == "once";
  if (what == "dense" || what == "all") bench_dense(longest);
  if (what == "lists" || what == "all") bench_lists(longest);
  if (what == "index" || what == "all") {
    bench_slash_index(longest, 256, 512, -1.0f);
    bench_slash_index(longest, 512, 512, 0.7f);
    bench_block_sparse(longest, 64, static_cast<int>(longest / 640));
    bench_block_choice(longest, 16, static_cast<int>(longest / 320));
    bench_block_sparse(longest, 16, static_cast<int>(longest / 320));
    bench_evict(longest, 256, 4096);
    bench_evict(longest, 32, 4096);
  }
  if (what == "decode" || what == "all") {
    for (std::int64_t tokens = 16384; tokens <= longest; tokens *= 2) bench_decode(tokens);
    bench_quest(longest, 2048);
  }
  return 0;
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  try {
    return lacuna::main_of(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_attention_cuda: %s\n", error.what());
    return 1;
  }
}
