// CpuOps and the page pool against plain loops in double precision, for every instruction set of this
// machine.
#include "model/ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/rng.h"
#include "model/cpu/kernels.h"
#include "model/kv_cache.h"

namespace lacuna {
namespace {

std::vector<const cpu::Kernels*> all_kernels() {
  std::vector<const cpu::Kernels*> kernels = {cpu::kernels_generic()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && cpu::kernels_avx2() != nullptr)
    kernels.push_back(cpu::kernels_avx2());
  if (__builtin_cpu_supports("avx512bw") && cpu::kernels_avx512() != nullptr)
    kernels.push_back(cpu::kernels_avx512());
#endif
  return kernels;
}

std::vector<float> random(std::int64_t n, std::uint64_t seed, float scale = 1) {
  Rng rng(seed);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = static_cast<float>(rng.normal()) * scale;
  return x;
}

class EveryIsa : public ::testing::TestWithParam<const cpu::Kernels*> {};

TEST_P(EveryIsa, GemmEqualsDoublePrecisionForEveryRowCount) {
  const cpu::Kernels& k = *GetParam();
  for (const std::int64_t inputs : {8, 33, 256}) {
    for (const std::int64_t outputs : {1, 31, 32, 70, 128}) {
      const auto w = random(outputs * inputs, 1);
      const std::int64_t panels = (outputs + cpu::kPanel - 1) / cpu::kPanel;
      std::vector<BFloat16> packed(static_cast<std::size_t>(panels * cpu::kPanel * inputs), BFloat16{0});
      const auto weight = [&](std::int64_t n, std::int64_t i) {
        return to_bfloat16(w[static_cast<std::size_t>(n * inputs + i)]);
      };
      for (std::int64_t n = 0; n < outputs; ++n) {
        for (std::int64_t i = 0; i < inputs; ++i) {
          packed[static_cast<std::size_t>((n / cpu::kPanel * inputs + i) * cpu::kPanel + n % cpu::kPanel)] =
              weight(n, i);
        }
      }
      const auto bias = random(outputs, 2);
      std::vector<float> alone;  // row 0 by itself
      for (const std::int64_t rows : {1, 2, 3, 5, 6, 7, 11, 12, 13, 30}) {
        const auto x = random(rows * inputs, 3);
        std::vector<float> a(x.size()), y = random(rows * outputs, 4);
        const auto before = y;
        k.pack_rows(x.data(), inputs, rows, inputs, a.data());
        k.gemm({.a = a.data(),
                .rows = rows,
                .b = packed.data(),
                .dtype = DType::kBF16,
                .panels = panels,
                .inputs = inputs,
                .columns = outputs,
                .bias = bias.data(),
                .accumulate = true,
                .y = y.data(),
                .y_stride = outputs});
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t n = 0; n < outputs; ++n) {
            double exact = static_cast<double>(bias[static_cast<std::size_t>(n)]) +
                           static_cast<double>(before[static_cast<std::size_t>(r * outputs + n)]),
                   size = 1;
            for (std::int64_t i = 0; i < inputs; ++i) {
              const double product = static_cast<double>(x[static_cast<std::size_t>(r * inputs + i)]) *
                                     static_cast<double>(to_float(weight(n, i)));
              exact += product;
              size += std::abs(product);
            }
            ASSERT_NEAR(y[static_cast<std::size_t>(r * outputs + n)], exact, size * 6e-8 * 8)
                << k.isa << " " << rows << "x" << outputs << "x" << inputs;
          }
        }
        // The same row of x gives the same bits whatever the batch.
        std::vector<float> first(static_cast<std::size_t>(outputs)),
            again(static_cast<std::size_t>(rows * outputs));
        k.gemm({.a = a.data(),
                .rows = rows,
                .b = packed.data(),
                .dtype = DType::kBF16,
                .panels = panels,
                .inputs = inputs,
                .columns = outputs,
                .y = again.data(),
                .y_stride = outputs});
        for (std::int64_t r = 0; r < rows; ++r) {
          k.gemm({.a = x.data() + r * inputs,
                  .rows = 1,
                  .b = packed.data(),
                  .dtype = DType::kBF16,
                  .panels = panels,
                  .inputs = inputs,
                  .columns = outputs,
                  .y = first.data(),
                  .y_stride = outputs});
          ASSERT_TRUE(std::equal(first.begin(), first.end(), again.begin() + r * outputs))
              << k.isa << ", row " << r << " of " << rows;
        }
      }
    }
  }
}

