// What the GPU's selectors and evictors choose on real-valued inputs. Exact scores are computed here in
// double from the same bfloat16 tensors, by plain loops. The GPU's float32 scores differ from them by a
// bounded relative error, so two sets may differ where scores lie that close to the edge of the choice, and
// nowhere else: whatever was chosen scores at least the k-th exact score minus epsilon, whatever was left out
// at most that plus epsilon, forced entries are in, and there are as many as there should be.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/cuda/prefill_methods.h"
#include "attention/methods/eviction.h"
#include "tests/attention/cuda/method_test_util.h"

namespace lacuna {
namespace {

using testing::ContextOwner;
using testing::HeadsOnDevice;

#ifdef LACUNA_EMULATED
constexpr std::int64_t kTokens = 333, kOracleTokens = 260;
#else
constexpr std::int64_t kTokens = 4096 + 37, kOracleTokens = 2048 + 37;
#endif
constexpr double kUnit = 0x1p-24;  // of float32: half the distance of neighbours relative to their size

struct Shape {
  int q_heads, kv_heads, head_dim;
};
constexpr Shape kShapes[] = {{4, 2, 64}, {7, 1, 128}};

/// A random layer: the device's tensors and their values.
class RandomLayer {
 public:
  RandomLayer(const Shape& s, std::int64_t tokens, std::uint64_t seed)
      : q(s.q_heads, tokens, s.head_dim, true, 3 * seed + 1),
        k(s.kv_heads, tokens, s.head_dim, true, 3 * seed + 2),
        v(s.kv_heads, tokens, s.head_dim, true, 3 * seed + 3) {
    info.layer = 1;
    info.layers = 4;
    info.q_heads = info.q_heads_total = s.q_heads;
    info.kv_heads = info.kv_heads_total = s.kv_heads;
    info.head_dim = s.head_dim;
    info.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    product = largest_norm(q) * largest_norm(k);
  }
  PrefillInput input() {
    PrefillInput made;
    made.q = q.view, made.k = k.view, made.v = v.view;
    made.info = info;
    made.communicator = &self_;
    made.seed = 7;
    return made;
  }
  std::int64_t tokens() const { return q.view.tokens; }
  double score(int head, std::int64_t row, std::int64_t key) const {
    const float *a = q.row(head, row), *b = k.row(info.kv_head_of(head), key);
    double sum = 0;
    for (int c = 0; c < info.head_dim; ++c) sum += static_cast<double>(a[c]) * b[c];
    return sum * info.scale;
  }
  /// Softmax weights of a row over the keys up to it.
  std::vector<double> weights(int head, std::int64_t row) const {
    std::vector<double> w(static_cast<std::size_t>(row + 1));
    for (std::int64_t j = 0; j <= row; ++j) w[static_cast<std::size_t>(j)] = score(head, row, j);
    softmax(w);
    return w;
  }
  static void softmax(std::vector<double>& x) {
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& value : x) sum += value = std::exp(value - top);
    for (double& value : x) value /= sum;
  }
  /// Relative error of sums of `rows` softmax weights whose scores are float32 sums of `terms` products: the
  /// error of a score in numerator and denominator, the sums of the denominator and of the rows, a few units
  /// for exponential and division.
  double weight_error(std::int64_t terms, std::int64_t rows) const {
    return kUnit * (2.0 * static_cast<double>(terms) * info.scale * product +
                    static_cast<double>(tokens() + rows) + 16);
  }

  LayerInfo info;
  HeadsOnDevice q, k, v;
  double product = 0;  ///< No |q| |k| is larger.

