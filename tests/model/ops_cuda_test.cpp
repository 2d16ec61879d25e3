// CudaOps against CpuOps and plain copies, on the same bfloat16-rounded inputs. What both compute in float32
// CUDA rounds once to bfloat16: off by 2^-8 of its size at most.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "core/error.h"
#include "model/cuda/device_communicator.h"
#include "model/kv_cache.h"
#include "model/ops.h"
#include "model/safetensors.h"
#include "tests/attention/cuda/cuda_test_util.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using testing::random_bf16;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }
std::vector<float> to_floats(const std::vector<BFloat16>& x) {
  std::vector<float> out;
  for (const BFloat16 v : x) out.push_back(to_float(v));
  return out;
}

/// The same tensor for both: bfloat16 values, as float32 on the CPU.
struct Twin {
  Tensor cuda, cpu;
};

class CudaOpsTest : public ::testing::Test {
 protected:
  Twin twin(const std::vector<BFloat16>& values, Shape shape) {
    Twin t{.cuda = Tensor(shape, DType::kBF16, Device::kCuda), .cpu = Tensor(shape, DType::kF32)};
    cuda_->upload(values.data(), t.cuda.data(), values.size() * sizeof(BFloat16));
    const auto floats = to_floats(values);
    std::copy(floats.begin(), floats.end(), t.cpu.as<float>());
    return t;
  }
  Twin random(std::int64_t rows, std::int64_t cols, std::uint64_t seed, float scale = 1) {
    return twin(random_bf16(size(rows * cols), seed, scale), {rows, cols});
  }
  Twin floats(const std::vector<float>& values, Shape shape) {
    Twin t{.cuda = Tensor(shape, DType::kF32, Device::kCuda), .cpu = Tensor(shape, DType::kF32)};
    cuda_->upload(values.data(), t.cuda.data(), values.size() * sizeof(float));
    std::copy(values.begin(), values.end(), t.cpu.as<float>());
    return t;
  }
  Twin indices(const std::vector<std::int32_t>& values) {
    const Shape shape{std::ssize(values)};
    Twin t{.cuda = Tensor(shape, DType::kI32, Device::kCuda), .cpu = Tensor(shape, DType::kI32)};
    cuda_->upload(values.data(), t.cuda.data(), values.size() * sizeof(std::int32_t));
    std::copy(values.begin(), values.end(), t.cpu.as<std::int32_t>());
    return t;
  }
  template <class T>
  std::vector<T> download(const TensorView& x) {
    std::vector<T> out(size(x.shape.elements()));
    cuda_->download(x.data, out.data(), x.bytes());
    return out;
  }
  std::vector<std::uint16_t> bits(const Tensor& x) { return download<std::uint16_t>(x.view()); }

  /// Every element within `relative` of the CPU's size, plus `absolute`.
  void expect_near(const Twin& t, double relative, double absolute, const std::string& what) {
    const auto wanted = t.cpu.as<float>();
    const bool half = t.cuda.dtype() == DType::kBF16;
    const auto got = half ? to_floats(download<BFloat16>(t.cuda.view())) : download<float>(t.cuda.view());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], wanted[i], std::abs(wanted[i]) * relative + absolute)
          << what << ", shape " << t.cuda.shape().to_string() << ", element " << i;
    }
  }

  ThreadPool threads_{2};
  std::unique_ptr<Ops> cuda_ = make_cuda_ops(threads_);
  std::unique_ptr<Ops> cpu_ = make_cpu_ops(threads_);
};

constexpr double kRounding = 0x1p-8 * 1.01;

TEST_F(CudaOpsTest, SaysWhatItIs) {
  EXPECT_EQ(cuda_->device(), Device::kCuda);
  EXPECT_EQ(cuda_->activation_dtype(), DType::kBF16);
  EXPECT_GT(cuda_->free_bytes(), 0);
}

TEST_F(CudaOpsTest, UploadsMayForgetTheirSource) {
  std::vector<std::uint32_t> values(5'000'003);
  std::iota(values.begin(), values.end(), 1u);
  const auto wanted = values;
  const Tensor device({std::ssize(values)}, DType::kI32, Device::kCuda);
  cuda_->upload(values.data(), device.data(), values.size() * 4);
  std::fill(values.begin(), values.end(), 0u);
  EXPECT_EQ(download<std::uint32_t>(device.view()), wanted);
}

