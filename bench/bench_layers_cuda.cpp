// Times what a transformer layer is made of beside attention, on a GPU: Qwen2.5-7B shapes, bfloat16, random
// data.
//   bench_layers_cuda [decode|products|kernels|loading|all]
// Prints microseconds (median), GB/s or TFLOP/s, and the share of what was measured as the device's ceiling
// (4.3 TB/s, 790 TFLOP/s on an H200); of few rows also the share of the 4.8 TB/s its maker states. Weights
// are rotated through more memory than the second-level cache holds.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "core/cuda.h"
#include "core/error.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "model/cuda/gemm.h"
#include "model/cuda/kernels.h"
#include "model/cuda/skinny.h"
#include "model/cuda/weight_loader.h"

namespace lacuna {
namespace {

constexpr double kPeakFlops = 790e12, kPeakBytes = 4.3e12, kStatedBytes = 4.8e12;
constexpr std::size_t kRotated = std::size_t{512} << 20;  ///< Far more than 50 MB of cache.

/// bfloat16 of random sign and mantissa, near 1 in size.
Buffer random_bf16(std::int64_t count, std::uint64_t seed) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  std::uint64_t state = seed;
  for (auto& v : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    v = static_cast<std::uint16_t>(0x3F00u | (state >> 40 & 0x80FFu));
  }
  Buffer buffer(values.size() * 2, Buffer::Kind::kDevice);
  LACUNA_CUDA(cudaMemcpy(buffer.data(), values.data(), buffer.bytes(), cudaMemcpyHostToDevice));
  return buffer;
}

/// Median microseconds of one call, measured over a graph of `calls` calls so that launches do not count.
double time_us(cudaStream_t stream, int calls, const std::function<void(int)>& call) {
  for (int i = 0; i < calls; ++i) call(i);
  LACUNA_CUDA(cudaStreamSynchronize(stream));
  LACUNA_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < calls; ++i) call(i);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  LACUNA_CUDA(cudaStreamEndCapture(stream, &graph));
  LACUNA_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  CudaEvent begin, end;
  std::vector<float> times;
  for (int round = 0; round < 11; ++round) {
    begin.record(stream);
    LACUNA_CUDA(cudaGraphLaunch(exec, stream));
    end.record(stream);
    end.synchronize();
    times.push_back(end.since(begin));
  }
  LACUNA_CUDA(cudaGraphExecDestroy(exec));
  LACUNA_CUDA(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return 1000.0 * times[times.size() / 2] / calls;
}

void bench_products() {
  const CudaStream stream;
  GemmRunner gemm(stream);
  struct Case {
    const char* name;
    std::int64_t outputs, inputs;
  };
  const Buffer x = random_bf16(std::int64_t{8192} * 18944, 1),
               y(std::size_t{8192} * 37888 * 2, Buffer::Kind::kDevice);
  const Buffer weights =
      random_bf16(static_cast<std::int64_t>(kRotated / 2) + std::int64_t{152064} * 3584, 2);
  std::printf("%-10s %6s  %32s  %32s\n", "product", "rows", "own kernel", "cuBLASLt");
  for (const Case& c : {Case{"qkv", 4608, 3584}, Case{"o", 3584, 3584}, Case{"gate_up", 37888, 3584},
                        Case{"down", 3584, 18944}, Case{"head", 152064, 3584}}) {
    const std::int64_t elements = c.outputs * c.inputs;
    const auto copies = std::max<std::int64_t>(1, static_cast<std::int64_t>(kRotated / 2) / elements);
    for (const std::int64_t rows : {1, 2, 4, 8, 16, 31, 1024, 4096, 8192}) {
      if (std::string(c.name) == "head" && rows > 31) continue;
      std::printf("%-10s %6ld", c.name, static_cast<long>(rows));
      for (const GemmPath path : {GemmPath::kSkinny, GemmPath::kLibrary}) {
        if (path == GemmPath::kSkinny && rows > 32) {
          std::printf("  %32s", "");
          continue;
        }
        const bool logits = std::string(c.name) == "head";
        const double us = time_us(stream, rows > 32 ? 4 : 20, [&](int i) {
          gemm.run({.x = x.data(),
                    .w = weights.as<std::uint16_t>() + (i % copies) * elements,
                    .y = y.data(),
                    .rows = rows,
                    .outputs = c.outputs,
                    .inputs = c.inputs,
                    .float_output = logits,
                    .path = path});
        });
        const auto flops = 2.0 * static_cast<double>(rows * elements),
                   bytes = 2.0 * static_cast<double>(elements);
        if (rows > 32)
          std::printf("  %8.1f us %7.0f TF/s %3.0f%% %5s", us, flops / us * 1e-6,
                      100e6 * flops / us / kPeakFlops, "");
        else
          std::printf("  %8.1f us %7.0f GB/s %3.0f%% %4.0f%%", us, bytes / us * 1e-3,
                      100e6 * bytes / us / kPeakBytes, 100e6 * bytes / us / kStatedBytes);
      }
      std::printf("\n");
    }
  }
}

/// The kernels of a decode layer beside attention, each alone and in the order of a step. In both cases a
/// kernel starts before the one before it has ended, as in a step; the floor is reading the weights.
class DecodeLayer {
 public:
  explicit DecodeLayer(int rows) : rows_(rows) {
    const std::vector<DevicePagedHead> heads(static_cast<std::size_t>(rows * kKvHeads),
                                             {.page_ids = zeros_.as<std::int32_t>(), .tokens = 1});
    LACUNA_CUDA(cudaMemset(zeros_.data(), 0, zeros_.bytes()));
    LACUNA_CUDA(cudaMemcpy(heads_.data(), heads.data(), heads.size() * sizeof(DevicePagedHead),
                           cudaMemcpyHostToDevice));
    for (const Buffer* b : {&x_, &attention_, &activated_}) LACUNA_CUDA(cudaMemset(b->data(), 0, b->bytes()));
  }

