// The kernels of a transformer layer on CUDA, the matrix products, weight loading and the growing KV memory,
// against plain loops in double precision on the same bfloat16 inputs. A result that is rounded once may be
// off by half a unit of bfloat16, 2^-8 of its size.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "model/cuda/gemm.h"
#include "model/cuda/kernels.h"
#include "model/cuda/kv_memory.h"
#include "model/cuda/sizes.h"
#include "model/cuda/skinny.h"
#include "model/cuda/weight_loader.h"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna {
namespace {

using testing::DeviceVector;
using testing::HeadsOnDevice;
using testing::random_bf16;

constexpr double kRounding = 0x1p-8 * 1.001;
/// A NaN that no kernel writes: marks memory that must not be touched.
constexpr std::uint16_t kUntouched = 0xFFFF;

__nv_bfloat16* raw(const DeviceVector<BFloat16>& x) { return reinterpret_cast<__nv_bfloat16*>(x.data()); }
std::vector<std::uint16_t> bits(const DeviceVector<BFloat16>& x) {
  std::vector<std::uint16_t> out;
  for (const BFloat16 v : x.download()) out.push_back(v.bits);
  return out;
}
double value(const std::vector<BFloat16>& x, std::int64_t i) {
  return to_float(x[static_cast<std::size_t>(i)]);
}
std::vector<float> random_floats(std::int64_t n, std::uint64_t seed, float scale = 1) {
  std::vector<float> out;
  for (const BFloat16 v : random_bf16(static_cast<std::size_t>(n), seed, scale)) out.push_back(to_float(v));
  return out;
}
std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

TEST(CudaKernels, EmbedCopiesScalesAndLeavesOthersRowsZero) {
  for (const std::int64_t hidden : {8, 64, 1000, 3584}) {
    constexpr std::int64_t kRows = 11, kFirst = 100;
    const auto table = random_bf16(size(kRows * hidden), 1);
    const std::vector<std::int32_t> ids = {100, 110, 99, 111, 0, 105, 105};
    const DeviceVector<BFloat16> on_device(table);
    const DeviceVector<std::int32_t> device_ids(ids);
    for (const float scale : {1.0f, 60.0f, 0.1f}) {
      const DeviceVector<BFloat16> out(ids.size() * size(hidden));
      launch_embed({.table = raw(on_device),
                    .ids = device_ids.data(),
                    .out = raw(out),
                    .first_row = kFirst,
                    .rows = kRows,
                    .n = std::ssize(ids),
                    .hidden = static_cast<int>(hidden),
                    .scale = scale},
                   nullptr);
      const auto got = out.download();
      for (std::size_t i = 0; i < ids.size(); ++i) {
        const std::int64_t row = ids[i] - kFirst;
        for (std::int64_t c = 0; c < hidden; ++c) {
          const bool mine = row >= 0 && row < kRows;
          const BFloat16 wanted = to_bfloat16(mine ? scale * to_float(table[size(row * hidden + c)]) : 0.0f);
          ASSERT_EQ(got[i * size(hidden) + size(c)].bits, wanted.bits)
              << "hidden " << hidden << " scale " << scale << " id " << ids[i] << " channel " << c;
        }
      }
    }
  }
}

TEST(CudaKernels, RmsNormOfEveryWidth) {
  for (const int d : {8, 64, 520, 3584, 4104, 12288, 20488}) {
    constexpr std::int64_t kRows = 3;
    constexpr float kEps = 1e-6f;
    auto x = random_bf16(size(kRows * d), static_cast<std::uint64_t>(d), 3);
    for (int c = 0; c < d; ++c) x[size(d + c)] = to_bfloat16(0);  // a row of zeros stays zero
    const auto weight = random_floats(d, 2);
    const DeviceVector<BFloat16> in(x), out(x.size());
    const DeviceVector<float> device_weight(weight);
    const RmsNormArgs args{
        .x = raw(in), .weight = device_weight.data(), .out = raw(out), .n = kRows, .d = d, .eps = kEps};
    launch_rms_norm(args, nullptr);
    const auto got = out.download();
    for (std::int64_t r = 0; r < kRows; ++r) {
      double squares = 0;
      for (int c = 0; c < d; ++c) squares += value(x, r * d + c) * value(x, r * d + c);
      for (int c = 0; c < d; ++c) {
        const double exact = value(x, r * d + c) / std::sqrt(squares / d + kEps) * weight[size(c)];
        ASSERT_NEAR(value(got, r * d + c), exact, std::abs(exact) * (kRounding + 1e-5))
            << "d " << d << " row " << r << " channel " << c;
      }
    }
    // The same bits alone, in place, and again.
    const DeviceVector<BFloat16> alone(size(d));
    launch_rms_norm({.x = raw(in) + 2 * d,
                     .weight = device_weight.data(),
                     .out = raw(alone),
                     .n = 1,
                     .d = d,
                     .eps = kEps},
                    nullptr);
    const auto all = bits(out);
    EXPECT_EQ(bits(alone), std::vector<std::uint16_t>(all.end() - d, all.end())) << "d " << d;
    // Added to what is there, rounded once.
    const auto before = random_bf16(x.size(), 9, 2);
    const DeviceVector<BFloat16> sum(before);
    RmsNormArgs adding = args;
    adding.out = raw(sum);
    adding.add = true;
    launch_rms_norm(adding, nullptr);
    const auto sums = sum.download();
    for (std::int64_t r = 0; r < kRows; ++r) {
      double squares = 0;
      for (int c = 0; c < d; ++c) squares += value(x, r * d + c) * value(x, r * d + c);
      for (int c = 0; c < d; ++c) {
        const double normed = value(x, r * d + c) / std::sqrt(squares / d + kEps) * weight[size(c)];
        const double exact = value(before, r * d + c) + normed;
        ASSERT_NEAR(value(sums, r * d + c), exact, std::abs(exact) * kRounding + std::abs(normed) * 1e-5)
            << "added, d " << d << " row " << r << " channel " << c;
      }
    }
    launch_rms_norm(
        {.x = raw(in), .weight = device_weight.data(), .out = raw(in), .n = kRows, .d = d, .eps = kEps},
        nullptr);
    EXPECT_EQ(bits(in), all) << "in place, d " << d;
  }
}

TEST(CudaKernels, GatedActivations) {
  for (const std::int64_t m : {8, 256, 2056}) {
    constexpr std::int64_t kRows = 5;
    auto x = random_bf16(size(kRows * 2 * m), 7, 4);
    const float extremes[] = {-1e30f, -200, -90, 90, 200, 1e30f, -1e13f, 0};
    for (std::size_t i = 0; i < 8; ++i) {
      x[i] = to_bfloat16(extremes[i]);
      x[size(m) + i] = to_bfloat16(1);
    }
    const DeviceVector<BFloat16> in(x);
    for (const bool gelu : {false, true}) {
      const DeviceVector<BFloat16> out(size(kRows * m));
      launch_gated_activation(raw(in), gelu, kRows, m, raw(out), nullptr);
      const auto got = out.download();
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t c = 0; c < m; ++c) {
          const double g = value(x, r * 2 * m + c), u = value(x, r * 2 * m + m + c);
          const double inner = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
          const double exact = (gelu ? 0.5 * g * (1 + std::tanh(inner)) : g / (1 + std::exp(-g))) * u;
          // GELU's tail in float32: what 1 + tanh loses in double is below the absolute part.
          ASSERT_NEAR(value(got, r * m + c), exact, std::abs(exact) * (kRounding + 2e-5) + 1e-12)
              << (gelu ? "gelu" : "silu") << " m " << m << " row " << r << " channel " << c << " gate " << g
              << " up " << u;
        }
      }
    }
  }
}