TEST_F(CudaOpsTest, WeightsComeFromFilesOfEveryType) {
  const testing::TemporaryFolder folder("ops_cuda");
  constexpr std::int64_t kRows = 6, kCols = 40;
  for (const auto& [name, dtype] :
       {std::pair<const char*, DType>{"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16}}) {
    std::vector<float> a(size(kRows * kCols)), b(a.size()), bias(size(kRows));
    for (std::size_t i = 0; i < a.size(); ++i) {
      a[i] = std::sin(static_cast<float>(i)) * 3;
      b[i] = std::cos(static_cast<float>(i)) / 7;
    }
    for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i) - 1.3f;
    const auto stored = [&](std::vector<float>& values, std::vector<std::int64_t> shape) {
      testing::TinyTensor t{.shape = std::move(shape), .dtype = name, .bytes = {}};
      t.bytes.resize(values.size() * size_of(dtype));
      convert_from_float(values.data(), t.bytes.data(), dtype, values.size());
      convert_to_float(t.bytes.data(), dtype, values.data(), values.size());
      return t;
    };
    testing::write_text(folder.file("model.safetensors"),
                        testing::safetensors_bytes({{"a", stored(a, {kRows, kCols})},
                                                    {"b", stored(b, {kRows, kCols})},
                                                    {"bias", stored(bias, {kRows})}}));
    const Weights files = Weights::open(folder.path());
    // Rows 1..3 of a above all of b, columns 8..31 of both.
    MatrixSlice top = files.matrix("a", kRows, kCols), below = files.matrix("b", kRows, kCols);
    constexpr std::int64_t kFirst = 8, kWidth = 24;
    const auto element = static_cast<std::int64_t>(size_of(dtype));
    top.data = static_cast<const std::byte*>(top.data) + (top.row_stride + kFirst) * element;
    top.rows = 3, top.cols = kWidth;
    below.data = static_cast<const std::byte*>(below.data) + kFirst * element;
    below.cols = kWidth;
    MatrixSlice some = files.vector("bias", kRows);
    some.cols = 3;
    const LinearWeight w =
        cuda_->make_linear(std::array{top, below}, std::array{some, files.vector("bias", kRows)});
    ASSERT_EQ(w.outputs, 9);
    ASSERT_EQ(w.inputs, kWidth);
    std::vector<BFloat16> got(size(9 * kWidth)), got_bias(9);
    cuda_->download(w.storage.data(), got.data(), w.storage.bytes());
    cuda_->download(w.bias.data(), got_bias.data(), 18);
    for (std::int64_t r = 0; r < 9; ++r) {
      EXPECT_EQ(got_bias[size(r)].bits, to_bfloat16(bias[size(r < 3 ? r : r - 3)]).bits)
          << name << " bias " << r;
      for (std::int64_t c = 0; c < kWidth; ++c) {
        const float from =
            r < 3 ? a[size((r + 1) * kCols + c + kFirst)] : b[size((r - 3) * kCols + c + kFirst)];
        ASSERT_EQ(got[size(r * kWidth + c)].bits, to_bfloat16(from).bits)
            << name << " row " << r << " column " << c;
      }
    }
    const EmbeddingWeight e = cuda_->make_embedding(files.matrix("b", kRows, kCols), 100);
    EXPECT_EQ(e.first_row, 100);
    const auto table = download<BFloat16>(e.table);
    for (std::size_t i = 0; i < b.size(); ++i)
      ASSERT_EQ(table[i].bits, to_bfloat16(b[i]).bits) << name << " " << i;
    const Tensor vector = cuda_->make_vector(files.vector("bias", kRows), 1.0f);
    const auto values = download<float>(vector.view());
    for (std::size_t i = 0; i < bias.size(); ++i) EXPECT_EQ(values[i], bias[i] + 1.0f) << name;
  }
}

TEST_F(CudaOpsTest, LayersAgreeWithTheCpu) {
  for (const std::int64_t n : {1, 3, 37}) {
    for (const std::int64_t hidden : {8, 72, 512}) {
      const std::string what = "n " + std::to_string(n) + " hidden " + std::to_string(hidden);
      const std::int64_t outputs = hidden + 24;
      const auto w = random_bf16(size(outputs * hidden), 1), b = random_bf16(size(outputs), 2);
      const MatrixSlice matrix{
          .data = w.data(), .dtype = DType::kBF16, .rows = outputs, .cols = hidden, .row_stride = hidden};
      const MatrixSlice bias{
          .data = b.data(), .dtype = DType::kBF16, .rows = 1, .cols = outputs, .row_stride = outputs};
      const LinearWeight on_cuda = cuda_->make_linear(std::array{matrix}, std::array{bias});
      const LinearWeight on_cpu = cpu_->make_linear(std::array{matrix}, std::array{bias});
      const Twin x = random(n, hidden, 3);
      const double sum = 1e-6 * static_cast<double>(hidden);

      const Twin y = random(n, outputs, 4, 3);
      float largest = 0;  // of the product alone
      cpu_->linear(x.cpu.view(), on_cpu, false, y.cpu.view());
      for (std::int64_t i = 0; i < n * outputs; ++i)
        largest = std::max(largest, std::abs(y.cpu.as<float>()[i]));
      const auto before = to_floats(download<BFloat16>(y.cuda.view()));
      std::copy(before.begin(), before.end(), y.cpu.as<float>());
      for (const bool accumulate : {true, false}) {
        cuda_->linear(x.cuda.view(), on_cuda, accumulate, y.cuda.view());
        cpu_->linear(x.cpu.view(), on_cpu, accumulate, y.cpu.view());
        // Where there are many rows the product may be rounded before it is added to what is there.
        expect_near(y, kRounding, sum + (accumulate ? largest * kRounding : 0),
                    "linear, accumulate " + std::to_string(accumulate) + ", " + what);
      }
      const auto once = bits(y.cuda);
      cuda_->linear(x.cuda.view(), on_cuda, false, y.cuda.view());
      EXPECT_EQ(bits(y.cuda), once) << what;

      const Twin logits = floats(std::vector<float>(size(n * outputs), NAN), {n, outputs});
      for (const float cap : {0.0f, 5.0f}) {
        cuda_->linear_f32(x.cuda.view(), on_cuda, cap, logits.cuda.view());
        cpu_->linear_f32(x.cpu.view(), on_cpu, cap, logits.cpu.view());
        expect_near(logits, 2e-6, sum, "logits, cap " + std::to_string(cap) + ", " + what);
      }

      const Twin weight = floats(to_floats(random_bf16(size(hidden), 5)), {hidden});
      const Twin normed = random(n, hidden, 6);
      cuda_->rms_norm(x.cuda.view(), weight.cuda.view(), 1e-6f, normed.cuda.view());
      cpu_->rms_norm(x.cpu.view(), weight.cpu.view(), 1e-6f, normed.cpu.view());
      expect_near(normed, kRounding, 1e-6, "rms_norm, " + what);

      const Twin gates = random(n, 2 * hidden, 7, 3), activated = random(n, hidden, 8);
      for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
        cuda_->gated_activation(gates.cuda.view(), activation, activated.cuda.view());
        cpu_->gated_activation(gates.cpu.view(), activation, activated.cpu.view());
        expect_near(activated, kRounding, 2e-6, "activation, " + what);
      }

      const Twin total = random(n, hidden, 9);
      cuda_->add(x.cuda.view(), total.cuda.view());
      cpu_->add(x.cpu.view(), total.cpu.view());
      expect_near(total, kRounding, 0, "add, " + what);

      const MatrixSlice rows{
          .data = w.data(), .dtype = DType::kBF16, .rows = 20, .cols = hidden, .row_stride = hidden};
      std::vector<std::int32_t> ids;
      for (std::int64_t i = 0; i < n; ++i) ids.push_back(static_cast<std::int32_t>(90 + i));
      const Twin id = indices(ids), embedded = random(n, hidden, 10);
      cuda_->embed(cuda_->make_embedding(rows, 95), id.cuda.view(), 8, embedded.cuda.view());
      cpu_->embed(cpu_->make_embedding(rows, 95), id.cpu.view(), 8, embedded.cpu.view());
      expect_near(embedded, 0, 0, "embed, " + what);
    }
  }
}