 private:
  static double largest_norm(const HeadsOnDevice& x) {
    double most = 0;
    for (int h = 0; h < x.view.heads; ++h)
      for (std::int64_t t = 0; t < x.view.tokens; ++t) {
        double sum = 0;
        for (int c = 0; c < x.view.head_dim; ++c) sum += static_cast<double>(x.row(h, t)[c]) * x.row(h, t)[c];
        most = std::max(most, std::sqrt(sum));
      }
    return most;
  }
  SelfCommunicator self_;
};

// --- Choices
// --------------------------------------------------------------------------------------------------------

/// Scores with the entries that are always in.
struct Scored {
  std::vector<double> scores;
  std::vector<bool> forced;
  explicit Scored(std::vector<double> s) : scores(std::move(s)), forced(scores.size()) {}
  void force(std::int64_t begin, std::int64_t end) {
    const auto n = static_cast<std::int64_t>(scores.size());
    for (std::int64_t i = std::max<std::int64_t>(0, begin); i < std::min(n, end); ++i)
      forced[static_cast<std::size_t>(i)] = true;
  }
  /// The score that entries beside the forced ones need to be among k in all.
  double edge(std::int64_t k) const {
    std::vector<double> rest;
    for (std::size_t i = 0; i < scores.size(); ++i)
      if (!forced[i]) rest.push_back(scores[i]);
    const std::int64_t places = k - (std::ssize(scores) - std::ssize(rest));
    if (places <= 0) return INFINITY;
    if (places >= std::ssize(rest)) return -INFINITY;
    std::nth_element(rest.begin(), rest.begin() + (places - 1), rest.end(), std::greater<>());
    return rest[static_cast<std::size_t>(places - 1)];
  }
};

/// Absolute where scores may be negative, relative to the edge where they are weights.
struct Epsilon {
  double absolute = 0, relative = 0;
  double at(double edge) const {
    return absolute + (std::isfinite(edge) ? 2 * relative * std::abs(edge) : 0);
  }
};

void expect_best(std::span<const std::int32_t> chosen, const Scored& exact, std::int64_t k, Epsilon epsilon) {
  const auto n = static_cast<std::int64_t>(exact.scores.size());
  const std::int64_t forced = std::count(exact.forced.begin(), exact.forced.end(), true);
  EXPECT_EQ(std::ssize(chosen), std::min(n, std::max(k, forced)));
  std::vector<bool> in(exact.scores.size());
  for (const std::int32_t i : chosen) {
    ASSERT_GE(i, 0);
    ASSERT_LT(i, n);
    EXPECT_FALSE(in[static_cast<std::size_t>(i)]) << i << " twice";
    in[static_cast<std::size_t>(i)] = true;
  }
  const double edge = exact.edge(k), slack = epsilon.at(edge);
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (exact.forced[i]) {
      EXPECT_TRUE(in[i]) << "entry " << i << " is always in";
    } else if (in[i]) {
      EXPECT_GE(exact.scores[i], edge - slack) << "entry " << i << " should not be in";
    } else {
      EXPECT_LE(exact.scores[i], edge + slack) << "entry " << i << " should be in";
    }
  }
}

/// Entries that any correct choice has, and those that one may have.
struct Bounds {
  std::vector<bool> must, may;
  explicit Bounds(std::size_t n) : must(n), may(n) {}
  /// The best `least` to `most` entries.
  Bounds(const Scored& exact, std::int64_t least, std::int64_t most, Epsilon epsilon)
      : Bounds(exact.scores.size()) {
    const double high = exact.edge(least), low = exact.edge(most);
    for (std::size_t i = 0; i < must.size(); ++i) {
      must[i] = exact.forced[i] || (exact.scores[i] > high + epsilon.at(high));
      may[i] = exact.forced[i] || exact.scores[i] >= low - epsilon.at(low);
    }
  }
  void add(const Bounds& other) {
    for (std::size_t i = 0; i < must.size(); ++i) {
      must[i] = must[i] || other.must[i];
      may[i] = may[i] || other.may[i];
    }
  }
  /// `width`: entries that one open choice leaves open.
  void expect(const std::vector<bool>& got, std::int64_t width = 1) const {
    ASSERT_EQ(got.size(), must.size());
    std::int64_t open = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      open += may[i] && !must[i];
      if (must[i]) {
        EXPECT_TRUE(got[i]) << "entry " << i << " should be in";
      }
      if (!may[i]) {
        EXPECT_FALSE(got[i]) << "entry " << i << " should not be in";
      }
    }
    EXPECT_LE(open, width * (4 + std::ssize(got) / 16)) << "entries that this test says nothing about";
  }
};

/// How long the shortest prefix of the sorted scores with a sum above `mass` may be, when sums have a
/// relative error.
std::pair<std::int64_t, std::int64_t> prefix_range(std::vector<double> scores, double mass, double error) {
  std::sort(scores.begin(), scores.end(), std::greater<>());
  const auto length = [&](double target) {
    double sum = 0;
    for (std::size_t n = 0; n < scores.size(); ++n) {
      sum += scores[n];
      if (sum > target) return static_cast<std::int64_t>(n) + 1;
    }
    return static_cast<std::int64_t>(scores.size());
  };
  return {length(mass * (1 - error)), length(mass * (1 + error))};
}

struct WindowSums {
  std::vector<double> columns, diagonals, maxima;
};
WindowSums window_sums(const RandomLayer& layer, int head, std::int64_t window) {
  const std::int64_t tokens = layer.tokens();
  const auto n = static_cast<std::size_t>(tokens);
  WindowSums sums{.columns = std::vector<double>(n),
                  .diagonals = std::vector<double>(n),
                  .maxima = std::vector<double>(n)};
  for (std::int64_t row = tokens - std::min(window, tokens); row < tokens; ++row) {
    const auto w = layer.weights(head, row);
    for (std::size_t j = 0; j < w.size(); ++j) {
      sums.columns[j] += w[j];
      sums.diagonals[w.size() - 1 - j] += w[j];
      sums.maxima[j] = std::max(sums.maxima[j], w[j]);
    }
  }
  return sums;
}