TEST(CudaKernels, AddOfAnyLength) {
  for (const std::int64_t n : {1, 7, 8, 9, 2048, 5003}) {
    const auto x = random_bf16(size(n), 1), y = random_bf16(size(n), 2, 8);
    const DeviceVector<BFloat16> dx(x), dy(y);
    launch_add(raw(dx), raw(dy), n, nullptr);
    const auto got = dy.download();
    for (std::int64_t i = 0; i < n; ++i)
      ASSERT_EQ(got[size(i)].bits, to_bfloat16(to_float(x[size(i)]) + to_float(y[size(i)])).bits)
          << n << " elements, element " << i;
  }
}

TEST(CudaKernels, LogitsGetTheirBiasAndCap) {
  constexpr std::int64_t kRows = 3, kColumns = 1003;
  const auto x = random_floats(kRows * kColumns, 3, 40);
  const auto bias = random_bf16(size(kColumns), 4);
  const DeviceVector<BFloat16> device_bias(bias);
  for (const bool with_bias : {false, true}) {
    for (const float cap : {0.0f, 30.0f}) {
      const DeviceVector<float> y(x);
      launch_finish_logits(y.data(), with_bias ? raw(device_bias) : nullptr, cap, kRows, kColumns, nullptr);
      const auto got = y.download();
      for (std::int64_t i = 0; i < kRows * kColumns; ++i) {
        double exact = x[size(i)] + (with_bias ? value(bias, i % kColumns) : 0.0);
        if (cap > 0) exact = cap * std::tanh(exact / cap);
        ASSERT_NEAR(got[size(i)], exact, 1e-6 * std::abs(exact) + 1e-6)
            << "cap " << cap << " bias " << with_bias << " element " << i;
      }
    }
  }
}

TEST(CudaKernels, ConversionsRoundToNearest) {
  const auto x = random_floats(3001, 5, 100);
  const DeviceVector<float> from(x), back(x.size());
  const DeviceVector<BFloat16> to(x.size());
  launch_to_bfloat16(from.data(), raw(to), std::ssize(x), nullptr);
  launch_to_float(raw(to), back.data(), std::ssize(x), nullptr);
  const auto halves = to.download();
  const auto floats = back.download();
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(halves[i].bits, to_bfloat16(x[i]).bits) << i;
    ASSERT_EQ(floats[i], to_float(halves[i])) << i;
  }
}