TEST_F(CudaOpsTest, ATiedHeadIsTheEmbedding) {
  constexpr std::int64_t kVocab = 50, kHidden = 64;
  const auto w = random_bf16(size(kVocab * kHidden), 1);
  const MatrixSlice rows{
      .data = w.data(), .dtype = DType::kBF16, .rows = kVocab, .cols = kHidden, .row_stride = kHidden};
  const EmbeddingWeight on_cuda = cuda_->make_embedding(rows, 0), on_cpu = cpu_->make_embedding(rows, 0);
  const LinearWeight head = cuda_->make_tied_head(on_cuda, rows),
                     cpu_head = cpu_->make_tied_head(on_cpu, rows);
  EXPECT_EQ(head.storage.bytes(), 0u);
  for (const std::int64_t n : {1, 40}) {
    const Twin x = random(n, kHidden, 2), logits = floats(std::vector<float>(size(n * kVocab)), {n, kVocab});
    cuda_->linear_f32(x.cuda.view(), head, 0, logits.cuda.view());
    cpu_->linear_f32(x.cpu.view(), cpu_head, 0, logits.cpu.view());
    expect_near(logits, 2e-6, 1e-4, "tied head");
  }
}

HeadsView heads_of(const TensorView& x, int first, int heads, int head_dim) {
  return {.data = static_cast<std::byte*>(x.data) + size(first * head_dim) * size_of(x.dtype),
          .dtype = x.dtype,
          .device = x.device,
          .heads = heads,
          .tokens = x.shape[0],
          .head_dim = head_dim,
          .head_stride = head_dim,
          .token_stride = x.shape[1]};
}