/// Means over blocks of rows, [blocks][head_dim].
std::vector<std::vector<double>> block_means(const HeadsOnDevice& x, int head, int block) {
  const std::int64_t tokens = x.view.tokens;
  std::vector<std::vector<double>> means;
  for (std::int64_t begin = 0; begin < tokens; begin += block) {
    const std::int64_t end = std::min(tokens, begin + block);
    std::vector<double> mean(static_cast<std::size_t>(x.view.head_dim));
    for (std::int64_t t = begin; t < end; ++t)
      for (std::size_t c = 0; c < mean.size(); ++c)
        mean[c] += static_cast<double>(x.row(head, t)[c]) / static_cast<double>(end - begin);
    means.push_back(std::move(mean));
  }
  return means;
}
double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

TileLists select(const std::string& json, RandomLayer& layer) {
  ContextOwner owner;
  TileLists lists;
  AttentionCounts counts;
  make_cuda_prefill_selector(testing::method(Slot::kPrefill, json), owner.context)
      ->select(layer.input(), lists, counts);
  return lists;
}

/// Keys that the ranges of a row block cover.
std::vector<bool> covered(const TileLists& lists, int head, std::int64_t row_block) {
  std::vector<bool> keys(static_cast<std::size_t>(std::min(lists.tokens, (row_block + 1) * lists.row_block)));
  for (const KeyRange& range : lists.ranges_of(head, row_block))
    for (std::int64_t j = range.start;
         j < std::min<std::int64_t>(range.start + range.width, std::ssize(keys)); ++j)
      keys[static_cast<std::size_t>(j)] = true;
  return keys;
}
/// The same as key blocks, of which the lists must hold all or nothing.
std::vector<bool> covered_blocks(const TileLists& lists, int head, std::int64_t row_block) {
  const std::vector<bool> keys = covered(lists, head, row_block);
  std::vector<bool> blocks(static_cast<std::size_t>(row_block + 1));
  for (std::size_t j = 0; j < keys.size(); ++j) {
    const std::size_t b = j / static_cast<std::size_t>(lists.row_block);
    if (j % static_cast<std::size_t>(lists.row_block) == 0) blocks[b] = keys[j];
    EXPECT_EQ(keys[j], blocks[b]) << "part of block " << b;
  }
  return blocks;
}
std::vector<std::int32_t> indices_of(const std::vector<bool>& in) {
  std::vector<std::int32_t> list;
  for (std::size_t i = 0; i < in.size(); ++i)
    if (in[i]) list.push_back(static_cast<std::int32_t>(i));
  return list;
}

// --- Prefill
// --------------------------------------------------------------------------------------------------------

constexpr int kSinks = 4, kNearOffsets = 64;

Scored scored_from_front(std::vector<double> scores, int forced) {
  Scored scored(std::move(scores));
  scored.force(0, forced);
  return scored;
}

/// Keys that row blocks of 64 visit for diagonals: of `offsets`, [m - o, m - o + 64).
std::vector<bool> slash_keys(const std::vector<bool>& offsets, std::int64_t m, std::int64_t tokens) {
  std::vector<bool> keys(static_cast<std::size_t>(std::min(tokens, m + 64)));
  for (std::int64_t o = 0; o < std::min<std::int64_t>(std::ssize(offsets), m + 64); ++o) {
    if (!offsets[static_cast<std::size_t>(o)]) continue;
    const std::int64_t start = std::max<std::int64_t>(m - o, 0);
    for (std::int64_t j = start; j < std::min<std::int64_t>(start + 64, std::ssize(keys)); ++j)
      keys[static_cast<std::size_t>(j)] = true;
  }
  return keys;
}

TEST(RandomSets, VerticalSlash) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 1);
    for (const auto& [verticals, slashes, window] :
         {std::array{40, 70, 32}, std::array{100, 66, 150}, std::array{5, 80, 1}}) {
      SCOPED_TRACE(fmt::format("head_dim {}, {} verticals, {} slashes, window {}", shape.head_dim, verticals,
                               slashes, window));
      const TileLists lists = select(
          fmt::format(
              R"({{"vertical_slash": {{"verticals": {}, "slashes": {}, "window": {}, "tiles": "exact"}}}})",
              verticals, slashes, window),
          layer);
      const Epsilon epsilon{.relative = layer.weight_error(shape.head_dim, window)};
      for (int head = 0; head < shape.q_heads; ++head) {
        SCOPED_TRACE(head);
        const WindowSums sums = window_sums(layer, head, window);
        expect_best(lists.columns_of(head), scored_from_front(sums.columns, kSinks), verticals, epsilon);
        // Diagonals are seen by the keys that they cover.
        const Bounds offsets(scored_from_front(sums.diagonals, kNearOffsets), slashes, slashes, epsilon);
        for (std::int64_t block = 0; block < lists.row_blocks(); block += 3) {
          Bounds keys(covered(lists, head, block).size());
          keys.must = slash_keys(offsets.must, block * 64, kTokens);
          keys.may = slash_keys(offsets.may, block * 64, kTokens);
          keys.expect(covered(lists, head, block), 64);
        }
      }
    }
  }
}