TEST(CudaKernels, HeadsAreNormedAndRotatedInPlace) {
  for (const int d : {64, 96, 128, 256}) {
    for (const bool token_major : {false, true}) {
      for (const int norms : {0, 1, 2, 3}) {  // bit 0: q, bit 1: k
        constexpr std::int64_t kTokens = 7, kPositions = 50;
        const HeadsOnDevice q(5, kTokens, d, token_major, 1, 2), k(3, kTokens, d, token_major, 2, 2);
        const auto q_before = bits(q.memory), k_before = bits(k.memory);
        const auto q_weight = random_floats(d, 3), k_weight = random_floats(d, 4);
        const auto cos = random_floats(kPositions * d / 2, 5), sin = random_floats(kPositions * d / 2, 6);
        const std::vector<std::int32_t> positions = {0, 49, 3, 3, 17, 8, 31};
        const DeviceVector<float> dq(q_weight), dk(k_weight), dcos(cos), dsin(sin);
        const DeviceVector<std::int32_t> dpositions(positions);
        constexpr float kEps = 1e-5f;
        launch_norm_and_rotate({.q = raw(q.memory),
                                .k = raw(k.memory),
                                .q_head_stride = q.view.head_stride,
                                .q_token_stride = q.view.token_stride,
                                .k_head_stride = k.view.head_stride,
                                .k_token_stride = k.view.token_stride,
                                .q_heads = 5,
                                .k_heads = 3,
                                .tokens = kTokens,
                                .head_dim = d,
                                .q_weight = (norms & 1) != 0 ? dq.data() : nullptr,
                                .k_weight = (norms & 2) != 0 ? dk.data() : nullptr,
                                .eps = kEps,
                                .cos = dcos.data(),
                                .sin = dsin.data(),
                                .positions = dpositions.data()},
                               nullptr);
        for (const bool is_q : {true, false}) {
          const HeadsOnDevice& heads = is_q ? q : k;
          const auto& before = is_q ? q_before : k_before;
          const auto after = heads.memory.download();
          const bool norm = (norms & (is_q ? 1 : 2)) != 0;
          const auto& weight = is_q ? q_weight : k_weight;
          std::size_t untouched = 0;
          for (std::size_t i = 0; i < before.size(); ++i)
            untouched += before[i] == kUntouched && after[i].bits == kUntouched ? 1 : 0;
          EXPECT_EQ(untouched, size(heads.view.heads * kTokens * 8)) << "padding, d " << d;
          for (int h = 0; h < heads.view.heads; ++h) {
            for (std::int64_t t = 0; t < kTokens; ++t) {
              const float* row = heads.row(h, t);
              double squares = 0;
              for (int c = 0; c < d; ++c) squares += static_cast<double>(row[c]) * row[c];
              const double scale = norm ? 1 / std::sqrt(squares / d + kEps) : 1;
              const auto normed = [&](int c) { return row[c] * scale * (norm ? weight[size(c)] : 1.0f); };
              for (int c = 0; c < d; ++c) {
                const std::int64_t at = positions[size(t)] * (d / 2) + c % (d / 2);
                const double own = normed(c) * cos[size(at)];
                const double other =
                    c < d / 2 ? -normed(c + d / 2) * sin[size(at)] : normed(c - d / 2) * sin[size(at)];
                const auto where = h * heads.view.head_stride + t * heads.view.token_stride + c;
                ASSERT_NEAR(to_float(after[size(where)]), own + other,
                            std::abs(own + other) * kRounding + (std::abs(own) + std::abs(other)) * 1e-6)
                    << (is_q ? "q" : "k") << " d " << d << " token-major " << token_major << " norms "
                    << norms << " head " << h << " token " << t << " channel " << c;
              }
            }
          }
        }
      }
    }
  }
}

TEST(CudaKernels, HeadSizesThatAreNotSupportedAreRefused) {
  EXPECT_THROW(launch_norm_and_rotate({.tokens = 1, .head_dim = 80}, nullptr), Error);
}

TEST(CudaKernels, ArgmaxTakesTheLowestIndexAndSeesNaN) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const std::int64_t columns : {1, 5, 31, 2048, 2049, 32003, 152064}) {
    std::vector<std::vector<float>> rows(7, random_floats(columns, 9));
    std::vector<std::int32_t> wanted(rows.size());
    const auto last = size(columns - 1), middle = last / 2;
    rows[0][last] = 1000;
    rows[1][middle] = rows[1][last] = 1000;  // the lower one
    rows[2][middle] = std::nanf("");
    rows[3][last] = -std::nanf("");
    std::fill(rows[4].begin(), rows[4].end(), -kInf);
    rows[5].assign(size(columns), -5);
    rows[5][middle] = -0.0f;
    rows[5][last] = 0.0f;  // equal
    rows[6][last] = kInf;
    std::vector<float> x;
    for (const auto& row : rows) x.insert(x.end(), row.begin(), row.end());
    const DeviceVector<float> dx(x);
    const DeviceVector<unsigned long long> partial(rows.size() * size(argmax_partials(columns)));
    const DeviceVector<ArgmaxResult> results(rows.size());
    launch_argmax({.x = dx.data(),
                   .n = std::ssize(rows),
                   .columns = columns,
                   .partial = partial.data(),
                   .results = results.data()},
                  nullptr);
    const auto got = results.download();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const bool nan = r == 2 || r == 3;
      const auto best = std::max_element(rows[r].begin(), rows[r].end());
      EXPECT_EQ(got[r].index, nan ? -1 : static_cast<int>(best - rows[r].begin()))
          << columns << " columns, row " << r;
      if (nan) {
        EXPECT_TRUE(std::isnan(got[r].value));
      } else {
        EXPECT_EQ(got[r].value, *best) << columns << " columns, row " << r;
      }
    }
  }
}

class Products : public ::testing::Test {
 protected:
  /// Runs one product and compares it; returns y's bytes.
  std::vector<std::byte> check(std::int64_t rows, std::int64_t outputs, std::int64_t inputs, bool bias,
                               bool accumulate, bool float_output) {
    const auto w = random_bf16(size(outputs * inputs), 1), b = random_bf16(size(outputs), 2, 3);
    // x and y are rows of larger tensors, as the last token of a prompt is.
    const auto x = random_bf16(size((rows + 1) * inputs), 3),
               before = random_bf16(size(rows * outputs), 4, 5);
    const DeviceVector<BFloat16> dw(w), db(b), dx(x), y16(before);
    const DeviceVector<float> y32(size(rows * outputs));
    gemm_->run({.x = raw(dx) + inputs,
                .w = dw.data(),
                .bias = bias ? db.data() : nullptr,
                .y = float_output ? static_cast<void*>(y32.data()) : y16.data(),
                .rows = rows,
                .outputs = outputs,
                .inputs = inputs,
                .accumulate = accumulate,
                .float_output = float_output});
    const auto half = y16.download();
    const auto full = y32.download();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t n = 0; n < outputs; ++n) {
        const auto at = size(r * outputs + n);
        double exact = (bias ? value(b, n) : 0) + (accumulate ? value(before, r * outputs + n) : 0);
        double terms = std::abs(exact), sum = 0;
        for (std::int64_t i = 0; i < inputs; ++i) {
          const double product = value(x, (r + 1) * inputs + i) * value(w, n * inputs + i);
          exact += product;
          sum += product;
          terms += std::abs(product);
        }
        const double got = float_output ? full[at] : to_float(half[at]);
        // cuBLASLt may round the product to bfloat16 before it adds what is there, as transformers does.
        const double twice =
            accumulate && rows > kSkinnyRows ? std::abs(sum) + (bias ? std::abs(value(b, n)) : 0) : 0;
        const double allowed = terms * 4e-6 + (float_output ? 0 : (std::abs(exact) + twice) * kRounding);
        EXPECT_NEAR(got, exact, allowed)
            << "[" << rows << ", " << inputs << "] x [" << outputs << ", " << inputs << "]^T, bias " << bias
            << " accumulate " << accumulate << " float " << float_output << ", row " << r << " column " << n;
        if (std::abs(got - exact) > allowed || std::isnan(got)) return {};
      }
    }
    const auto* from = float_output ? reinterpret_cast<const std::byte*>(full.data())
                                    : reinterpret_cast<const std::byte*>(half.data());
    return {from, from + size(rows * outputs) * (float_output ? 4 : 2)};
  }
  std::unique_ptr<GemmRunner> gemm_ = std::make_unique<GemmRunner>(nullptr);
};

