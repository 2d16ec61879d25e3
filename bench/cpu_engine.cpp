// bench_cpu_engine: prefill and decode on the CPU beside what the machine can do, both measured in the same
// run: the rate of OpenBLAS' SGEMM and the bandwidth of reading memory. See docs/performance.md. usage:
// bench_cpu_engine [--short] [--threads N]
#include <cblas.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/rng.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "model/cpu/kernels.h"
#include "model/engine.h"
#include "model/memory_plan.h"
#include "tests/model/tiny_model.h"

using namespace lacuna;

namespace {

/// Seconds on the clock of choice: processor time of this process, or time.
struct Timer {
  bool cpu_time = false;
  double now() const {
    if (!cpu_time)
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }
};

/// Seconds of one call: the median of `repeats` after a warm-up.
double median_seconds(const Timer& timer, int repeats, const std::function<void()>& body) {
  body();
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const double begin = timer.now();
    body();
    times.push_back(timer.now() - begin);
  }
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[static_cast<std::size_t>(repeats / 2)];
}

std::vector<float> random_floats(std::int64_t n) {
  std::vector<float> x(static_cast<std::size_t>(n));
  std::uint32_t state = 1;
  for (float& v : x) v = static_cast<float>(state = state * 1664525u + 1013904223u) * 0x1p-31f - 1.0f;
  return x;
}

/// GFLOP/s of a large SGEMM on all threads.
double sgemm_rate(const Timer& timer, int threads) {
  openblas_set_num_threads(threads);
  constexpr int kSize = 2048;
  const auto a = random_floats(kSize * kSize), b = random_floats(kSize * kSize);
  std::vector<float> c(a.size());
  const double seconds = median_seconds(timer, 5, [&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1, a.data(), kSize, b.data(),
                kSize, 0, c.data(), kSize);
  });
  return 2.0 * kSize * kSize * kSize / seconds * 1e-9;
}

/// GB/s of reading memory far larger than any cache on all threads.
double read_bandwidth(const Timer& timer, ThreadPool& pool) {
  constexpr std::int64_t kBlock = 1 << 20, kBlocks = 512;
  const auto data = random_floats(kBlock * kBlocks / 4);
  std::vector<float> sums(kBlocks);
  const double seconds = median_seconds(timer, 5, [&] {
    pool.parallel_for(kBlocks, [&](std::int64_t b) {
      // The vector loop that finds a maximum: one load, two operations that hide behind it.
      sums[static_cast<std::size_t>(b)] = cpu::best_kernels().max(data.data() + b * (kBlock / 4), kBlock / 4);
    });
  });
  return kBlock * kBlocks / seconds * 1e-9;
}

void bench_linear(const Timer& timer, Ops& ops, double sgemm, double bandwidth, bool quick) {
  std::printf("\nlinear layers, bf16 weights [outputs, inputs], x of `rows`\n%8s %8s %8s %10s %8s %10s %8s\n",
              "outputs", "inputs", "rows", "GFLOP/s", "of SGEMM", "GB/s", "of read");
  const struct {
    std::int64_t outputs, inputs;
  } shapes[] = {{768, 512}, {4096, 512}, {512, 2048}, {14336, 4096}};
  for (const auto& s : shapes) {
    const auto values = random_floats(s.outputs * s.inputs);
    std::vector<BFloat16> half(values.size());
    convert_from_float(values.data(), half.data(), DType::kBF16, values.size());
    const MatrixSlice slice{.data = half.data(),
                            .dtype = DType::kBF16,
                            .rows = s.outputs,
                            .cols = s.inputs,
                            .row_stride = s.inputs};
    const LinearWeight w = ops.make_linear(std::span(&slice, 1), {});
    const bool large = s.inputs == 4096;
    for (const std::int64_t rows : large ? std::vector<std::int64_t>{1, 4, 16, 64}
                                         : std::vector<std::int64_t>{1, 30, 512, quick ? 1024 : 8192}) {
      const auto x = random_floats(rows * s.inputs);
      std::vector<float> y(static_cast<std::size_t>(rows * s.outputs));
      const TensorView xv{.data = const_cast<float*>(x.data()), .shape = {rows, s.inputs}},
          yv{.data = y.data(), .shape = {rows, s.outputs}};
      const double seconds =
          median_seconds(timer, rows < 512 ? 15 : 5, [&] { ops.linear(xv, w, false, yv); });
      const double rate = 2.0 * static_cast<double>(rows * s.outputs * s.inputs) / seconds * 1e-9,
                   bytes = 2.0 * static_cast<double>(s.outputs * s.inputs) / seconds * 1e-9;
      std::printf("%8ld %8ld %8ld %10.1f %7.0f%% %10.1f %7.0f%%\n", s.outputs, s.inputs, rows, rate,
                  100 * rate / sgemm, bytes, 100 * bytes / bandwidth);
    }
  }
}