TEST(RandomSets, BlockSparse) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 2);
    for (const auto& [block, top] :
         {std::pair{16, 6}, std::pair{32, 5}, std::pair{64, 4}, std::pair{128, 1}, std::pair{16, 12}}) {
      SCOPED_TRACE(fmt::format("head_dim {}, {} blocks of {}", shape.head_dim, top, block));
      const TileLists lists = select(
          fmt::format(R"({{"block_sparse": {{"chunk_size": {}, "top_chunks": {}}}}})", block, top), layer);
      ASSERT_EQ(lists.row_block, block);
      // Means of float32 are multiplied as two bfloat16 each: 2^-16 of what they hold.
      const Epsilon epsilon{.absolute = (0x1p-14 + kUnit * (2 * block + shape.head_dim)) * layer.product};
      for (int head = 0; head < shape.q_heads; ++head) {
        SCOPED_TRACE(head);
        const auto queries = block_means(layer.q, head, block),
                   keys = block_means(layer.k, layer.info.kv_head_of(head), block);
        for (std::int64_t row = 0; row < lists.row_blocks(); ++row) {
          std::vector<double> scores;
          for (std::int64_t j = 0; j <= row; ++j)
            scores.push_back(dot(queries[static_cast<std::size_t>(row)], keys[static_cast<std::size_t>(j)]));
          Scored exact(std::move(scores));
          exact.force(0, 1);
          exact.force(row - 1, row + 1);
          expect_best(indices_of(covered_blocks(lists, head, row)), exact, std::max(top, 3), epsilon);
        }
      }
    }
  }
}

/// Columns or diagonals that hold more than `alpha` of the window's weight, `least` at least.
Bounds kept_by_mass(const std::vector<double>& sums, double alpha, std::int64_t window, std::int64_t least,
                    int forced, double error) {
  const auto [low, high] = prefix_range(sums, alpha * static_cast<double>(std::min(window, kTokens)), error);
  return Bounds(scored_from_front(sums, forced), std::max(low, least), std::max(high, least),
                {.relative = error});
}

TEST(RandomSets, FlexPrefillColumns) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 3);
    constexpr std::int64_t kWindow = 64, kLeast = 20;
    for (const double alpha : {0.3, 0.7}) {
      SCOPED_TRACE(fmt::format("head_dim {}, alpha {}", shape.head_dim, alpha));
      const TileLists lists =
          select(fmt::format(R"({{"flexprefill": {{"alpha": {}, "min_budget": {}, "window": {}}}}})", alpha,
                             kLeast, kWindow),
                 layer);
      const double error = layer.weight_error(shape.head_dim, kWindow);
      for (int head = 0; head < shape.q_heads; ++head) {
        SCOPED_TRACE(head);
        const WindowSums sums = window_sums(layer, head, kWindow);
        std::vector<bool> got(static_cast<std::size_t>(kTokens));
        for (const std::int32_t column : lists.columns_of(head)) got[static_cast<std::size_t>(column)] = true;
        kept_by_mass(sums.columns, alpha, kWindow, kLeast, kSinks, error).expect(got);
        const auto [low, high] = prefix_range(sums.columns, alpha * static_cast<double>(kWindow), error);
        EXPECT_GE(std::ssize(lists.columns_of(head)), std::max(low, kLeast));
        EXPECT_LE(std::ssize(lists.columns_of(head)), std::max(high, kLeast));
      }
    }
  }
}

/// Blocks of 128 that a column lies in or a diagonal crosses, the first and the last.
std::vector<bool> touched_blocks(const std::vector<bool>& columns, const std::vector<bool>& offsets,
                                 std::int64_t row) {
  constexpr std::int64_t kBlock = 128;
  std::vector<bool> blocks(static_cast<std::size_t>(row + 1));
  blocks.front() = blocks.back() = true;
  for (std::size_t c = 0; c < columns.size(); ++c)
    if (columns[c] && static_cast<std::int64_t>(c) / kBlock <= row) blocks[c / kBlock] = true;
  const std::int64_t first = row * kBlock, last = std::min(first + kBlock, kTokens) - 1;
  for (std::int64_t o = 0; o <= last; ++o) {
    if (!offsets[static_cast<std::size_t>(o)]) continue;
    blocks[static_cast<std::size_t>((last - o) / kBlock)] = true;
    blocks[static_cast<std::size_t>(std::max<std::int64_t>(first - o, 0) / kBlock)] = true;
  }
  return blocks;
}