TEST_F(Products, EqualDoublePrecisionForEveryShape) {
  for (const std::int64_t rows : {1, 2, 8, 9, 17, 32, 33, 130})
    for (const std::int64_t outputs : {8, 40, 136})
      for (const std::int64_t inputs : {8, 64, 1032, 2056}) check(rows, outputs, inputs, false, false, false);
  check(1, 4608, 3584, true, false, false);
}

TEST_F(Products, AddBiasAndToWhatIsThere) {
  for (const std::int64_t rows : {1, 5, 70})
    for (const bool bias : {false, true})
      for (const bool accumulate : {false, true}) check(rows, 264, 136, bias, accumulate, false);
}

TEST_F(Products, LogitsOfAnyVocabulary) {
  for (const std::int64_t rows : {1, 4, 31})
    for (const std::int64_t vocab : {1, 151, 1000, 1001}) check(rows, vocab, 256, false, false, true);
  for (const std::int64_t vocab : {151, 1000, 1001}) check(40, vocab, 256, false, false, true);
}

TEST_F(Products, TheSameCallGivesTheSameBits) {
  for (const std::int64_t rows : {1, 33}) {
    const auto first = check(rows, 512, 2048, true, true, false);
    EXPECT_EQ(check(rows, 512, 2048, true, true, false), first);
    gemm_ = std::make_unique<GemmRunner>(nullptr);  // another handle, asked anew
    EXPECT_EQ(check(rows, 512, 2048, true, true, false), first);
  }
}

TEST_F(Products, ABatchGivesEachRowTheBitsItGetsAlone) {
  constexpr std::int64_t kOutputs = 200, kInputs = 1544;
  const auto w = random_bf16(size(kOutputs * kInputs), 1), x = random_bf16(size(32 * kInputs), 2),
             bias = random_bf16(size(kOutputs), 3);
  const DeviceVector<BFloat16> dw(w), dx(x), db(bias);
  const auto run = [&](std::int64_t first, std::int64_t rows) {
    const DeviceVector<float> y(size(rows * kOutputs));
    gemm_->run({.x = raw(dx) + first * kInputs,
                .w = dw.data(),
                .bias = db.data(),
                .y = y.data(),
                .rows = rows,
                .outputs = kOutputs,
                .inputs = kInputs,
                .float_output = true});
    return y.download();
  };
  const auto all = run(0, 32);
  for (const std::int64_t batch : {1, 3, 8, 11, 16, 20}) {
    for (std::int64_t first = 0; first + batch <= 32; first += batch) {
      const auto part = run(first, batch);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * kOutputs))
          << "rows " << first << " to " << first + batch;
    }
  }
}

/// Products of few rows with what comes before and after them: x and its norm, a bias, and the product in
/// double precision of what the kernel multiplies, with a bound of its error.
class FewRows : public ::testing::Test {
 protected:
  static constexpr float kEps = 1e-5f;
  void make(std::int64_t rows, std::int64_t outputs, std::int64_t inputs, bool with_bias) {
    rows_ = rows, outputs_ = outputs, inputs_ = inputs, with_bias_ = with_bias;
    x_ = random_bf16(size(rows * inputs), 11, 3);
    w_ = random_bf16(size(outputs * inputs), 12);
    bias_ = random_bf16(size(outputs), 13, 2);
    norm_ = random_floats(inputs, 14);
    for (float& n : norm_) n = 1.0f + n / 3;
    device_x_ = DeviceVector<BFloat16>(x_);
    device_w_ = DeviceVector<BFloat16>(w_);
    device_bias_ = DeviceVector<BFloat16>(bias_);
    device_norm_ = DeviceVector<float>(norm_);
    normed_ = DeviceVector<BFloat16>(x_.size());
    factors_ = DeviceVector<float>(size(rows));
    exact_.assign(size(rows * outputs), 0);
    bound_ = exact_;
    for (std::int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (std::int64_t i = 0; i < inputs; ++i)
        squares += value(x_, r * inputs + i) * value(x_, r * inputs + i);
      const double scale = 1 / std::sqrt(squares / static_cast<double>(inputs) + kEps);
      for (std::int64_t n = 0; n < outputs; ++n) {
        double sum = 0, terms = 0;
        for (std::int64_t i = 0; i < inputs; ++i) {
          const float normed = to_float(x_[size(r * inputs + i)]) * norm_[size(i)];
          const double product = to_float(to_bfloat16(normed)) * value(w_, n * inputs + i);
          sum += product;
          terms += std::abs(product);
        }
        const double added = with_bias ? value(bias_, n) : 0;
        exact_[size(r * outputs + n)] = sum * scale + added;
        bound_[size(r * outputs + n)] = (terms * scale + std::abs(added)) * 4e-6;
      }
    }
  }
  /// Rows [first, first + rows) of it.
  SkinnyProduct product(std::int64_t first, std::int64_t rows) const {
    return {.x = raw(device_x_) + first * inputs_,
            .w = raw(device_w_),
            .bias = with_bias_ ? raw(device_bias_) : nullptr,
            .norm = device_norm_.data(),
            .eps = kEps,
            .normed = raw(normed_),
            .factors = factors_.data(),
            .rows = static_cast<int>(rows),
            .inputs = static_cast<int>(inputs_),
            .outputs = outputs_};
  }
  double exact(std::int64_t row, std::int64_t output) const { return exact_[size(row * outputs_ + output)]; }
  double bound(std::int64_t row, std::int64_t output) const { return bound_[size(row * outputs_ + output)]; }