  void run() {
    const auto layer = [&](const __nv_bfloat16* w) {
      qkv(w);
      o(w + kQkv);
      gate_up(w + kQkv + kO);
      down(w + kQkv + kO + kGateUp);
    };
    print("norm, qkv, rotate, cache", 1, kQkv, [&](int, const __nv_bfloat16* w) { qkv(w); });
    print("o, residual", 1, kO, [&](int, const __nv_bfloat16* w) { o(w); });
    print("norm, gate_up, activate", 1, kGateUp, [&](int, const __nv_bfloat16* w) { gate_up(w); });
    print("down, residual", 1, kDown, [&](int, const __nv_bfloat16* w) { down(w); });
    print("norm, head", 1, kHead, [&](int, const __nv_bfloat16* w) { head(w); });
    print("argmax", 0, 0, [&](int, const __nv_bfloat16*) { argmax(); });
    print("these four: a layer", 1, kLayer, [&](int, const __nv_bfloat16* w) { layer(w); });
    print("28 layers, head, argmax", 28, kLayer + kHead / 28, [&](int, const __nv_bfloat16* w) {
      for (int l = 0; l < 28; ++l) layer(w);
      head(w);
      argmax();
    });
  }

 private:
  static constexpr int kQHeads = 28, kKvHeads = 4, kHeadDim = 128, kHidden = 3584, kMlp = 18944;
  static constexpr std::int64_t kVocab = 152064, kQkv = std::int64_t{4608} * kHidden,
                                kO = std::int64_t{kHidden} * kHidden,
                                kGateUp = std::int64_t{2} * kMlp * kHidden,
                                kDown = std::int64_t{kHidden} * kMlp, kHead = kVocab * kHidden,
                                kLayer = kQkv + kO + kGateUp + kDown;