TEST(RandomSets, FlexPrefillOriginal) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 4);
    constexpr std::int64_t kWindow = 64, kLeast = 3;
    constexpr double kAlpha = 0.02;  // little, so that there are blocks that nothing touches
    const TileLists lists = select(
        fmt::format(
            R"({{"flexprefill": {{"variant": "original", "alpha": {}, "min_budget": {}, "window": {}}}}})",
            kAlpha, kLeast, kWindow),
        layer);
    const double error = layer.weight_error(shape.head_dim, kWindow);
    for (int head = 0; head < shape.q_heads; ++head) {
      SCOPED_TRACE(head);
      const WindowSums sums = window_sums(layer, head, kWindow);
      const Bounds columns = kept_by_mass(sums.columns, kAlpha, kWindow, kLeast, kSinks, error),
                   offsets = kept_by_mass(sums.diagonals, kAlpha, kWindow, kLeast, kNearOffsets, error);
      for (std::int64_t row = 0; row < lists.row_blocks(); ++row) {
        Bounds blocks(static_cast<std::size_t>(row + 1));
        blocks.must = touched_blocks(columns.must, offsets.must, row);
        blocks.may = touched_blocks(columns.may, offsets.may, row);
        blocks.expect(covered_blocks(lists, head, row));
      }
    }
  }
}

TEST(RandomSets, FlexPrefillBlocksPerQuery) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 5);
    constexpr int kBlock = 64, kRowBlocks = 2;
    for (const double alpha : {0.2, 0.6}) {
      SCOPED_TRACE(fmt::format("head_dim {}, alpha {}", shape.head_dim, alpha));
      // No divergence is larger than sqrt(ln 2), so that every head chooses blocks.
      const TileLists lists = select(
          fmt::format(R"({{"flexprefill": {{"alpha": {}, "min_budget": {}, "window": 64, "tau": 1}}}})",
                      alpha, kRowBlocks * kBlock),
          layer);
      // Means and their products in float32, then a softmax and the sum of the whole map.
      const double error =
          layer.weight_error(shape.head_dim + 2 * kBlock, lists.row_blocks() * lists.row_blocks());
      for (int head = 0; head < shape.q_heads; ++head) {
        SCOPED_TRACE(head);
        const auto queries = block_means(layer.q, head, kBlock),
                   keys = block_means(layer.k, layer.info.kv_head_of(head), kBlock);
        std::vector<double> map;
        Bounds rows(0);
        for (std::size_t i = 0; i < queries.size(); ++i) {
          std::vector<double> row;
          for (std::size_t j = 0; j <= i; ++j) row.push_back(layer.info.scale * dot(queries[i], keys[j]));
          RandomLayer::softmax(row);
          map.insert(map.end(), row.begin(), row.end());
          // The best of the row, then the forced ones beside them.
          Bounds best(Scored(row), kRowBlocks, kRowBlocks, {.relative = error});
          best.must.front() = best.must.back() = best.may.front() = best.may.back() = true;
          rows.must.insert(rows.must.end(), best.must.begin(), best.must.end());
          rows.may.insert(rows.may.end(), best.may.begin(), best.may.end());
        }
        const auto [low, high] = prefix_range(map, alpha * static_cast<double>(queries.size()), error);
        rows.add(Bounds(Scored(map), low, high, {.relative = error}));
        std::vector<bool> got;
        for (std::int64_t row = 0; row < lists.row_blocks(); ++row) {
          const auto blocks = covered_blocks(lists, head, row);
          got.insert(got.end(), blocks.begin(), blocks.end());
        }
        rows.expect(got);
      }
    }
  }
}

/// Attention summed over key blocks, per row block: exact (stride 1), or estimated along antidiagonals.
std::vector<std::vector<double>> block_mass(const RandomLayer& layer, int head, int block, int stride) {
  const std::int64_t groups = (layer.tokens() + stride - 1) / stride, per_block = block / stride;
  std::vector<std::vector<double>> mass;
  for (std::int64_t row = 0; row < groups; ++row) {
    std::vector<double> w(static_cast<std::size_t>(row + 1));
    for (std::int64_t j = 0; j <= row; ++j) {
      double sum = 0;
      for (int s = 0; s < stride; ++s) {
        const std::int64_t query = row * stride + stride - 1 - s, key = j * stride + s;
        if (query < layer.tokens() && key < layer.tokens()) sum += layer.score(head, query, key);
      }
      w[static_cast<std::size_t>(j)] = sum / stride;
    }
    RandomLayer::softmax(w);
    if (row % per_block == 0) mass.emplace_back(static_cast<std::size_t>(row / per_block + 1));
    for (std::size_t j = 0; j < w.size(); ++j) mass.back()[j / static_cast<std::size_t>(per_block)] += w[j];
  }
  return mass;
}

