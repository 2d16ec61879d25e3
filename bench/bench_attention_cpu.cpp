// CPU attention against the matrix product floor and against itself: dense, block_sparse and vertical_slash
// prefill, dense and quest decode. One thread. Repetitions are interleaved and medians taken, so that a
// machine shared with others skews all of them alike; every number is a ratio within one run.
//
//   bench_attention_cpu [TOKENS [HEADS [HEAD_DIM [REPETITIONS]]]]      default: 16384 8 64 3
#include <cblas.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <map>

#include "attention/accounting.h"
#include "attention/cpu/kernels.h"
#include "attention/kernels.h"
#include "attention/strategy.h"
#include "core/error.h"
#include "core/json.h"
#include "core/thread_pool.h"
#include "tests/attention/fixture.h"
#include "tests/attention/paged_cache.h"

extern "C" void openblas_set_num_threads(int);

namespace lacuna {
namespace {

struct Timing {
  std::vector<double> seconds;
  double median() const {
    auto sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

/// Processor time of this thread: on a machine shared with others, waiting for a core does not count.
double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Body>
double seconds_of(const Body& body) {
  const double start = thread_seconds();
  body();
  return thread_seconds() - start;
}

/// FLOP/s of a large single-precision matrix product on one core: the floor's rate.
double sgemm_rate() {
  constexpr int kSize = 2048;
  static std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f), c(kSize * kSize);
  const double s = seconds_of([] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1, a.data(), kSize, b.data(),
                kSize, 0, c.data(), kSize);
  });
  return 2.0 * kSize * kSize * kSize / s;
}

AttentionCounts prefill(test::Layer& layer, const MethodSpec& spec, ThreadPool& pool, Timing& index) {
  AttentionCounts counts;
  TileLists lists;
  PrefillInput input = layer.input;
  input.threads = &pool;
  index.seconds.push_back(seconds_of([&] { make_prefill_selector(spec)->select(input, lists, counts); }));
  attention_prefill(input, lists, layer.output, pool, counts);
  return counts;
}

MethodSpec prefill_spec(const std::string& method, Json params) {
  return parse_strategy(Json{{"prefill", {{method, std::move(params)}}}}, "bench").prefill;
}

/// The largest setting whose measured sparsity is at least `target`: selection only, no attention.
MethodSpec at_sparsity(test::Layer& layer, double target, std::int64_t high,
                       const std::function<MethodSpec(std::int64_t)>& make) {
  std::int64_t low = 1;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    TileLists lists;
    AttentionCounts counts;
    make_prefill_selector(make(middle))->select(layer.input, lists, counts);
    const AttentionCounts executed = count_prefill(lists, layer.input.info);
    if (executed.sparsity() >= target)
      low = middle;
    else
      high = middle - 1;
  }
  return make(low);
}

void bench_prefill(std::int64_t tokens, int heads, int head_dim, int repetitions) {
  test::Layer layer({.tokens = tokens, .q_heads = heads, .kv_heads = heads, .head_dim = head_dim}, 3);
  ThreadPool pool(1);
  std::map<std::string, MethodSpec> specs;
  specs["dense"] = prefill_spec("dense", Json::object());
  specs["block_sparse 64"] = at_sparsity(layer, 0.9, tokens / 64, [](std::int64_t k) {
    return prefill_spec("block_sparse", {{"chunk_size", 64}, {"top_chunks", k}});
  });
  specs["vertical_slash"] = at_sparsity(layer, 0.9, tokens, [](std::int64_t n) {
    return prefill_spec("vertical_slash", {{"verticals", n}, {"slashes", n}});
  });
  std::map<std::string, Timing> timings, index;
  std::map<std::string, AttentionCounts> counts;
  Timing rate;
  for (int i = 0; i < repetitions; ++i) {
    for (const auto& [name, spec] : specs) {
      rate.seconds.push_back(sgemm_rate());
      timings[name].seconds.push_back(
          seconds_of([&] { counts[name] = prefill(layer, spec, pool, index[name]); }));
    }
  }
  const double dense = timings["dense"].median();
  const double floor = counts["dense"].flops / rate.median();
  std::printf("prefill, %lld tokens, %d heads of %d, one thread, %s\n", static_cast<long long>(tokens), heads,
              head_dim, cpu_kernels().name);
  std::printf(
      "  SGEMM %.0f GFLOP/s; dense attention %.0f GFLOP/s: %.2f times the SGEMM floor for its FLOPs\n",
      rate.median() / 1e9, counts["dense"].flops / dense / 1e9, dense / floor);
  for (const auto& [name, spec] : specs) {
    if (name == "dense") continue;
    std::printf(
        "  %-16s measured sparsity %.4f, %.2f times as fast as dense, index included (index %.1f %% of its "
        "time) %s\n",
        name.c_str(), counts[name].sparsity(), dense / timings[name].median(),
        100 * index[name].median() / timings[name].median(), spec.params.to_json().dump().c_str());
  }
}