  SkinnyProduct product(const Buffer& x, const __nv_bfloat16* w, std::int64_t outputs, int inputs,
                        bool norm) const {
    return {.x = x.as<__nv_bfloat16>(),
            .w = w,
            .norm = norm ? zeros_.as<float>() : nullptr,
            .eps = 1e-6f,
            .normed = normed_.as<__nv_bfloat16>(),
            .factors = factors_.as<float>(),
            .rows = rows_,
            .inputs = inputs,
            .outputs = outputs};
  }
  void qkv(const __nv_bfloat16* w) {
    launch_skinny_cache(product(x_, w, 4608, kHidden, true),
                        {.cos = zeros_.as<float>(),
                         .sin = zeros_.as<float>(),
                         .positions = zeros_.as<std::int32_t>(),
                         .to = {.heads = heads_.as<DevicePagedHead>(),
                                .pool = page_.as<__nv_bfloat16>(),
                                .page_elements = 2 * kPageTokens * kHeadDim,
                                .q = attention_.as<__nv_bfloat16>()},
                         .q_heads = kQHeads,
                         .kv_heads = kKvHeads,
                         .head_dim = kHeadDim},
                        stream_);
  }
  void o(const __nv_bfloat16* w) {
    launch_skinny(product(attention_, w, kHidden, kHidden, false), {.y = x_.data(), .accumulate = true},
                  stream_);
  }
  void gate_up(const __nv_bfloat16* w) {
    launch_skinny_gated(product(x_, w, std::int64_t{2} * kMlp, kHidden, true),
                        {.out = activated_.as<__nv_bfloat16>()}, stream_);
  }
  void down(const __nv_bfloat16* w) {
    launch_skinny(product(activated_, w, kHidden, kMlp, false), {.y = x_.data(), .accumulate = true},
                  stream_);
  }
  void head(const __nv_bfloat16* w) {
    launch_skinny(product(x_, w, kVocab, kHidden, true), {.y = logits_.data(), .float_output = true},
                  stream_);
  }
  void argmax() {
    launch_argmax({.x = logits_.as<float>(),
                   .n = rows_,
                   .columns = kVocab,
                   .partial = partial_.as<unsigned long long>(),
                   .results = results_.as<ArgmaxResult>()},
                  stream_);
  }

  /// `elements` of weights per layer; each call gets others of them where the cache could hold them.
  void print(const char* name, int layers, std::int64_t elements,
             const std::function<void(int, const __nv_bfloat16*)>& call) {
    const std::int64_t span = layers > 1 || elements == 0 ? kAll : std::min(kAll, elements);
    const auto copies = kAll / span;
    const double us = time_us(stream_, layers > 1 ? 1 : 20,
                              [&](int i) { call(i, weights_.as<__nv_bfloat16>() + i % copies * span); });
    const double bytes = 2.0 * static_cast<double>(elements * std::max(layers, 1));
    std::printf("%-26s %5d  %9.2f us  floor %8.2f us  %5.0f GB/s %3.0f%% %3.0f%%\n", name, rows_, us,
                bytes / kPeakBytes * 1e6, bytes / us * 1e-3, 100e6 * bytes / us / kPeakBytes,
                100e6 * bytes / us / kStatedBytes);
  }