TEST_F(CudaOpsTest, HeadsAreNormedAndRotatedAsOnTheCpu) {
  for (const int d : {64, 96, 128, 256}) {
    constexpr std::int64_t kTokens = 9, kPositions = 40;
    const Twin cos = floats(to_floats(random_bf16(size(kPositions * d / 2), 1)), {kPositions, d / 2}),
               sin = floats(to_floats(random_bf16(size(kPositions * d / 2), 2)), {kPositions, d / 2});
    const Twin weight = floats(to_floats(random_bf16(size(d), 3)), {d});
    const Twin positions = indices({0, 39, 2, 2, 5, 11, 38, 1, 20});
    const auto table = [](const Twin& c, const Twin& s, bool cuda) {
      const Device device = cuda ? Device::kCuda : Device::kCpu;
      RopeTable made{.cos = Tensor(c.cpu.shape(), DType::kF32, device),
                     .sin = Tensor(s.cpu.shape(), DType::kF32, device)};
      return made;
    };
    RopeTable on_cuda = table(cos, sin, true), on_cpu = table(cos, sin, false);
    cuda_->upload(cos.cpu.data(), on_cuda.cos.data(), cos.cpu.view().bytes());
    cuda_->upload(sin.cpu.data(), on_cuda.sin.data(), sin.cpu.view().bytes());
    std::memcpy(on_cpu.cos.data(), cos.cpu.data(), cos.cpu.view().bytes());
    std::memcpy(on_cpu.sin.data(), sin.cpu.data(), sin.cpu.view().bytes());
    for (const bool norm : {false, true}) {
      const Twin qkv = random(kTokens, 9 * d, 4);  // 5 query heads, 2 for k, 2 for v
      const auto run = [&](Ops& ops, const Tensor& x, const Tensor& w, const RopeTable& rope,
                           const Tensor& at) {
        ops.norm_and_rotate(
            heads_of(x.view(), 0, 5, d), heads_of(x.view(), 5, 2, d),
            {.q_weight = norm ? &w.view() : nullptr, .k_weight = norm ? &w.view() : nullptr, .eps = 1e-6f},
            rope, at.view());
      };
      run(*cuda_, qkv.cuda, weight.cuda, on_cuda, positions.cuda);
      run(*cpu_, qkv.cpu, weight.cpu, on_cpu, positions.cpu);
      expect_near(qkv, kRounding, 1e-5, "head_dim " + std::to_string(d) + " norm " + std::to_string(norm));
    }
  }
}

