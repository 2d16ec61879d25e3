#include "analysis/pattern_picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

/// 8 tokens in blocks of 2 rows: every block keeps keys [0, 2) and its own diagonal block; column 5 besides.
TileLists small() {
  TileLists lists;
  lists.heads = 1;
  lists.tokens = 8;
  lists.row_block = 2;
  lists.range_begin = {0};
  for (int b = 0; b < 4; ++b) {
    lists.ranges.push_back({0, 2});
    if (b > 0) lists.ranges.push_back({2 * b, 2});
    lists.range_begin.push_back(std::int64_t(lists.ranges.size()));
  }
  lists.columns = {1, 5};
  lists.column_begin = {0, 2};
  return lists;
}

std::vector<std::pair<int, int>> kept_of(const PatternView& view, std::int64_t row) {
  std::vector<KeyRange> ranges;
  view.kept(row, ranges);
  std::vector<std::pair<int, int>> out;
  for (const KeyRange& r : ranges) out.emplace_back(r.start, r.width);
  return out;
}

TEST(PatternPicture, RangesAndColumnsMerge) {
  const TileLists lists = small();
  const PatternView view = view_of_prefill(lists, 0);
  using Pairs = std::vector<std::pair<int, int>>;
  EXPECT_EQ(kept_of(view, 0), (Pairs{{0, 2}, {5, 1}}));  // column 5 is cut off later: row 0 may not see it
  EXPECT_EQ(kept_of(view, 4), (Pairs{{0, 2}, {4, 2}}));  // 5 lies inside [4, 6)
  EXPECT_EQ(kept_of(view, 7), (Pairs{{0, 2}, {5, 1}, {6, 2}}));  // column 1 lies inside [0, 2)
}

TEST(PatternPicture, CountsCellsOneByOne) {
  const TileLists lists = small();
  // Rows 0..7 keep 1, 2, 3, 4, 3, 4, 4, 5 cells of 1..8 = 26 of 36.
  const std::string svg = draw_pattern(view_of_prefill(lists, 0), {.title = "small", .subtitle = ""});
  EXPECT_THAT(svg, HasSubstr("72.2 % of the visible cells kept (sparsity 0.278)"));
  EXPECT_THAT(svg, Not(HasSubstr("about")));
  // Row 7: two kept, three left out, then column 5 and the diagonal block kept.
  EXPECT_THAT(svg, HasSubstr("M0 7h2v1h-2z"));
  EXPECT_THAT(svg, HasSubstr("M2 7h3v1h-3z"));
  EXPECT_THAT(svg, HasSubstr("M5 7h3v1h-3z"));
}

TEST(PatternPicture, DenseIsWholeAtAnyLengthAndWindow) {
  TileLists lists;
  lists.heads = 2;
  lists.tokens = 100000;
  lists.dense = true;
  EXPECT_THAT(draw_pattern(view_of_prefill(lists, 1), {.title = "dense", .subtitle = ""}),
              HasSubstr("about 100.0 %"));
  EXPECT_THAT(draw_pattern(view_of_prefill(lists, 1, 1024), {.title = "window", .subtitle = ""}),
              HasSubstr("about 100.0 %"));
  EXPECT_LT(draw_pattern(view_of_prefill(lists, 1), {.title = "dense", .subtitle = ""}).size(), 20000u);
  EXPECT_THROW(view_of_prefill(lists, 2), Error);
}

TEST(PatternPicture, DecodeAndEviction) {
  // 40 prompt tokens, two steps: pages 0 and 2 of 3.
  const PatternView decode = view_of_decode(40, {{0, 2}, {0, 2}});
  const std::string svg = draw_pattern(decode, {.title = "quest", .subtitle = "", .row_label = "step"});
  EXPECT_THAT(svg, HasSubstr(fmt::format("{:.1f} % of", 100.0 * (16 + 9 + 16 + 10) / (41 + 42))));
  EXPECT_THAT(draw_pattern(view_of_pages(40, {{0, 2}, {1}}),
                           {.title = "quest", .subtitle = "", .row_label = "kv head"}),
              HasSubstr(fmt::format("{:.1f} % of", 100.0 * (16 + 8 + 16) / 80)));
  const std::string evicted = draw_pattern(view_of_eviction(10, {{0, 1, 9}, {0, 1, 2, 3, 4}}),
                                           {.title = "snapkv", .subtitle = "", .row_label = "kv head"});
  EXPECT_THAT(evicted, HasSubstr("40.0 % of"));
  EXPECT_THROW(draw_pattern(view_of_decode(40, {}), {}), Error);
}

TEST(PatternPicture, MethodsNameTheirParameters) {
  const StrategySpec spec =
      parse_strategy(nlohmann::json::parse(R"({"prefill": {"vertical_slash": {"verticals": 77}}})"), "test");
  const PictureOptions options = picture_options(spec.prefill);
  EXPECT_EQ(options.title, "vertical_slash");
  EXPECT_THAT(options.subtitle, HasSubstr("verticals 77"));
}

TEST(PatternPicture, TitlesAreEscaped) {
  const TileLists lists = small();
  const std::string svg =
      draw_pattern(view_of_prefill(lists, 0), {.title = "</text><script>&\"\n", .subtitle = ""});
  EXPECT_THAT(svg, HasSubstr("&lt;/text&gt;&lt;script&gt;&amp;&quot; "));
  EXPECT_THAT(svg, Not(HasSubstr("<script>")));
}

}  // namespace
}  // namespace lacuna