TEST_P(EveryIsa, ElementwiseLoopsEqualDoublePrecision) {
  const cpu::Kernels& k = *GetParam();
  for (const std::int64_t n : {1, 7, 8, 16, 17, 64, 100, 1000}) {
    const auto x = random(n, 5, 4), w = random(n, 6);
    std::vector<float> out(x.size());
    double squares = 0;
    for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
    k.rms_norm(x.data(), w.data(), 1e-6f, n, out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = static_cast<double>(x[i]) / std::sqrt(squares / static_cast<double>(n) + 1e-6) *
                           static_cast<double>(w[i]);
      ASSERT_NEAR(out[i], exact, 1e-6 * std::abs(exact) + 1e-30) << k.isa;
    }
    k.silu_mul(x.data(), w.data(), n, out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double g = static_cast<double>(x[i]), exact = g / (1 + std::exp(-g)) * static_cast<double>(w[i]);
      ASSERT_NEAR(out[i], exact, 1e-6 * std::abs(exact)) << k.isa << " silu(" << g << ")";
    }
    k.gelu_mul(x.data(), w.data(), n, out.data());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double g = static_cast<double>(x[i]);
      const double exact = 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) *
                           static_cast<double>(w[i]);
      ASSERT_NEAR(out[i], exact, 1e-5 * std::abs(exact) + 1e-7) << k.isa << " gelu(" << g << ")";
    }
    auto capped = x;
    k.soft_cap(capped.data(), 5.0f, n);
    for (std::size_t i = 0; i < x.size(); ++i)
      ASSERT_NEAR(capped[i], 5 * std::tanh(static_cast<double>(x[i]) / 5), 2e-6) << k.isa;
    ASSERT_EQ(k.max(x.data(), n), *std::max_element(x.begin(), x.end()));
    auto broken = x;
    broken[static_cast<std::size_t>(n / 2)] = NAN;
    ASSERT_TRUE(std::isnan(k.max(broken.data(), n)));
    broken[static_cast<std::size_t>(n / 2)] = INFINITY;
    ASSERT_EQ(k.max(broken.data(), n), INFINITY);
  }
}

TEST_P(EveryIsa, ActivationsSurviveExtremes) {
  const cpu::Kernels& k = *GetParam();
  const std::vector<float> x = {-1e30f, -200.0f, -90.0f, 0.0f, 90.0f, 200.0f, 1e30f, INFINITY};
  const std::vector<float> one(x.size(), 1.0f);
  std::vector<float> out(x.size());
  for (const auto f : {k.silu_mul, k.gelu_mul}) {
    f(x.data(), one.data(), static_cast<std::int64_t>(x.size()), out.data());
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(out[i], 0.0f, 1e-6f * std::abs(x[i])) << k.isa << " " << x[i];
    for (std::size_t i = 4; i < x.size(); ++i) EXPECT_EQ(out[i], x[i]) << k.isa;
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, EveryIsa, ::testing::ValuesIn(all_kernels()),
                         [](const auto& param) { return std::string(param.param->isa); });

TEST(CpuOps, LinearEqualsAnyBatchAndThreadCount) {
  constexpr std::int64_t kRows = 401, kInputs = 96, kOutputs = 200;
  const auto w = random(kOutputs * kInputs, 1), x = random(kRows * kInputs, 2);
  const MatrixSlice slice{
      .data = w.data(), .dtype = DType::kF32, .rows = kOutputs, .cols = kInputs, .row_stride = kInputs};
  std::vector<float> reference;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto ops = make_cpu_ops(pool);
    const LinearWeight weight = ops->make_linear(std::span(&slice, 1), {});
    for (const std::int64_t batch : {std::int64_t{1}, std::int64_t{13}, std::int64_t{200}, kRows}) {
      std::vector<float> y(static_cast<std::size_t>(kRows * kOutputs));
      for (std::int64_t at = 0; at < kRows; at += batch) {
        const std::int64_t n = std::min(batch, kRows - at);
        ops->linear({.data = const_cast<float*>(x.data()) + at * kInputs, .shape = {n, kInputs}}, weight,
                    false, {.data = y.data() + at * kOutputs, .shape = {n, kOutputs}});
      }
      if (reference.empty()) reference = y;
      EXPECT_EQ(reference, y) << threads << " threads, batches of " << batch;
    }
  }
}

TEST(CpuOps, StacksSlicesOfDifferentTypesExactly) {
  ThreadPool pool(1);
  const auto ops = make_cpu_ops(pool);
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};  // [2, 3], columns 1..2 used
  const std::vector<Float16> b = {to_float16(0.5f), to_float16(-7)};
  const MatrixSlice parts[] = {
      {.data = a.data() + 1, .dtype = DType::kF32, .rows = 2, .cols = 2, .row_stride = 3},
      {.data = b.data(), .dtype = DType::kF16, .rows = 1, .cols = 2, .row_stride = 2}};
  const LinearWeight w = ops->make_linear(parts, {});
  std::vector<float> x = {1, 10}, y(3);
  ops->linear({.data = x.data(), .shape = {1, 2}}, w, false, {.data = y.data(), .shape = {1, 3}});
  EXPECT_THAT(y, ::testing::ElementsAre(32, 65, -69.5));
}