TEST_F(CudaOpsTest, DensePrefillAgreesWithTheCpuAndCountsTheSame) {
  SelfCommunicator team;
  for (const int d : {64, 128}) {
    for (const std::int64_t tokens : {1, 17, 130}) {
      for (const int window : {0, 40}) {
        const int q_heads = 4, kv_heads = 2;
        const Twin qkv = random(tokens, (q_heads + 2 * kv_heads) * d, 1),
                   out = random(tokens, q_heads * d, 2);
        const auto run = [&](Ops& ops, const Tensor& x, const Tensor& to) {
          const PrefillInput input{.q = heads_of(x.view(), 0, q_heads, d),
                                   .k = heads_of(x.view(), q_heads, kv_heads, d),
                                   .v = heads_of(x.view(), q_heads + kv_heads, kv_heads, d),
                                   .info = {.q_heads = q_heads,
                                            .kv_heads = kv_heads,
                                            .q_heads_total = q_heads,
                                            .kv_heads_total = kv_heads,
                                            .head_dim = d,
                                            .scale = 0.1f,
                                            .window = window},
                                   .communicator = &team,
                                   .threads = &threads_};
          AttentionCounts counts;
          ops.attention_prefill(input, nullptr, heads_of(to.view(), 0, q_heads, d), counts);
          return counts;
        };
        const std::string what = fmt::format("head_dim {} tokens {} window {}", d, tokens, window);
        const AttentionCounts counts = run(*cuda_, qkv.cuda, out.cuda), wanted = run(*cpu_, qkv.cpu, out.cpu);
        // Weights and values are at most about 1 and 3.5: half a unit of bfloat16 of each.
        expect_near(out, 0, 0.02, what);
        EXPECT_EQ(counts.visited_cells, wanted.visited_cells) << what;
        EXPECT_EQ(counts.causal_cells, wanted.causal_cells) << what;
        EXPECT_GE(counts.computed_cells, counts.visited_cells) << what;
        EXPECT_EQ(counts.flops, 4.0 * d * counts.computed_cells) << what;
        const auto once = bits(out.cuda);
        run(*cuda_, qkv.cuda, out.cuda);
        EXPECT_EQ(bits(out.cuda), once) << what;
      }
    }
  }
}

/// A cache on both devices, written alike; the pages must hold the same.
class CudaPages : public CudaOpsTest {
 protected:
  static constexpr int kHeadDim = 72, kHeads = 2;  // any multiple of 8
  struct Side {
    Ops& ops;
    PagePool pool;
    std::vector<SequenceCache> caches;
    Side(Ops& o) : ops(o), pool(o, kHeadDim, 64 << 20) { caches.emplace_back(pool, 1, kHeads); }
  };
  Side gpu_{*cuda_}, host_{*cpu_};

  /// Appends `counts[h]` tokens to head h of a cache, chosen rows where `chosen`.
  void append(std::size_t cache, std::array<std::int64_t, kHeads> counts, bool chosen, std::uint64_t seed) {
    const std::int64_t tokens = 3 * std::max(counts[0], counts[1]) + 2;
    const Twin kv = random(tokens, 2 * kHeads * kHeadDim, seed);
    std::array<std::vector<std::int32_t>, kHeads> positions;
    for (int h = 0; h < kHeads && chosen; ++h)
      for (std::int64_t i = 0; i < counts[static_cast<std::size_t>(h)]; ++i)
        positions[static_cast<std::size_t>(h)].push_back(static_cast<std::int32_t>(3 * i + h));
    for (Side* side : {&gpu_, &host_}) {
      std::vector<PageCopy> copies;
      for (int h = 0; h < kHeads; ++h)
        side->caches[cache].extend(0, h, counts[static_cast<std::size_t>(h)], copies);
      side->ops.copy_pages(copies, side->pool.view());
      std::vector<KvWrite> writes;
      for (int h = 0; h < kHeads; ++h) {
        const HeadCache& head = side->caches[cache].head(0, h);
        const std::int64_t count = counts[static_cast<std::size_t>(h)];
        writes.push_back({.page_ids = head.pages,
                          .first_slot = head.tokens - count,
                          .count = count,
                          .head = h,
                          .row_begin = 2,
                          .positions = positions[static_cast<std::size_t>(h)]});
      }
      const TensorView x = side == &gpu_ ? kv.cuda.view() : kv.cpu.view();
      side->ops.store_kv(heads_of(x, 0, kHeads, kHeadDim), heads_of(x, kHeads, kHeads, kHeadDim), writes,
                         side->pool.view());
    }
  }

