#include "core/params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/json.h"

namespace lacuna {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

const std::vector<ParamSpec> kSpecs = {
    {.name = "budget", .default_value = std::int64_t{512}, .help = "Kept tokens", .unit = "tokens", .min = 1},
    {.name = "alpha", .default_value = 0.9, .help = "Mass", .min = 0, .max = 1},
    {.name = "share", .default_value = true, .help = "Share"},
    {.name = "kind", .default_value = std::string("a"), .help = "Kind", .choices = {"a", "b"}},
};

TEST(Params, FillsDefaultsAndChecks) {
  const Params params = Params::parse(kSpecs, Json{{"budget", 1024}, {"kind", "b"}}, "sweep.yaml:3");
  EXPECT_EQ(params.get_int("budget"), 1024);
  EXPECT_EQ(params.get_double("alpha"), 0.9);
  EXPECT_TRUE(params.get_bool("share"));
  EXPECT_EQ(params.get_string("kind"), "b");
  EXPECT_EQ(Params::parse(kSpecs, params.to_json(), "x"), params);
}

TEST(Params, ErrorsSayWhatWhereAndWhatIsValid) {
  const auto parse = [](const Json& given) { return [given] { Params::parse(kSpecs, given, "sweep.yaml:3"); }; };
  EXPECT_THAT(parse({{"bugdet", 1}}),
              ThrowsMessage<Error>(AllOf(HasSubstr("sweep.yaml:3"), HasSubstr("did you mean 'budget'?"))));
  EXPECT_THAT(parse({{"budget", 0}}), ThrowsMessage<Error>(HasSubstr("at least 1")));
  EXPECT_THAT(parse({{"budget", 1.5}}), ThrowsMessage<Error>(HasSubstr("integer")));
  EXPECT_THAT(parse({{"alpha", 1.5}}), ThrowsMessage<Error>(HasSubstr("from 0 to 1")));
  EXPECT_THAT(parse({{"kind", "c"}}), ThrowsMessage<Error>(HasSubstr("one of a, b")));
  EXPECT_THAT(parse({{"share", 1}}), ThrowsMessage<Error>(HasSubstr("true or false")));
  EXPECT_THAT(parse(Json::array()), ThrowsMessage<Error>(HasSubstr("array")));
}

TEST(Params, Scalars) {
  EXPECT_EQ(parse_scalar("12"), Json(12));
  EXPECT_EQ(parse_scalar("1e3"), Json(1000.0));
  EXPECT_EQ(parse_scalar("true"), Json(true));
  EXPECT_EQ(parse_scalar("a.b"), Json("a.b"));
  EXPECT_EQ(parse_scalar(""), Json(""));
}

}  // namespace
}  // namespace lacuna