  std::int64_t rows_ = 0, outputs_ = 0, inputs_ = 0;
  bool with_bias_ = false;
  std::vector<BFloat16> x_, w_, bias_;
  std::vector<float> norm_;
  DeviceVector<BFloat16> device_x_, device_w_, device_bias_, normed_;
  DeviceVector<float> device_norm_, factors_;
  std::vector<double> exact_, bound_;
};

TEST_F(FewRows, AreNormedOnTheirWay) {
  for (const std::int64_t rows : {1, 8, 11, 32}) {
    for (const std::int64_t inputs : {8, 264, 2056}) {
      for (const float cap : {0.0f, 3.0f}) {
        make(rows, 41, inputs, rows % 2 == 1);
        const DeviceVector<float> y(size(rows * outputs_));
        launch_skinny(product(0, rows), {.y = y.data(), .float_output = true, .cap = cap}, nullptr);
        const auto got = y.download();
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t n = 0; n < outputs_; ++n) {
            const double wanted = cap > 0 ? cap * std::tanh(exact(r, n) / cap) : exact(r, n);
            ASSERT_NEAR(got[size(r * outputs_ + n)], wanted, bound(r, n) + 1e-6)
                << rows << " rows, " << inputs << " inputs, cap " << cap << ", row " << r << " column " << n;
          }
      }
    }
  }
}

TEST_F(FewRows, OfManyOutputs) {
  for (const std::int64_t rows : {3, 12, 20}) {
    make(rows, 16421, 264, true);
    const DeviceVector<float> y(size(rows * outputs_));
    launch_skinny(product(0, rows), {.y = y.data(), .float_output = true}, nullptr);
    const auto got = y.download();
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t n = 0; n < outputs_; ++n)
        ASSERT_NEAR(got[size(r * outputs_ + n)], exact(r, n), bound(r, n) + 1e-6)
            << rows << " rows, row " << r << " column " << n;
    const DeviceVector<float> alone(size(outputs_));
    launch_skinny(product(rows - 1, 1), {.y = alone.data(), .float_output = true}, nullptr);
    const auto last = alone.download();
    EXPECT_TRUE(std::equal(last.begin(), last.end(), got.end() - outputs_)) << rows << " rows";
  }
}

TEST_F(FewRows, AreGated) {
  for (const std::int64_t rows : {1, 9, 31}) {
    for (const std::int64_t m : {8, 40, 72}) {
      for (const bool gelu : {false, true}) {
        make(rows, 2 * m, 520, rows == 9);
        const DeviceVector<BFloat16> out(size(rows * m));
        launch_skinny_gated(product(0, rows), {.out = raw(out), .gelu = gelu}, nullptr);
        const auto got = out.download();
        for (std::int64_t r = 0; r < rows; ++r)
          for (std::int64_t n = 0; n < m; ++n) {
            const double g = exact(r, n), u = exact(r, m + n);
            const double inner = std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
            const double activated = gelu ? 0.5 * g * (1 + std::tanh(inner)) : g / (1 + std::exp(-g));
            const double wanted = activated * u;
            const double allowed = std::abs(wanted) * (kRounding + 2e-5) + 2 * bound(r, n) * std::abs(u) +
                                   bound(r, m + n) * std::abs(activated) + 1e-12;
            ASSERT_NEAR(value(got, r * m + n), wanted, allowed)
                << (gelu ? "gelu" : "silu") << ", " << rows << " rows, m " << m << ", row " << r << " column "
                << n;
          }
      }
    }
  }
}

// Long rows: few of them fit into a block or a cluster at once. Units of 16 outputs are left over.
TEST_F(FewRows, GetTheSameBitsInClustersAndWithout) {
  make(31, 200, 6152, true);
  const auto run = [&](std::int64_t first, std::int64_t rows, bool clusters) {
    const DeviceVector<float> y(size(rows * outputs_));
    SkinnyProduct few = product(first, rows);
    few.clusters = clusters;
    launch_skinny(few, {.y = y.data(), .float_output = true}, nullptr);
    return y.download();
  };
  const auto all = run(0, 31, true);
  for (std::int64_t r = 0; r < 31; ++r)
    for (std::int64_t n = 0; n < outputs_; ++n)
      ASSERT_NEAR(all[size(r * outputs_ + n)], exact(r, n), 2 * bound(r, n))
          << "row " << r << " column " << n;
  const auto expect_part = [&](std::int64_t first, std::int64_t rows, bool clusters) {
    const auto part = run(first, rows, clusters);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * outputs_))
        << rows << " rows from " << first << (clusters ? ", in clusters" : "");
  };
  for (const bool clusters : {true, false}) {
    expect_part(30, 1, clusters);
    expect_part(17, 8, clusters);
    expect_part(3, 14, clusters);
    expect_part(0, 31, clusters);
  }
}

