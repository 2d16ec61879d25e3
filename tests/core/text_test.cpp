#include "core/text.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace lacuna {
namespace {

TEST(Text, NearestName) {
  const std::vector<std::string> names = {"quest", "dense", "snapkv"};
  EXPECT_EQ(edit_distance("abcd", "acbd"), 1);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(nearest_name("qest", names), "quest");
  EXPECT_EQ(nearest_name("zzzzzz", names), "");
}

TEST(Text, Formats) {
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(5), "5 B");
  EXPECT_EQ(format_seconds(12.34), "12.3 s");
  EXPECT_EQ(format_seconds(4000), "1 h 7 min");
  EXPECT_EQ(format_count(1.23e12), "1.23 T");
  EXPECT_EQ(trim("  a b\n"), "a b");
  EXPECT_EQ(split("a,,b", ','), (std::vector<std::string>{"a", "", "b"}));
}

TEST(Text, InvalidUtf8) {
  constexpr auto kNone = std::string_view::npos;
  EXPECT_EQ(find_invalid_utf8("plain, \u00e9 \u4e2d \U0001f600"), kNone);
  EXPECT_EQ(find_invalid_utf8(""), kNone);
  EXPECT_EQ(find_invalid_utf8("ab\xb1"), 2u);            // a stray continuation
  EXPECT_EQ(find_invalid_utf8("a\xc3"), 1u);             // cut short
  EXPECT_EQ(find_invalid_utf8("\xc0\x80"), 0u);          // overlong
  EXPECT_EQ(find_invalid_utf8("\xe0\x80\x80"), 0u);      // overlong
  EXPECT_EQ(find_invalid_utf8("\xed\xa0\x80"), 0u);      // a surrogate
  EXPECT_EQ(find_invalid_utf8("\xf4\x90\x80\x80"), 0u);  // past U+10FFFF
  EXPECT_EQ(find_invalid_utf8("ok\xff"), 2u);
}

TEST(Text, Counts) {
  EXPECT_EQ(parse_count("4K", "length"), 4096);
  EXPECT_EQ(parse_count("128000", "length"), 128000);
  for (const char* bad : {"", "K", "-1", "4Q", "99999999999999999999", "9999999999999999K"}) {
    EXPECT_THROW(parse_count(bad, "length"), Error) << bad;
  }
}

}  // namespace
}  // namespace lacuna