  void compare() {
    for (std::size_t c = 0; c < gpu_.caches.size(); ++c) {
      for (int h = 0; h < kHeads; ++h) {
        const HeadCache &on_gpu = gpu_.caches[c].head(0, h), &on_host = host_.caches[c].head(0, h);
        ASSERT_EQ(on_gpu.pages, on_host.pages);
        ASSERT_EQ(on_gpu.tokens, on_host.tokens);
        const PoolView pool = gpu_.pool.view();
        std::vector<BFloat16> page(size(pool.page_elements));
        for (std::int64_t slot = 0; slot < on_gpu.tokens; ++slot) {
          const std::int64_t at = on_gpu.pages[size(slot / kPageTokens)] * pool.page_elements;
          if (slot % kPageTokens == 0)
            cuda_->download(static_cast<BFloat16*>(pool.base) + at, page.data(), page.size() * 2);
          const auto* wanted = static_cast<const float*>(host_.pool.view().base) + at;
          for (const std::int64_t row : {slot % kPageTokens, kPageTokens + slot % kPageTokens}) {
            for (int channel = 0; channel < kHeadDim; ++channel) {
              ASSERT_EQ(to_float(page[size(row * kHeadDim + channel)]), wanted[row * kHeadDim + channel])
                  << "cache " << c << " head " << h << " slot " << slot << " row " << row << " channel "
                  << channel;
            }
          }
        }
      }
    }
  }
};

TEST_F(CudaPages, HoldWhatTheCpuHolds) {
  append(0, {40, 7}, false, 1);
  append(0, {1, 0}, false, 2);
  append(0, {0, 0}, false, 3);
  append(0, {100, 513}, true, 4);
  compare();
  for (Side* side : {&gpu_, &host_}) {
    side->caches.push_back(side->caches[0].fork());
    side->caches.push_back(side->caches[0].fork());
  }
  append(1, {1, 1}, false, 5);
  append(2, {20, 3}, true, 6);
  append(0, {5, 5}, false, 7);
  compare();
}

TEST_F(CudaPages, CopiesThatDependOnEachOtherRunInOrder) {
  const PoolView pool = gpu_.pool.view();
  for (int i = 0; i < 8; ++i) (void)gpu_.pool.allocate();
  const std::vector<PageCopy> copies = {{0, 1}, {1, 2}, {3, 1}, {4, 3}, {5, 6}, {5, 6}, {6, 0}};
  std::vector<BFloat16> pages = random_bf16(size(8 * pool.page_elements), 1);
  cuda_->upload(pages.data(), pool.base, pages.size() * 2);
  cuda_->copy_pages(copies, pool);
  for (const PageCopy& copy : copies)
    std::memcpy(pages.data() + copy.to * pool.page_elements, pages.data() + copy.from * pool.page_elements,
                size(pool.page_elements) * 2);
  std::vector<BFloat16> got(pages.size());
  cuda_->download(pool.base, got.data(), got.size() * 2);
  for (std::size_t i = 0; i < pages.size(); ++i)
    ASSERT_EQ(got[i].bits, pages[i].bits) << "page " << static_cast<std::int64_t>(i) / pool.page_elements;
}

TEST_F(CudaOpsTest, ArgmaxReturnsToTheHost) {
  for (const std::int64_t columns : {3, 300, 32003}) {
    auto values = to_floats(random_bf16(size(4 * columns), 1));
    values[size(columns + columns / 2)] = 100;
    values[size(2 * columns - 1)] = 100;
    values[size(2 * columns + 1)] = NAN;
    const Twin logits = floats(values, {4, columns});
    std::vector<float> got(4), wanted(4);
    std::vector<std::int32_t> got_index(4), wanted_index(4);
    for (int repeat = 0; repeat < 2; ++repeat) {
      cuda_->argmax(logits.cuda.view(), got, got_index);
      cpu_->argmax(logits.cpu.view(), wanted, wanted_index);
      EXPECT_EQ(got_index, wanted_index) << columns;
      for (const std::size_t row : {0, 1, 3}) EXPECT_EQ(got[row], wanted[row]) << columns;
      EXPECT_EQ(got_index[2], -1);
    }
  }
}