TEST_F(FewRows, GetTheBitsTheyGetAlone) {
  make(32, 96, 1544, true);
  const auto linear = [&](std::int64_t first, std::int64_t rows) {
    const DeviceVector<float> y(size(rows * outputs_));
    launch_skinny(product(first, rows), {.y = y.data(), .float_output = true}, nullptr);
    return y.download();
  };
  const auto gated = [&](std::int64_t first, std::int64_t rows) {
    const DeviceVector<BFloat16> y(size(rows * outputs_ / 2));
    launch_skinny_gated(product(first, rows), {.out = raw(y)}, nullptr);
    return bits(y);
  };
  const auto all = linear(0, 32);
  const auto all_gated = gated(0, 32);
  for (const std::int64_t batch : {1, 7, 8, 16}) {
    for (std::int64_t first = 0; first + batch <= 32; first += batch) {
      const auto part = linear(first, batch);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * outputs_))
          << "rows " << first << " to " << first + batch;
      const auto part_gated = gated(first, batch);
      ASSERT_TRUE(std::equal(part_gated.begin(), part_gated.end(), all_gated.begin() + first * outputs_ / 2))
          << "gated, rows " << first << " to " << first + batch;
    }
  }
}

/// A step's caches: kv heads with 0, 1, a page's end, a page's begin and more tokens, on pages in no order.
struct NewestRows {
  static constexpr int kQHeads = 5, kKvHeads = 2;
  NewestRows(std::int64_t rows, int head_dim)
      : d(head_dim), page_elements(2 * kPageTokens * head_dim + 24), q(size(rows * kQHeads * head_dim)) {
    constexpr std::int64_t kTokens[] = {1, 16, 17, 0, 40, 33, 32};
    std::vector<DevicePagedHead> on_device;
    for (std::int64_t i = 0; i < rows * kKvHeads; ++i) {
      tokens.push_back(kTokens[size(i) % std::size(kTokens)]);
      for (std::int64_t p = 0; p < kPages; ++p)
        ids.push_back(static_cast<std::int32_t>((i * kPages + p) * 7 % (rows * kKvHeads * kPages)));
    }
    device_ids = DeviceVector<std::int32_t>(ids);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      on_device.push_back({.page_ids = device_ids.data() + i * size(kPages), .tokens = tokens[i]});
    heads = DeviceVector<DevicePagedHead>(on_device);
    BFloat16 untouched;
    untouched.bits = kUntouched;
    pool = DeviceVector<BFloat16>(
        std::vector<BFloat16>(size(rows * kKvHeads * kPages * page_elements), untouched));
  }
  NewestSlots slots() const {
    return {.heads = heads.data(), .pool = raw(pool), .page_elements = page_elements, .q = raw(q)};
  }
  /// Element c of the newest row of `head` (q's, then k's, then v's), or -1.
  std::int64_t pool_at(std::int64_t row, int head, int c) const {
    const bool is_v = head >= kQHeads + kKvHeads;
    const std::size_t cached = size(row * kKvHeads + head - kQHeads - (is_v ? kKvHeads : 0));
    if (tokens[cached] == 0) return -1;
    const std::int64_t slot = tokens[cached] - 1,
                       page = ids[cached * size(kPages) + size(slot / kPageTokens)];
    return page * page_elements + ((is_v ? kPageTokens : 0) + slot % kPageTokens) * d + c;
  }
  /// Compares all of q and of the pool.
  template <class Wanted, class Allowed>
  void check(std::int64_t rows, const Wanted& wanted, const Allowed& allowed) const {
    const auto got_q = q.download(), got = pool.download();
    std::size_t written = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int h = 0; h < kQHeads + 2 * kKvHeads; ++h) {
        for (int c = 0; c < d; ++c) {
          const std::int64_t at = h < kQHeads ? (r * kQHeads + h) * d + c : pool_at(r, h, c);
          if (at < 0) continue;
          written += h < kQHeads ? 0 : 1;
          ASSERT_NEAR(value(h < kQHeads ? got_q : got, at), wanted(r, h, c), allowed(r, h, c))
              << rows << " rows, head_dim " << d << ", row " << r << " head " << h << " channel " << c;
        }
      }
    }
    const auto untouched =
        std::count_if(got.begin(), got.end(), [](BFloat16 x) { return x.bits == kUntouched; });
    EXPECT_EQ(size(untouched), got.size() - written);
  }

  static constexpr std::int64_t kPages = 3;
  int d;
  std::int64_t page_elements;
  std::vector<std::int64_t> tokens;
  std::vector<std::int32_t> ids;
  DeviceVector<std::int32_t> device_ids;
  DeviceVector<DevicePagedHead> heads;
  DeviceVector<BFloat16> pool, q;
};