void bench_engine(const Timer& timer, ThreadPool& pool, double sgemm, double bandwidth, bool quick) {
  const std::string config =
      R"({"model_type": "qwen2", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "tie_word_embeddings": true})";
  const testing::TemporaryFolder folder("bench");
  testing::write_tiny_model(folder.path(), config);
  SelfCommunicator self;
  const auto engine = Engine::load({.folder = folder.path(), .rope_override = {}}, self, pool);
  const StrategySpec dense = parse_strategy(Json::object(), "bench");
  const double weights = 2.0 * static_cast<double>(engine->facts().parameters);
  std::printf("\n4 layers, 512 wide, %s parameters in bf16, dense attention\n",
              format_count(static_cast<double>(engine->facts().parameters)).c_str());
  std::printf("%8s %10s %10s %14s | decode ms/step and weights read (of bandwidth) at batch 1, 8, 30\n",
              "tokens", "prefill s", "tokens/s", "linear >= of SGEMM");
  for (const int tokens :
       quick ? std::vector<int>{512, 2048} : std::vector<int>{512, 1024, 2048, 4096, 8192}) {
    const auto prompt = testing::tiny_prompt(tokens, 4096);
    const auto job = [&](int variants, int steps) {
      const std::vector<Variant> all(static_cast<std::size_t>(variants),
                                     Variant{.evict = dense.evict,
                                             .decode = dense.decode,
                                             .sampling = {.max_new_tokens = steps + 1, .ignore_stop = true}});
      return engine->run(
          {.prompt = prompt, .prefill = dense.prefill, .variants = all, .on_token = {}, .cancelled = {}});
    };
    const double prefill = median_seconds(timer, 3, [&] { job(0, 1); });
    // The whole prefill's time charged to the linear layers alone: a lower bound of their rate.
    const double rate = linear_flops(engine->facts(), tokens) / prefill * 1e-9;
    std::printf("%8d %10.3f %10.0f %17.0f%% |", tokens, prefill, tokens / prefill, 100 * rate / sgemm);
    for (const int batch : {1, 8, 30}) {
      constexpr int kSteps = 64;
      const double begin = timer.now();
      job(batch, kSteps);
      const double step = (timer.now() - begin - prefill) / kSteps;
      std::printf("  %6.2f (%3.0f%%)", step * 1e3, 100 * weights / step * 1e-9 / bandwidth);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false;
  int threads = default_threads();
  Timer timer;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--short") {
      quick = true;
    } else if (argument == "--cpu-time") {
      timer.cpu_time = true;
      threads = 1;
    } else if (argument == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: bench_cpu_engine [--short] [--threads N] [--cpu-time]\n");
      return 2;
    }
  }
  ThreadPool pool(threads);
  const double sgemm = sgemm_rate(timer, threads), bandwidth = read_bandwidth(timer, pool);
  std::printf("lacuna %s, %d threads, %s, kernels %s, OpenBLAS core %s\n", LACUNA_VERSION, threads,
              timer.cpu_time ? "processor time" : "time", cpu::best_kernels().isa, openblas_get_corename());
  std::printf("SGEMM 2048^3: %.1f GFLOP/s; reading memory: %.1f GB/s\n", sgemm, bandwidth);
  const auto ops = make_cpu_ops(pool);
  bench_linear(timer, *ops, sgemm, bandwidth, quick);
  bench_engine(timer, pool, sgemm, bandwidth, quick);
  return 0;
}
