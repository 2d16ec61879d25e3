#include "core/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace lacuna {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(Json, ErrorsNameFileAndField) {
  const Json object = parse_json(R"({"n": 3, "s": "x", "f": 1.5})", "config.json");
  EXPECT_EQ(json_get<int>(object, "n", "config.json"), 3);
  EXPECT_EQ(json_get_or<int>(object, "absent", 7, "config.json"), 7);
  EXPECT_EQ(json_get<double>(object, "n", "config.json"), 3.0);
  EXPECT_THAT([&] { json_get<int>(object, "s", "config.json"); },
              ThrowsMessage<Error>(AllOf(HasSubstr("config.json"), HasSubstr("'s'"), HasSubstr("integer"))));
  EXPECT_THAT([&] { json_get<int>(object, "f", "config.json"); }, ThrowsMessage<Error>(HasSubstr("integer")));
  EXPECT_THAT([&] { json_get<int>(object, "m", "config.json"); }, ThrowsMessage<Error>(HasSubstr("missing")));
  EXPECT_THAT([&] { json_get<std::int8_t>(parse_json(R"({"n": 300})", "x"), "n", "x"); },
              ThrowsMessage<Error>(HasSubstr("fits")));
}

TEST(Json, RefusesBrokenAndDeepText) {
  EXPECT_THROW(parse_json("{", "x"), Error);
  EXPECT_THROW(parse_json(std::string(100000, '['), "x"), Error);
  EXPECT_THROW(parse_json("\"\xff\"", "x"), Error);
}

}  // namespace
}  // namespace lacuna