/// A team of two whose other rank holds the same values.
class Mirror : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 2; }
  void all_reduce_sum(float* data, std::size_t count) override {
    for (std::size_t i = 0; i < count; ++i) data[i] += data[i];
    calls.push_back(count);
  }
  /// The other rank sends the same, or, when told so, something else.
  void all_gather(const void* send, void* receive, std::size_t bytes) override {
    auto* both = static_cast<unsigned char*>(receive);
    std::memcpy(both, send, bytes);
    std::memcpy(both + bytes, send, bytes);
    if (differs) both[bytes] ^= 1;
  }
  void broadcast(void*, std::size_t, int) override {}
  void barrier() override {}
  std::vector<std::size_t> calls;
  bool differs = false;
};
class DeviceMirror final : public Mirror, public DeviceCommunicator {
 public:
  void all_reduce_bf16(void*, std::size_t count, cudaStream_t) override { device_calls.push_back(count); }
  bool capturable() const override { return true; }
  void graph_launched(cudaStream_t) override { ++launched; }
  std::vector<std::size_t> device_calls;
  int launched = 0;
};

TEST_F(CudaOpsTest, SumsOverRanksGoThroughTheHostOrStayOnTheDevice) {
  for (const std::int64_t rows : {1, 1031}) {
    const Twin x = random(rows, 1024, 1);
    Mirror mirror;
    cuda_->all_reduce(x.cuda.view(), mirror);
    EXPECT_EQ(std::accumulate(mirror.calls.begin(), mirror.calls.end(), std::size_t{0}), size(rows * 1024));
    for (std::int64_t i = 0; i < rows * 1024; ++i) x.cpu.as<float>()[i] *= 2;
    expect_near(x, 0, 0, "sum over two ranks");
    DeviceMirror device;
    cuda_->all_reduce(x.cuda.view(), device);
    EXPECT_THAT(device.device_calls, ::testing::ElementsAre(size(rows * 1024)));
    EXPECT_TRUE(device.calls.empty());
    SelfCommunicator alone;
    cuda_->all_reduce(x.cuda.view(), alone);
    expect_near(x, 0, 0, "a team of one");
  }
}

TEST_F(CudaOpsTest, AStepIsCapturedOnceAndReadsNewValuesEachTime) {
  constexpr std::int64_t kRows = 3, kHidden = 256, kVocab = 203;
  const auto w = random_bf16(size(kVocab * kHidden), 1),
             m = random_bf16(size(2 * kHidden * kHidden), 2, 0.2f);
  const MatrixSlice vocab{
      .data = w.data(), .dtype = DType::kBF16, .rows = kVocab, .cols = kHidden, .row_stride = kHidden};
  const MatrixSlice mlp{
      .data = m.data(), .dtype = DType::kBF16, .rows = 2 * kHidden, .cols = kHidden, .row_stride = kHidden};
  const EmbeddingWeight table = cuda_->make_embedding(vocab, 0);
  const LinearWeight head = cuda_->make_linear(std::array{vocab}, {}),
                     gate_up = cuda_->make_linear(std::array{mlp}, {});
  const Tensor ids({kRows}, DType::kI32, Device::kCuda), x({kRows, kHidden}, DType::kBF16, Device::kCuda),
      y({kRows, 2 * kHidden}, DType::kBF16, Device::kCuda),
      logits({kRows, kVocab}, DType::kF32, Device::kCuda);
  const Twin norm = floats(std::vector<float>(kHidden, 0.7f), {kHidden});
  const auto body = [&] {
    cuda_->embed(table, ids.view(), 1, x.view());
    cuda_->rms_norm(x.view(), norm.cuda.view(), 1e-6f, x.view());
    cuda_->linear(x.view(), gate_up, false, y.view());
    cuda_->gated_activation(y.view(), Activation::kSilu, x.view());
    cuda_->linear_f32(x.view(), head, 30, logits.view());
  };
  const auto with_ids = [&](int step) {
    const std::vector<std::int32_t> values = {step, 7 * step % 200, 100 - step};
    cuda_->upload(values.data(), ids.data(), values.size() * 4);
  };
  SelfCommunicator alone;
  DeviceMirror team;
  for (Communicator* communicator : {static_cast<Communicator*>(&alone), static_cast<Communicator*>(&team)}) {
    for (int step = 0; step < 5; ++step) {
      with_ids(step);
      body();
      const auto wanted = download<std::uint32_t>(logits.view());
      LACUNA_CUDA(cudaMemset(logits.data(), 0xFF, logits.view().bytes()));
      LACUNA_CUDA(cudaDeviceSynchronize());
      cuda_->run_step(*communicator, body);
      EXPECT_EQ(download<std::uint32_t>(logits.view()), wanted) << "step " << step;
    }
  }
  EXPECT_EQ(team.launched, 5);
}

