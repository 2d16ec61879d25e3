// Every prefill method on the GPU against the CPU's, on integer-valued inputs.
//
// Weights are sums of exponentials, which the two worlds round differently, so scores closer than a few units
// in the last place may be ranked either way: what is compared to the last entry are all choices that do not
// hang on such a tie, by counting the cells in which the lists differ.
#include "attention/cuda/prefill_methods.h"

#include <algorithm>
#include <initializer_list>

#include "core/error.h"
#include "tests/attention/cuda/method_test_util.h"

namespace lacuna {
namespace {

using testing::ContextOwner;
using testing::layer_cases;
using testing::LayerCase;
using testing::LayerTwice;
using testing::short_cases;

/// What a head's row blocks visit: keys of ranges and columns, up to the end of the row block.
std::vector<bool> visited(const TileLists& lists, int head, std::int64_t block) {
  const std::int64_t limit = std::min(lists.tokens, (block + 1) * lists.row_block);
  std::vector<bool> keys(static_cast<std::size_t>(limit));
  for (const KeyRange& range : lists.ranges_of(head, block))
    for (std::int64_t j = range.start; j < std::min<std::int64_t>(limit, range.start + range.width); ++j)
      keys[static_cast<std::size_t>(j)] = true;
  for (const std::int32_t column : lists.columns_of(head))
    if (column < limit) keys[static_cast<std::size_t>(column)] = true;
  return keys;
}

struct Difference {
  std::int64_t cells = 0, total = 0;
  std::string first;
};
Difference compare(const TileLists& got, const TileLists& wanted) {
  Difference difference;
  for (int head = 0; head < wanted.heads; ++head)
    for (std::int64_t block = 0; block < wanted.row_blocks(); ++block) {
      const auto a = visited(got, head, block), b = visited(wanted, head, block);
      for (std::size_t j = 0; j < b.size(); ++j) {
        difference.total += b[j];
        if (a[j] == b[j]) continue;
        if (difference.cells++ == 0)
          difference.first = fmt::format("head {} row block {} key {}: got {}, wanted {}", head, block, j,
                                         bool{a[j]}, bool{b[j]});
      }
    }
  return difference;
}

void expect_well_formed(const TileLists& lists) {
  ASSERT_EQ(std::ssize(lists.range_begin), lists.heads * lists.row_blocks() + 1);
  ASSERT_EQ(lists.range_begin.front(), 0);
  ASSERT_EQ(lists.range_begin.back(), std::ssize(lists.ranges));
  for (int head = 0; head < lists.heads; ++head) {
    for (std::int64_t block = 0; block < lists.row_blocks(); ++block) {
      std::int64_t end = -1;
      for (const KeyRange& range : lists.ranges_of(head, block)) {
        ASSERT_GT(range.start, end) << "head " << head << " row block " << block;
        ASSERT_GT(range.width, 0) << "head " << head << " row block " << block;
        end = range.start + range.width;
      }
      ASSERT_LE(end, lists.tokens) << "head " << head << " row block " << block;
    }
    const auto columns = lists.columns_of(head);
    ASSERT_TRUE(std::is_sorted(columns.begin(), columns.end())) << "head " << head;
    ASSERT_EQ(std::adjacent_find(columns.begin(), columns.end()), columns.end()) << "head " << head;
  }
}

/// `loose`: part of the cells that ties may move.
void check(const std::string& json, const LayerCase& c, double loose = 0) {
  SCOPED_TRACE(json + " " + c.to_string());
  LayerTwice layer(c);
  const MethodSpec spec = testing::method(Slot::kPrefill, json);
  TileLists wanted, got, again;
  AttentionCounts cpu, cuda, twice;
  make_prefill_selector(spec)->select(layer.cpu(), wanted, cpu);
  ContextOwner owner;
  const auto selector = make_cuda_prefill_selector(spec, owner.context);
  selector->select(layer.cuda(), got, cuda);
  ASSERT_EQ(got.heads, wanted.heads);
  ASSERT_EQ(got.tokens, wanted.tokens);
  ASSERT_EQ(got.dense, wanted.dense);
  if (wanted.dense) return;
  ASSERT_EQ(got.row_block, wanted.row_block);
  expect_well_formed(got);
  const Difference difference = compare(got, wanted);
  EXPECT_LE(static_cast<double>(difference.cells), loose * static_cast<double>(difference.total))
      << difference.cells << " of " << difference.total << " differ, first " << difference.first;
  if (difference.cells == 0) {
    EXPECT_NEAR(cuda.index_flops, cpu.index_flops, 1e-9 * cpu.index_flops);
  }
  EXPECT_GT(cuda.index_seconds, 0);

  owner.scratch.clear();
  selector->select(layer.cuda(), again, twice);
  EXPECT_EQ(again.ranges, got.ranges);
  EXPECT_EQ(again.range_begin, got.range_begin);
  EXPECT_EQ(again.columns, got.columns);
  EXPECT_EQ(again.column_begin, got.column_begin);
}

TEST(PrefillMethodsCuda, PositionsOnly) {
  for (const LayerCase& c : layer_cases())
    for (const char* json :
         {R"("dense")", R"({"a_shape": {"sinks": 64, "local": 100}})",
          R"({"tri_shape": {"sinks": 64, "local": 64, "last_queries": 64}})",
          R"({"streaming": {"sinks": 5, "window": 70}})", R"({"random": {"block": 32, "top_k": 3}})"})
      check(json, c);
}

constexpr const char* kSlashes[] = {
    R"({"vertical_slash": {"verticals": 30, "slashes": 90, "window": 32}})",
    R"({"vertical_slash": {"verticals": 1, "slashes": 1, "window": 300, "tiles": "exact"}})"};
TEST(PrefillMethodsCuda, VerticalSlash) {
  for (const LayerCase& c : short_cases())
    for (const char* json : kSlashes) check(json, c);
  for (const int head_dim : {96, 128, 256})
    check(R"({"vertical_slash": {"verticals": 50, "slashes": 120, "window": 100}})", {.head_dim = head_dim});
  check(R"({"vertical_slash": {"verticals": 50, "slashes": 120, "window": 100}})",
        {.tokens = 700, .window = 100, .softcap = 30.0f});
  check(R"({"vertical_slash": {"verticals": 5000, "slashes": 5000}})", {.tokens = 333});
}

constexpr const char* kBlockSparse[] = {R"({"block_sparse": {"chunk_size": 16, "top_chunks": 6}})",
                                        R"({"block_sparse": {"chunk_size": 64, "top_chunks": 4}})",
                                        R"({"block_sparse": {"chunk_size": 128, "top_chunks": 1}})"};
TEST(PrefillMethodsCuda, BlockSparse) {
  for (const LayerCase& c : short_cases())
    for (const char* json : kBlockSparse) check(json, c);
  for (const int head_dim : {96, 128, 256})
    check(R"({"block_sparse": {"chunk_size": 32, "top_chunks": 5}})", {.head_dim = head_dim, .tokens = 640});
}

void check_oracles(const LayerCase& c, std::initializer_list<int> blocks) {
  for (const int block : blocks) {
    check(fmt::format(R"({{"oracle_top_k": {{"block": {}, "top_k": 3}}}})", block), c);
    check(fmt::format(R"({{"oracle_top_p": {{"block": {}, "top_p": 0.7}}}})", block), c);
  }
}
TEST(PrefillMethodsCuda, Oracles) {
  for (const std::int64_t tokens : {1, 17, 200})
    check_oracles({.q_heads = 2, .kv_heads = 1, .tokens = tokens}, {16, 32, 64, 128});
  check_oracles({.q_heads = 7, .kv_heads = 1, .tokens = 150}, {32});
  for (const int head_dim : {96, 128, 256})
    check(R"({"oracle_top_k": {"block": 32, "top_k": 4}})",
          {.q_heads = 1, .kv_heads = 1, .head_dim = head_dim, .tokens = 200});
  check(R"({"oracle_top_k": {"block": 64, "top_k": 3}})",
        {.q_heads = 1, .kv_heads = 1, .tokens = 500, .window = 200, .softcap = 30.0f});
  check(R"({"oracle_top_p": {"block": 16, "top_p": 0}})", {.q_heads = 1, .kv_heads = 1, .tokens = 200});
}

void check_xattention(const LayerCase& c, std::initializer_list<int> blocks,
                      std::initializer_list<int> strides) {
  for (const int block : blocks)
    for (const int stride : strides)
      check(
          fmt::format(R"({{"xattention": {{"block": {}, "stride": {}, "threshold": 0.8}}}})", block, stride),
          c);
}
TEST(PrefillMethodsCuda, XAttention) {
  for (const std::int64_t tokens : {1, 17})
    check_xattention({.q_heads = 7, .kv_heads = 1, .tokens = tokens}, {16, 128}, {4, 16});
  check_xattention({.q_heads = 2, .kv_heads = 1, .tokens = 260}, {16, 64, 128}, {4, 8, 16});
  for (const int head_dim : {96, 128, 256})
    check(R"({"xattention": {"block": 64}})", {.q_heads = 1, .kv_heads = 1, .head_dim = head_dim});
}

constexpr const char* kFlexPrefills[] = {
    R"({"flexprefill": {"min_budget": 40, "window": 64, "alpha": 0.4}})",
    R"({"flexprefill": {"min_budget": 1, "alpha": 0}})",
    R"({"flexprefill": {"min_budget": 8, "window": 64, "alpha": 0.6}})",
    R"({"flexprefill": {"min_budget": 8, "window": 64, "alpha": 0.5, "tau": 1}})"};
TEST(PrefillMethodsCuda, FlexPrefill) {
  for (const LayerCase& c : short_cases())
    for (const char* json : kFlexPrefills) check(json, c);
}

// Blocks of 128, and heads that choose blocks per query: all of them, none, and some of seven.
TEST(PrefillMethodsCuda, FlexPrefillByBlocks) {
  for (const std::int64_t tokens : {1, 17, 128, 300})
    for (const char* json :
         {R"({"flexprefill": {"min_budget": 40, "window": 64, "alpha": 0.4, "variant": "original"}})",
          R"({"flexprefill": {"min_budget": 1, "alpha": 0, "variant": "original"}})",
          R"({"flexprefill": {"min_budget": 130, "window": 128, "alpha": 0.5, "tau": 1}})",
          R"({"flexprefill": {"min_budget": 1, "window": 128, "alpha": 0, "tau": 1}})",
          R"({"flexprefill": {"min_budget": 200, "alpha": 0.7, "tau": 1, "variant": "original"}})"})
      check(json, {.q_heads = 7, .kv_heads = 1, .tokens = tokens});
  for (
      const char* json :
      {R"({"flexprefill": {"min_budget": 30, "window": 128, "alpha": 0.3, "tau": 0.115}})",
       R"({"flexprefill": {"min_budget": 30, "window": 128, "alpha": 0.3, "tau": 0.12}})",
       R"({"flexprefill": {"min_budget": 30, "window": 128, "alpha": 0.3, "tau": 0.19, "variant": "original"}})"})
    check(json, {.q_heads = 7, .kv_heads = 1, .tokens = 700});
  for (const int head_dim : {96, 128, 256})
    check(R"({"flexprefill": {"min_budget": 100, "window": 100, "alpha": 0.3, "tau": 0.6}})",
          {.head_dim = head_dim, .tokens = 400});
}

/// Minutes in the emulator.
TEST(PrefillMethodsCudaLong, EveryMethodAtEveryLength) {
  for (const LayerCase& c : layer_cases()) {
    check_oracles(c, {16, 32, 64, 128});
    check_xattention(c, {16, 32, 64, 128}, {4, 8, 16});
    for (const char* json : kSlashes) check(json, c);
    for (const char* json : kBlockSparse) check(json, c);
    for (const char* json : kFlexPrefills) check(json, c);
  }
  // More rows than one strip of scores.
  check(R"({"oracle_top_k": {"block": 16, "top_k": 20}})", {.q_heads = 1, .kv_heads = 1, .tokens = 8200});
}

TEST(PrefillMethodsCuda, ScoresThatAreNotFiniteNameLayerAndHead) {
  for (const char* json : {R"("vertical_slash")", R"("block_sparse")", R"("flexprefill")",
                           R"({"flexprefill": {"variant": "original", "tau": 0.5}})", R"("xattention")",
                           R"("oracle_top_k")", R"("oracle_top_p")"})
    for (const float value : {NAN, INFINITY}) {
      SCOPED_TRACE(json);
      LayerTwice layer({.q_heads = 4, .kv_heads = 1, .tokens = 200});
      layer.set_query(2, 190, value);
      ContextOwner owner;
      AttentionCounts counts;
      try {
        (void)make_cuda_prefill_selector(testing::method(Slot::kPrefill, json), owner.context)
            ->select_on_device(layer.cuda(), counts);
        ADD_FAILURE() << "no error for " << value;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kUsage);
        EXPECT_NE(std::string(error.what()).find("layer 1, query head 2"), std::string::npos) << error.what();
      }
    }
}

}  // namespace
}  // namespace lacuna