TEST(RandomSets, OracleTopK) {
  RandomLayer layer({2, 1, 64}, kOracleTokens, 6);
  for (const auto& [block, k] : {std::pair{64, 3}, std::pair{128, 2}}) {
    SCOPED_TRACE(block);
    const TileLists lists =
        select(fmt::format(R"({{"oracle_top_k": {{"block": {}, "top_k": {}}}}})", block, k), layer);
    const Epsilon epsilon{.relative = layer.weight_error(64, block)};
    for (int head = 0; head < 2; ++head) {
      const auto mass = block_mass(layer, head, block, 1);
      for (std::int64_t row = 0; row < lists.row_blocks(); ++row) {
        Scored exact(mass[static_cast<std::size_t>(row)]);
        exact.force(row, row + 1);
        expect_best(indices_of(covered_blocks(lists, head, row)), exact, k, epsilon);
      }
    }
  }
}

/// The fewest blocks with a share of the row, then the forced ones beside them.
void check_shares(const TileLists& lists, const RandomLayer& layer, int stride, double share, bool first,
                  double error) {
  for (int head = 0; head < layer.info.q_heads; ++head) {
    SCOPED_TRACE(head);
    const auto mass = block_mass(layer, head, lists.row_block, stride);
    for (std::int64_t row = 0; row < lists.row_blocks(); ++row) {
      const auto& scores = mass[static_cast<std::size_t>(row)];
      const double total = std::accumulate(scores.begin(), scores.end(), 0.0);
      const auto [low, high] = prefix_range(scores, share * total, 2 * error);
      Bounds blocks(Scored(scores), low, high, {.relative = error});
      blocks.must.back() = blocks.may.back() = true;
      if (first) blocks.must.front() = blocks.may.front() = true;
      blocks.expect(covered_blocks(lists, head, row));
    }
  }
}

TEST(RandomSets, OracleTopP) {
  RandomLayer layer({2, 1, 64}, kOracleTokens, 7);
  for (const double share : {0.3, 0.8}) {
    const TileLists lists =
        select(fmt::format(R"({{"oracle_top_p": {{"block": 64, "top_p": {}}}}})", share), layer);
    check_shares(lists, layer, 1, share, false, layer.weight_error(64, 64));
  }
}

TEST(RandomSets, XAttention) {
  RandomLayer layer({2, 1, 64}, kOracleTokens, 8);
  for (const int stride : {4, 16}) {
    SCOPED_TRACE(stride);
    const TileLists lists = select(
        fmt::format(R"({{"xattention": {{"block": 64, "stride": {}, "threshold": 0.5}}}})", stride), layer);
    check_shares(lists, layer, stride, 0.5, true, layer.weight_error(64 * stride, 64));
  }
}

// --- Eviction
// -------------------------------------------------------------------------------------------------------

KeptTokens keep(const std::string& json, RandomLayer& layer) {
  ContextOwner owner;
  AttentionCounts counts;
  return make_cuda_evictor(testing::method(Slot::kEvict, json), owner.context)->keep(layer.input(), counts);
}

/// Mean or maximum over the query heads of a kv head, averaged over neighbours.
std::vector<double> importance(const RandomLayer& layer, int kv_head, std::int64_t window, bool maximum,
                               int kernel) {
  const int group = layer.info.q_heads / layer.info.kv_heads;
  std::vector<double> joined(static_cast<std::size_t>(layer.tokens()));
  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    const WindowSums sums = window_sums(layer, h, window);
    for (std::size_t t = 0; t < joined.size(); ++t)
      joined[t] = maximum ? std::max(joined[t], sums.maxima[t]) : joined[t] + sums.columns[t] / group;
  }
  std::vector<double> pooled(joined.size());
  const std::int64_t n = layer.tokens(), half = kernel / 2;
  for (std::int64_t t = 0; t < n; ++t)
    for (std::int64_t u = std::max<std::int64_t>(0, t - half); u <= std::min(n - 1, t + half); ++u)
      pooled[static_cast<std::size_t>(t)] += joined[static_cast<std::size_t>(u)] / kernel;
  return pooled;
}

constexpr std::int64_t kFirst = 4, kLast = 30, kKernel = 21;