void bench_decode(std::int64_t tokens, int heads, int head_dim, int repetitions) {
  test::Layer layer({.tokens = tokens, .q_heads = heads, .kv_heads = heads, .head_dim = head_dim}, 4);
  const test::PagedCache cache(layer.input);
  std::vector<float> q(layer.q.begin(), layer.q.begin() + static_cast<std::ptrdiff_t>(heads) * head_dim),
      out(q.size());
  ThreadPool pool(1);
  const auto selector = make_decode_selector(
      parse_strategy(Json{{"decode", {{"quest", {{"budget", tokens / 10 / 16 * 16}}}}}}, "bench").decode);
  const auto state = selector->make_state(layer.input.info);
  const DecodeInput input = cache.input(q.data(), layer.input.info, *layer.input.communicator);
  std::vector<PageList> lists;
  AttentionCounts scratch;
  selector->select(input, state.get(), lists,
                   scratch);  // builds the page bounds, as the first step after a prompt does

  Timing dense, quest, index;
  AttentionCounts dense_counts, quest_counts;
  for (int i = 0; i < 20 * repetitions; ++i) {
    dense_counts = quest_counts = {};
    dense.seconds.push_back(seconds_of([&] {
      const DecodeWork work{.q = q.data(), .out = out.data(), .heads = cache.heads()};
      attention_decode({&work, 1}, cache.pool(), cache.page_elements(), layer.input.info, pool,
                       {&dense_counts, 1});
    }));
    quest.seconds.push_back(seconds_of([&] {
      index.seconds.push_back(seconds_of([&] { selector->select(input, state.get(), lists, quest_counts); }));
      const DecodeWork work{.q = q.data(), .out = out.data(), .heads = cache.heads(), .lists = lists};
      attention_decode({&work, 1}, cache.pool(), cache.page_elements(), layer.input.info, pool,
                       {&quest_counts, 1});
    }));
  }
  std::printf("decode, %lld tokens, %d kv heads of %d, one thread\n", static_cast<long long>(tokens), heads,
              head_dim);
  std::printf("  dense %.3f ms, %.1f GB/s of K and V\n", 1e3 * dense.median(),
              dense_counts.kv_bytes_read / dense.median() / 1e9);
  std::printf(
      "  quest            measured sparsity %.4f, %.2f times as fast as dense, index included (index %.1f %% "
      "of its time)\n",
      quest_counts.sparsity(), dense.median() / quest.median(), 100 * index.median() / quest.median());
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  const auto argument = [&](int i, int fallback) { return argc > i ? std::atoi(argv[i]) : fallback; };
  const int tokens = argument(1, 16384), heads = argument(2, 8), head_dim = argument(3, 64),
            repetitions = argument(4, 3);
  if (tokens < 1024 || heads < 1 || head_dim % 8 != 0 || head_dim < 8 || head_dim > 256 || repetitions < 1) {
    std::fprintf(stderr, "usage: bench_attention_cpu [TOKENS >= 1024 [HEADS [HEAD_DIM [REPETITIONS]]]]\n");
    return 2;
  }
  openblas_set_num_threads(1);
  lacuna::bench_prefill(tokens, heads, head_dim, repetitions);
  lacuna::bench_decode(tokens, heads, head_dim, repetitions);
  return 0;
}