TEST_F(CudaOpsTest, AStepIsCapturedOnAllRanksOrOnNone) {
  const Tensor x({1, 8}, DType::kBF16, Device::kCuda), one({1, 8}, DType::kBF16, Device::kCuda);
  const std::vector<std::uint16_t> ones(8, 0x3F80), zeros(8, 0);
  cuda_->upload(ones.data(), one.data(), 16);
  cuda_->upload(zeros.data(), x.data(), 16);
  int bodies = 0;
  const auto body = [&] {
    ++bodies;
    cuda_->add(one.view(), x.view());
  };
  DeviceMirror team;
  // The first step runs, the second is captured, the third is a replay. Where ranks differ all run it, and
  // then capture anew.
  const std::vector<int> expected = {1, 2, 2, 2, 3, 4, 4, 5, 6, 7, 7};
  for (std::size_t step = 0; step < expected.size(); ++step) {
    team.differs = step == 4 || step == 7 || step == 8;
    cuda_->run_step(team, body);
    EXPECT_EQ(bodies, expected[step]) << "step " << step;
  }
  EXPECT_EQ(download<std::uint16_t>(x.view()), std::vector<std::uint16_t>(8, 0x4130));  // 11, a step each
}

TEST_F(CudaOpsTest, WhatItCannotDoIsSaidAndLosesNothing) {
  const auto kind_of = [](const auto& call) {
    try {
      call();
    } catch (const Error& e) {
      return std::pair(e.kind(), std::string(e.what()));
    }
    return std::pair(ErrorKind::kInternal, std::string("no error"));
  };
  const auto w = random_bf16(120, 1);
  const MatrixSlice odd{.data = w.data(), .dtype = DType::kBF16, .rows = 10, .cols = 12, .row_stride = 12};
  const auto [kind, text] = kind_of([&] { cuda_->make_linear(std::array{odd}, {}); });
  EXPECT_EQ(kind, ErrorKind::kUsage) << text;
  EXPECT_THAT(text, ::testing::HasSubstr("multiples of 8"));

  const Twin x = random(1, 2 * 80, 1), at = indices({0});
  const RopeTable rope{.cos = Tensor({1, 40}, DType::kF32, Device::kCuda),
                       .sin = Tensor({1, 40}, DType::kF32, Device::kCuda)};
  const auto refused = kind_of([&] {
    cuda_->norm_and_rotate(heads_of(x.cuda.view(), 0, 1, 80), heads_of(x.cuda.view(), 1, 1, 80), {}, rope,
                           at.cuda.view());
  });
  EXPECT_EQ(refused.first, ErrorKind::kUsage) << refused.second;
  EXPECT_THAT(refused.second, ::testing::HasSubstr("head_dim"));
}

TEST_F(CudaOpsTest, RunningOutOfMemoryLeavesItUsable) {
  const auto w = random_bf16(8, 1);
  // 2^46 rows that all lie on one another: more than any device holds.
  const MatrixSlice huge{
      .data = w.data(), .dtype = DType::kBF16, .rows = std::int64_t{1} << 46, .cols = 8, .row_stride = 0};
  try {
    cuda_->make_linear(std::array{huge}, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kResource) << e.what();
  }
  const Twin a = random(3, 64, 1), b = random(3, 64, 2);
  cuda_->add(a.cuda.view(), b.cuda.view());
  cpu_->add(a.cpu.view(), b.cpu.view());
  expect_near(b, kRounding, 0, "after an error");
}

}  // namespace
}  // namespace lacuna