TEST(RandomSets, SnapKvAndPyramidKv) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 9);
    for (const auto& [window, capacity] : {std::pair{32, kTokens / 4}, std::pair{130, kTokens / 2}}) {
      const Epsilon epsilon{.relative = layer.weight_error(shape.head_dim, window + kKernel + shape.q_heads)};
      for (const bool pyramid : {false, true}) {
        SCOPED_TRACE(fmt::format("head_dim {}, window {}, capacity {}, pyramid {}", shape.head_dim, window,
                                 capacity, pyramid));
        constexpr double kBeta = 5;
        const KeptTokens kept =
            keep(fmt::format(
                     R"({{"{}": {{"capacity": {}, "window": {}, "kernel": {}, "first": {}, "last": {}{}}}}})",
                     pyramid ? "pyramidkv" : "snapkv", capacity, window, kKernel, kFirst, kLast,
                     pyramid ? fmt::format(R"(, "beta": {})", kBeta) : ""),
                 layer);
        const std::int64_t k =
            pyramid ? pyramid_capacity(capacity, kBeta, layer.info, kTokens) : std::int64_t{capacity};
        ASSERT_EQ(std::ssize(kept), shape.kv_heads);
        for (int head = 0; head < shape.kv_heads; ++head) {
          SCOPED_TRACE(head);
          Scored exact(importance(layer, head, window, false, kKernel));
          exact.force(0, kFirst);
          exact.force(kTokens - kLast, kTokens);
          expect_best(kept[static_cast<std::size_t>(head)], exact, k, epsilon);
        }
      }
    }
  }
}

TEST(RandomSets, AdaSnapKv) {
  constexpr Shape kManyHeads = {8, 4, 64};
  RandomLayer layer(kManyHeads, kTokens, 10);
  constexpr int kWindow = 40;
  constexpr double kShare = 0.5;
  constexpr std::int64_t kCapacity = kTokens / 4;
  const KeptTokens kept = keep(
      fmt::format(
          R"({{"ada_snapkv": {{"capacity": {}, "window": {}, "kernel": {}, "first": {}, "last": {}, "min_share": {}}}}})",
          kCapacity, kWindow, kKernel, kFirst, kLast, kShare),
      layer);
  ASSERT_EQ(std::ssize(kept), kManyHeads.kv_heads);
  const Epsilon epsilon{.relative = layer.weight_error(64, kWindow + kKernel)};
  const std::int64_t floor = std::max<std::int64_t>(
      static_cast<std::int64_t>(kShare * static_cast<double>(kCapacity)), kFirst + kLast);
  // A pair stays when it is among its head's best `floor` or among the best of all others.
  std::vector<Scored> exact;
  std::vector<double> floor_edges, others;
  std::int64_t total = 0;
  for (int head = 0; head < kManyHeads.kv_heads; ++head) {
    exact.emplace_back(importance(layer, head, kWindow, true, kKernel));
    exact.back().force(0, kFirst);
    exact.back().force(kTokens - kLast, kTokens);
    floor_edges.push_back(exact.back().edge(floor));
    for (std::size_t t = 0; t < exact.back().scores.size(); ++t)
      if (!exact.back().forced[t] && exact.back().scores[t] < floor_edges.back())
        others.push_back(exact.back().scores[t]);
    total += std::ssize(kept[static_cast<std::size_t>(head)]);
  }
  EXPECT_EQ(total, kCapacity * kManyHeads.kv_heads);
  const std::int64_t more = (kCapacity - floor) * kManyHeads.kv_heads;
  std::nth_element(others.begin(), others.begin() + (more - 1), others.end(), std::greater<>());
  const double shared_edge = others[static_cast<std::size_t>(more - 1)];
  for (int head = 0; head < kManyHeads.kv_heads; ++head) {
    SCOPED_TRACE(head);
    const auto h = static_cast<std::size_t>(head);
    EXPECT_TRUE(std::is_sorted(kept[h].begin(), kept[h].end()));
    EXPECT_GE(std::ssize(kept[h]), floor);
    const double edge = std::min(floor_edges[h], shared_edge), slack = epsilon.at(edge);
    std::vector<bool> in(static_cast<std::size_t>(kTokens));
    for (const std::int32_t t : kept[h]) in[static_cast<std::size_t>(t)] = true;
    for (std::size_t t = 0; t < in.size(); ++t) {
      if (exact[h].forced[t]) {
        EXPECT_TRUE(in[t]) << t;
      } else if (in[t]) {
        EXPECT_GE(exact[h].scores[t], edge - slack) << "token " << t;
      } else {
        EXPECT_LE(exact[h].scores[t], edge + slack) << "token " << t;
      }
    }
  }
}