TEST(CpuOps, ArgmaxTakesTheLowestIndexAndSeesNaN) {
  ThreadPool pool(1);
  const auto ops = make_cpu_ops(pool);
  std::vector<float> rows(3 * 50, -1.0f);
  rows[30] = rows[40] = 2.0f;
  rows[50 + 49] = 5.0f;
  rows[100 + 17] = NAN;
  std::vector<float> values(3);
  std::vector<std::int32_t> indices(3);
  ops->argmax({.data = rows.data(), .shape = {3, 50}}, values, indices);
  EXPECT_THAT(indices, ::testing::ElementsAre(30, 49, -1));
}

class Pages : public ::testing::Test {
 protected:
  /// Appends tokens whose K and V are `value` + token number.
  void append(SequenceCache& cache, int count, float value) {
    std::vector<PageCopy> copies;
    cache.extend(0, 0, count, copies);
    ops_->copy_pages(copies, pool_.view());
    std::vector<float> rows(static_cast<std::size_t>(count) * 8);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = value + static_cast<float>(i / 8);
    const HeadsView view{
        .data = rows.data(), .heads = 1, .tokens = count, .head_dim = 8, .head_stride = 8, .token_stride = 8};
    const HeadCache& head = cache.head(0, 0);
    const KvWrite write{
        .page_ids = head.pages, .first_slot = head.tokens - count, .count = count, .positions = {}};
    ops_->store_kv(view, view, std::span(&write, 1), pool_.view());
  }
  std::vector<float> keys(const SequenceCache& cache) const {
    const HeadCache& head = cache.head(0, 0);
    std::vector<float> out;
    for (std::int64_t s = 0; s < head.tokens; ++s) {
      const auto* page = static_cast<const float*>(pool_.view().base) +
                         head.pages[static_cast<std::size_t>(s / kPageTokens)] * pool_.view().page_elements;
      EXPECT_EQ(page[s % kPageTokens * 8], page[(kPageTokens + s % kPageTokens) * 8 + 7]);
      out.push_back(page[s % kPageTokens * 8]);
    }
    return out;
  }
  ThreadPool threads_{1};
  std::unique_ptr<Ops> ops_ = make_cpu_ops(threads_);
  PagePool pool_{*ops_, 8, 1 << 20};
};

TEST_F(Pages, ForksShareUntilTheyWrite) {
  SequenceCache base(pool_, 1, 1);
  append(base, 40, 100);  // 3 pages, the last with 8 tokens
  EXPECT_EQ(pool_.pages_in_use(), 3);
  SequenceCache a = base.fork(), b = base.fork();
  EXPECT_EQ(pool_.pages_in_use(), 3);
  append(a, 1, 500);
  EXPECT_EQ(pool_.pages_in_use(), 4) << "the shared last page was copied";
  append(b, 20, 700);
  EXPECT_EQ(pool_.pages_in_use(), 6);
  auto expected = keys(base);
  ASSERT_EQ(expected.size(), 40u);
  EXPECT_EQ(expected[39], 139);
  auto with_a = expected;
  with_a.push_back(500);
  EXPECT_EQ(keys(a), with_a);
  EXPECT_EQ(keys(b)[40], 700);
  EXPECT_EQ(keys(b)[59], 719);
  base.clear();
  append(a, 1, 501);  // nobody else has this page now
  EXPECT_EQ(keys(a)[41], 501);
  a.clear();
  b.clear();
  EXPECT_EQ(pool_.pages_in_use(), 0);
  pool_.trim(0);
}

TEST_F(Pages, WholePagesBeforeTheWindowAreDropped) {
  SequenceCache cache(pool_, 1, 1);
  append(cache, 100, 0);
  cache.drop_before_window(0, 0, 30);
  EXPECT_EQ(cache.head(0, 0).tokens, 36);  // pages 4, 5, 6 with 4 tokens in the last
  EXPECT_EQ(pool_.pages_in_use(), 3);
  EXPECT_EQ(keys(cache).back(), 99);
}

TEST_F(Pages, AFullPoolSaysSoAndKeepsWhatItHolds) {
  PagePool small(*ops_, 8, 1 << 20);
  SequenceCache cache(small, 1, 1);
  std::vector<PageCopy> copies;
  cache.extend(0, 0, small.capacity() * kPageTokens, copies);
  try {
    cache.extend(0, 0, 1, copies);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kResource);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("KV cache is full"));
  }
  EXPECT_EQ(cache.head(0, 0).tokens, small.capacity() * kPageTokens);
}

}  // namespace
}  // namespace lacuna