TEST_F(FewRows, AreRotatedIntoTheCache) {
  constexpr std::int64_t kPositions = 40;
  constexpr int kHeads = NewestRows::kQHeads + NewestRows::kKvHeads;
  for (const std::int64_t rows : {1, 10, 29}) {
    for (const int d : {64, 96, 128, 256}) {
      const int half = d / 2;
      make(rows, std::int64_t{kHeads + NewestRows::kKvHeads} * d, 72, rows == 10);
      const auto cos = random_floats(kPositions * half, 5), sin = random_floats(kPositions * half, 6);
      std::vector<std::int32_t> positions;
      for (std::int64_t r = 0; r < rows; ++r)
        positions.push_back(static_cast<std::int32_t>(r * 13 % kPositions));
      const DeviceVector<float> dcos(cos), dsin(sin);
      const DeviceVector<std::int32_t> dpositions(positions);
      const NewestRows newest(rows, d);
      launch_skinny_cache(product(0, rows),
                          {.cos = dcos.data(),
                           .sin = dsin.data(),
                           .positions = dpositions.data(),
                           .to = newest.slots(),
                           .q_heads = NewestRows::kQHeads,
                           .kv_heads = NewestRows::kKvHeads,
                           .head_dim = d},
                          nullptr);
      // cos and sin of the channel, and the head's own column and its partner's.
      struct Turn {
        double cos, sin;
        std::int64_t own, other;
      };
      const auto turn = [&](std::int64_t r, int h, int c) {
        const auto at = size(positions[size(r)] * half + c % half);
        const std::int64_t own = std::int64_t{h} * d + c;
        if (h >= kHeads) return Turn{1, 0, own, own};
        return Turn{cos[at], c < half ? -sin[at] : sin[at], own, c < half ? own + half : own - half};
      };
      newest.check(
          rows,
          [&](std::int64_t r, int h, int c) {
            const Turn t = turn(r, h, c);
            return exact(r, t.own) * t.cos + exact(r, t.other) * t.sin;
          },
          [&](std::int64_t r, int h, int c) {
            const Turn t = turn(r, h, c);
            const double own = exact(r, t.own) * t.cos, other = exact(r, t.other) * t.sin;
            return std::abs(own + other) * kRounding + (std::abs(own) + std::abs(other)) * 1e-6 +
                   bound(r, t.own) * std::abs(t.cos) + bound(r, t.other) * std::abs(t.sin) + 1e-12;
          });
    }
  }
}

TEST(CudaKernels, NormedHeadsGoToTheCacheAsTheyGoInPlace) {
  constexpr std::int64_t kRows = 9, kPositions = 40;
  constexpr int kQ = NewestRows::kQHeads, kKv = NewestRows::kKvHeads;
  for (const int d : {64, 96, 128, 256}) {
    for (const bool norms : {false, true}) {
      for (const bool rotates : {false, true}) {
        const std::int64_t stride = (kQ + 2 * kKv) * d;
        const auto qkv = random_bf16(size(kRows * stride), 3, 2);
        const DeviceVector<BFloat16> in(qkv), in_place(qkv);
        const DeviceVector<float> q_weight(random_floats(d, 4)), k_weight(random_floats(d, 5));
        const DeviceVector<float> cos(random_floats(kPositions * d / 2, 6)),
            sin(random_floats(kPositions * d / 2, 7));
        const DeviceVector<std::int32_t> positions(std::vector<std::int32_t>{0, 39, 3, 3, 17, 8, 31, 1, 2});
        const NewestRows newest(kRows, d);
        RotateArgs args{.q = raw(in),
                        .k = raw(in) + kQ * d,
                        .q_head_stride = d,
                        .q_token_stride = stride,
                        .k_head_stride = d,
                        .k_token_stride = stride,
                        .q_heads = kQ,
                        .k_heads = kKv,
                        .tokens = kRows,
                        .head_dim = d,
                        .q_weight = norms ? q_weight.data() : nullptr,
                        .k_weight = norms ? k_weight.data() : nullptr,
                        .eps = 1e-5f,
                        .cos = rotates ? cos.data() : nullptr,
                        .sin = rotates ? sin.data() : nullptr,
                        .positions = positions.data()};
        launch_rotate_to_cache({.rotate = args,
                                .v = raw(in) + (kQ + kKv) * d,
                                .v_head_stride = d,
                                .v_token_stride = stride,
                                .to = newest.slots()},
                               nullptr);
        EXPECT_EQ(bits(in), bits(DeviceVector<BFloat16>(qkv))) << "the input stays";
        args.q = raw(in_place);
        args.k = raw(in_place) + kQ * d;
        launch_norm_and_rotate(args, nullptr);
        const auto wanted = in_place.download();
        newest.check(
            kRows,
            [&](std::int64_t r, int h, int c) { return value(wanted, r * stride + std::int64_t{h} * d + c); },
            [](std::int64_t, int, int) { return 0.0; });
      }
    }
  }
}

class Loading : public ::testing::Test {
 protected:
  CudaStream stream_;
  PinnedRing ring_{stream_};
  ThreadPool pool_{2};
  WeightLoader loader_{ring_, pool_};
};

TEST_F(Loading, RoundsEveryTypeFromAnyAddress) {
  // All 65536 half-precision patterns, and floats that round up, down, to even, over and under.
  std::vector<Float16> halves;
  for (int i = 0; i < 65536; ++i) halves.push_back({static_cast<std::uint16_t>(i)});
  std::vector<float> floats = random_floats(65536 - 8, 3, 50);
  for (float& f : floats) f *= 1.0001f;
  for (const std::uint32_t pattern : {0x3F808000u, 0x3F818000u, 0x3F80FFFFu, 0x7F7FFFFFu, 0x7F800000u,
                                      0xFFC00001u, 0x7F800001u, 0x00000001u})
    floats.push_back(std::bit_cast<float>(pattern));
  const auto bf = random_bf16(65536, 4);
  const auto load = [&](const void* values, DType dtype, const auto& wanted) {
    std::vector<std::byte> file(65536 * size_of(dtype) + 3);
    std::memcpy(file.data() + 3, values, 65536 * size_of(dtype));  // an odd address
    const DeviceVector<BFloat16> out(std::size_t{65536});
    loader_.load({.data = file.data() + 3, .dtype = dtype, .rows = 64, .cols = 1024, .row_stride = 1024},
                 raw(out));
    const auto got = out.download();
    for (std::size_t i = 0; i < 65536; ++i) {
      const BFloat16 exact = to_bfloat16(wanted(i));
      const bool same =
          got[i].bits == exact.bits || (std::isnan(to_float(exact)) && std::isnan(to_float(got[i])));
      ASSERT_TRUE(same) << name_of(dtype) << " element " << i << " (" << wanted(i) << ") got " << std::hex
                        << got[i].bits << ", wanted " << exact.bits;
    }
  };
  load(halves.data(), DType::kF16, [&](std::size_t i) { return to_float(halves[i]); });
  load(floats.data(), DType::kF32, [&](std::size_t i) { return floats[i]; });
  load(bf.data(), DType::kBF16, [&](std::size_t i) { return to_float(bf[i]); });
}