  static constexpr std::int64_t kAll = std::max(kLayer, kHead);
  const CudaStream stream_;
  const int rows_;
  const Buffer weights_ = random_bf16(kAll, 2), zeros_{std::size_t{1} << 20, Buffer::Kind::kDevice},
               heads_{std::size_t{4096}, Buffer::Kind::kDevice},
               page_{std::size_t{4} * kPageTokens * kHeadDim, Buffer::Kind::kDevice},
               x_{std::size_t{32} * kHidden * 2, Buffer::Kind::kDevice},
               normed_{std::size_t{32} * kHidden * 2, Buffer::Kind::kDevice},
               factors_{std::size_t{32} * 4, Buffer::Kind::kDevice},
               attention_{std::size_t{32} * kHidden * 2, Buffer::Kind::kDevice},
               activated_{std::size_t{32} * kMlp * 2, Buffer::Kind::kDevice},
               logits_{std::size_t{32} * kVocab * 4, Buffer::Kind::kDevice},
               partial_{std::size_t{1} << 20, Buffer::Kind::kDevice},
               results_{std::size_t{4096}, Buffer::Kind::kDevice};
};

void bench_decode() {
  std::printf("%-26s %5s\n", "decode, beside attention", "rows");
  for (const int rows : {1, 8, 16, 31}) DecodeLayer(rows).run();
}

void bench_kernels() {
  const CudaStream stream;
  constexpr std::int64_t kMost = 8192;
  const Buffer x = random_bf16(kMost * 37888, 1), y(kMost * 37888 * 2, Buffer::Kind::kDevice);
  const Buffer floats(std::size_t{32} * 152064 * 4, Buffer::Kind::kDevice);
  const Buffer small(std::size_t{64} << 20, Buffer::Kind::kDevice);
  LACUNA_CUDA(cudaMemset(floats.data(), 0, floats.bytes()));
  LACUNA_CUDA(cudaMemset(small.data(), 0, small.bytes()));
  const auto* in = x.as<__nv_bfloat16>();
  auto* out = y.as<__nv_bfloat16>();
  const auto row = [&](const char* name, std::int64_t rows, double bytes,
                       const std::function<void(int)>& call) {
    const double us = time_us(stream, 20, call);
    std::printf("%-16s %6ld  %8.2f us  %6.0f GB/s\n", name, static_cast<long>(rows), us, bytes / us * 1e-3);
  };
  for (const std::int64_t n : {std::int64_t{1}, std::int64_t{31}, std::int64_t{1024}, kMost}) {
    const auto rows = static_cast<double>(n);
    row("embed", n, rows * 3584 * 4, [&](int) {
      launch_embed(
          {.table = in, .ids = small.as<std::int32_t>(), .out = out, .rows = 100, .n = n, .hidden = 3584},
          stream);
    });
    row("rms_norm", n, rows * 3584 * 4, [&](int) {
      launch_rms_norm({.x = in, .weight = small.as<float>(), .out = out, .n = n, .d = 3584, .eps = 1e-6f},
                      stream);
    });
    row("silu_mul", n, rows * 18944 * 6,
        [&](int) { launch_gated_activation(in, false, n, 18944, out, stream); });
    row("add", n, rows * 3584 * 6, [&](int) { launch_add(in, out, n * 3584, stream); });
    row("norm+rotate", n, rows * 32 * 128 * 4, [&](int) {
      launch_norm_and_rotate({.q = out,
                              .k = out + 28 * 128,
                              .q_head_stride = 128,
                              .q_token_stride = 4608,
                              .k_head_stride = 128,
                              .k_token_stride = 4608,
                              .q_heads = 28,
                              .k_heads = 4,
                              .tokens = n,
                              .head_dim = 128,
                              .cos = small.as<float>(),
                              .sin = small.as<float>(),
                              .positions = small.as<std::int32_t>()},
                             stream);
    });
    if (n <= 31) {
      row("argmax", n, rows * 152064 * 4, [&](int) {
        launch_argmax({.x = floats.as<float>(),
                       .n = n,
                       .columns = 152064,
                       .partial = reinterpret_cast<unsigned long long*>(small.as<std::byte>() + (16 << 20)),
                       .results = reinterpret_cast<ArgmaxResult*>(small.as<std::byte>() + (32 << 20))},
                      stream);
      });
    }
  }
}

void bench_loading() {
  const CudaStream stream;
  PinnedRing ring(stream);
  ThreadPool pool(default_threads());
  WeightLoader loader(ring, pool);
  constexpr std::int64_t kRows = 65536, kCols = 8192;
  const Buffer device(kRows * kCols * 2, Buffer::Kind::kDevice);
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    const Buffer host(kRows * kCols * size_of(dtype), Buffer::Kind::kHost);
    std::fill_n(host.as<std::byte>(), host.bytes(), std::byte{0x3C});
    double best = 1e9;
    for (int round = 0; round < 3; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      loader.load({.data = host.data(), .dtype = dtype, .rows = kRows, .cols = kCols, .row_stride = kCols},
                  device.as<__nv_bfloat16>());
      stream.synchronize();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    std::printf("loading %-10s %.2f GB/s read with %d threads\n", std::string(name_of(dtype)).c_str(),
                static_cast<double>(host.bytes()) / best * 1e-9, pool.threads());
  }
}

}  // namespace
}  // namespace lacuna

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  try {
    if (lacuna::cuda_device_count() == 0) lacuna::throw_resource("no CUDA device");
    if (what == "decode" || what == "all") lacuna::bench_decode();
    if (what == "products" || what == "all") lacuna::bench_products();
    if (what == "kernels" || what == "all") lacuna::bench_kernels();
    if (what == "loading" || what == "all") lacuna::bench_loading();
  } catch (const lacuna::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