TEST(RandomSets, Tova) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 11);
    constexpr std::int64_t kCapacity = kTokens / 3;
    const KeptTokens kept = keep(fmt::format(R"({{"tova": {{"capacity": {}}}}})", kCapacity), layer);
    std::vector<double> sum(static_cast<std::size_t>(kTokens));
    for (int head = 0; head < shape.q_heads; ++head) {
      const auto w = layer.weights(head, kTokens - 1);
      for (std::size_t t = 0; t < w.size(); ++t) sum[t] += w[t];
    }
    Scored exact(std::move(sum));
    exact.force(kTokens - 1, kTokens);
    ASSERT_EQ(std::ssize(kept), shape.kv_heads);
    for (const auto& head : kept) {
      EXPECT_EQ(head, kept.front()) << "all heads keep the same";
      expect_best(head, exact, kCapacity, {.relative = layer.weight_error(shape.head_dim, shape.q_heads)});
    }
  }
}

/// (softmax of s m.k + s^2 k'Ck / 2, plus epsilon) |v|, mean over the group.
std::vector<double> expected_importance(const RandomLayer& layer, int kv_head, std::int64_t window,
                                        double epsilon, double& largest_exponent) {
  const std::int64_t tokens = layer.tokens();
  const int group = layer.info.q_heads / layer.info.kv_heads;
  const auto dim = static_cast<std::size_t>(layer.info.head_dim);
  std::vector<double> all(static_cast<std::size_t>(tokens));
  for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
    std::vector<double> mean(dim), covariance(dim * dim);
    for (std::int64_t t = tokens - window; t < tokens; ++t)
      for (std::size_t c = 0; c < dim; ++c) mean[c] += layer.q.row(h, t)[c] / static_cast<double>(window);
    for (std::int64_t t = tokens - window; t < tokens; ++t)
      for (std::size_t a = 0; a < dim; ++a)
        for (std::size_t b = 0; b < dim; ++b)
          covariance[a * dim + b] += (layer.q.row(h, t)[a] - mean[a]) * (layer.q.row(h, t)[b] - mean[b]) /
                                     static_cast<double>(window);
    std::vector<double> w(all.size());
    for (std::int64_t t = 0; t < tokens; ++t) {
      const float* k = layer.k.row(kv_head, t);
      double linear = 0, quadratic = 0, sizes = 0;
      for (std::size_t a = 0; a < dim; ++a) {
        double row = 0, row_sizes = 0;
        for (std::size_t b = 0; b < dim; ++b) {
          row += covariance[a * dim + b] * k[b];
          row_sizes += std::abs(covariance[a * dim + b] * k[b]);
        }
        linear += mean[a] * k[a];
        quadratic += row * k[a];
        sizes += std::abs(mean[a] * k[a]) * layer.info.scale +
                 row_sizes * std::abs(k[a]) * layer.info.scale * layer.info.scale / 2;
      }
      const double s = layer.info.scale;
      w[static_cast<std::size_t>(t)] = s * linear + s * s * quadratic / 2;
      largest_exponent = std::max(largest_exponent, sizes);
    }
    RandomLayer::softmax(w);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const float* v = layer.v.row(kv_head, t);
      double norm = 0;
      for (std::size_t c = 0; c < dim; ++c) norm += static_cast<double>(v[c]) * v[c];
      all[static_cast<std::size_t>(t)] +=
          (w[static_cast<std::size_t>(t)] + epsilon) * std::sqrt(norm) / group;
    }
  }
  return all;
}

TEST(RandomSets, ExpectedAttention) {
  for (const Shape& shape : kShapes) {
    RandomLayer layer(shape, kTokens, 12);
    constexpr std::int64_t kCapacity = kTokens / 3, kWindow = 60;
    for (const double epsilon : {0.0, 0.02}) {
      SCOPED_TRACE(fmt::format("head_dim {}, epsilon {}", shape.head_dim, epsilon));
      const KeptTokens kept = keep(
          fmt::format(
              R"({{"expected_attention": {{"capacity": {}, "window": {}, "sinks": {}, "epsilon": {}}}}})",
              kCapacity, kWindow, kFirst, epsilon),
          layer);
      ASSERT_EQ(std::ssize(kept), shape.kv_heads);
      for (int head = 0; head < shape.kv_heads; ++head) {
        SCOPED_TRACE(head);
        double sizes = 0;
        Scored exact(expected_importance(layer, head, kWindow, epsilon, sizes));
        exact.force(0, kFirst);
        // Mean and covariance are rounded to float32, their products summed in it.
        const double error = kUnit * (2 * (shape.head_dim + 2) * sizes + static_cast<double>(kTokens) + 16);
        expect_best(kept[static_cast<std::size_t>(head)], exact, kCapacity, {.relative = error});
      }
    }
  }
}

}  // namespace
}  // namespace lacuna