TEST_F(Loading, SlicesOfColumnsAndPiecesOfLargeMatrices) {
  // 9.2 million elements: three pieces, whose borders fall into rows.
  constexpr std::int64_t kRows = 1023, kCols = 9000, kStride = 9010, kFirst = 5;
  const auto file = random_bf16(size(kRows * kStride), 5);
  const DeviceVector<BFloat16> out(size(kRows * kCols));
  loader_.load({.data = file.data() + kFirst,
                .dtype = DType::kBF16,
                .rows = kRows,
                .cols = kCols,
                .row_stride = kStride},
               raw(out));
  const auto got = out.download();
  for (std::int64_t r = 0; r < kRows; ++r)
    ASSERT_EQ(std::memcmp(got.data() + r * kCols, file.data() + r * kStride + kFirst, size(kCols) * 2), 0)
        << "row " << r;
}

TEST_F(Loading, VectorsWithAnOffset) {
  const auto x = random_bf16(3001, 6);
  const DeviceVector<float> out(x.size());
  loader_.load_floats({.data = x.data(), .dtype = DType::kBF16, .rows = 1, .cols = 3001, .row_stride = 3001},
                      1.0f, out.data());
  const auto got = out.download();
  for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(got[i], to_float(x[i]) + 1.0f) << i;
}

TEST_F(Loading, TheRingHandsOutMemoryAgainOnlyWhenItsCopyHasPassed) {
  constexpr std::size_t kBytes = 1 << 20, kCopies = 40;
  const DeviceVector<std::uint8_t> out(kBytes * kCopies);
  for (std::size_t i = 0; i < kCopies; ++i) {
    std::memset(ring_.next(kBytes), static_cast<int>(i), kBytes);
    ring_.send(out.data() + i * kBytes, kBytes);
  }
  const auto got = out.download();
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], i / kBytes) << i;
}

std::size_t free_memory() {
  std::size_t free = 0, total = 0;
  LACUNA_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}
void fill(const KvMemory& memory, std::size_t begin, std::size_t end, int with) {
  LACUNA_CUDA(cudaMemset(static_cast<std::byte*>(memory.base()) + begin, with, end - begin));
}
int byte_at(const KvMemory& memory, std::size_t at) {
  std::uint8_t value = 0;
  LACUNA_CUDA(cudaMemcpy(&value, static_cast<std::byte*>(memory.base()) + at, 1, cudaMemcpyDeviceToHost));
  return value;
}

TEST(CudaKvMemory, GrowsAndGivesBackAtOneAddress) {
  constexpr std::size_t kPiece = kKvPieceBytes, kBytes = 6 * kPiece + 1000;
  const auto memory = make_cuda_kv_memory(kBytes);
  EXPECT_EQ(memory->bytes(), kBytes);
  const std::size_t before = free_memory();
  memory->commit(0);
  EXPECT_EQ(free_memory(), before);
  memory->commit(1);
  fill(*memory, 0, kPiece, 1);
  memory->commit(2 * kPiece + 1);
  fill(*memory, kPiece, 3 * kPiece, 2);
  EXPECT_EQ(byte_at(*memory, kPiece - 1), 1) << "what was there stays";
  memory->commit(kBytes);
  fill(*memory, 3 * kPiece, kBytes, 3);
  EXPECT_EQ(byte_at(*memory, kPiece), 2);
  EXPECT_EQ(byte_at(*memory, kBytes - 1), 3);
  EXPECT_THROW(memory->commit(kBytes + 1), Error);

  const std::size_t full = free_memory();
  memory->discard(kPiece + 5, kBytes - kPiece - 5);  // pieces 2 to 6
  EXPECT_GE(free_memory(), full + 4 * kPiece) << "memory goes back to the device";
  EXPECT_EQ(byte_at(*memory, kPiece), 2) << "a piece that is needed in part stays";
  memory->commit(kBytes);
  fill(*memory, 2 * kPiece, kBytes, 4);
  EXPECT_EQ(byte_at(*memory, kBytes - 1), 4);
  EXPECT_EQ(byte_at(*memory, 0), 1);
}

TEST(CudaKvMemory, AFullDeviceIsAnErrorThatLosesNothing) {
  constexpr std::size_t kPiece = kKvPieceBytes;
  const auto memory = make_cuda_kv_memory(std::size_t{1} << 40);  // more than any device has
  memory->commit(kPiece);
  fill(*memory, 0, kPiece, 7);
  const std::size_t free = free_memory(), left = 3 * kPiece;
  ASSERT_GT(free, 2 * left);
  const Buffer others(free - left, Buffer::Kind::kDevice);
  std::size_t committed = kPiece;
  try {
    for (; committed < 100 * kPiece; committed += kPiece) memory->commit(committed + kPiece);
    FAIL() << committed << " bytes with " << left << " left";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kResource) << e.what();
    EXPECT_NE(std::string(e.what()).find("KV cache"), std::string::npos) << e.what();
  }
  fill(*memory, kPiece, committed, 8);
  EXPECT_EQ(byte_at(*memory, 0), 7);
  EXPECT_THROW(Buffer(std::size_t{1} << 50, Buffer::Kind::kDevice), Error);
  EXPECT_EQ(byte_at(*memory, committed - 1), committed == kPiece ? 7 : 8) << "the device works on";
}

}  // namespace
}  // namespace lacuna
