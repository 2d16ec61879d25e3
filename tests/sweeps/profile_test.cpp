// Hardware profiles as files: what is written is read back, and what is wrong is named with its place.
#include "sweeps/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace lacuna {
namespace {

const std::string kLeast = "linear_flops_per_s: 2e11\nattention_flops_per_s: 1.5e11\nbytes_per_s: 3e10\n";

std::string error_of(const std::string& yaml, ProfileCheck check = ProfileCheck::kComplete) {
  try {
    parse_profile(yaml, "p.yaml", check);
    return "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage) << e.what();
    return e.what();
  }
}

TEST(Profile, ReadsBackWhatItWrites) {
  HardwareProfile p{.name = "two: cores",
                    .linear_flops_per_s = 2.5e11,
                    .attention_flops_per_s = 1.5e11,
                    .bytes_per_s = 3e10,
                    .step_overhead_s = 2e-5};
  p.layer_overhead_s = 3e-6;
  p.sequence_overhead_s = 4e-6;
  p.kv_bytes_per_s = 1.25e10;
  p.load_bytes_per_s = 8e8;
  p.memory_bytes = 16'000'000'001;
  p.device = "cpu";
  p.measured = "on a \"shared\" machine";
  p.sparse_attention_flops_per_s = {{"block_sparse", 1e11}, {"vertical_slash", 9e10}};
  p.index_flops_per_s = {{"quest", 1e9}};
  const HardwareProfile back = parse_profile(profile_text(p), "p.yaml");
  EXPECT_EQ(back.name, p.name);
  EXPECT_EQ(back.linear_flops_per_s, p.linear_flops_per_s);
  EXPECT_EQ(back.attention_flops_per_s, p.attention_flops_per_s);
  EXPECT_EQ(back.bytes_per_s, p.bytes_per_s);
  EXPECT_EQ(back.link_bytes_per_s, 0);
  EXPECT_EQ(back.step_overhead_s, p.step_overhead_s);
  EXPECT_EQ(back.layer_overhead_s, p.layer_overhead_s);
  EXPECT_EQ(back.sequence_overhead_s, p.sequence_overhead_s);
  EXPECT_EQ(back.kv_bytes_per_s, p.kv_bytes_per_s);
  EXPECT_EQ(back.load_bytes_per_s, p.load_bytes_per_s);
  EXPECT_EQ(back.memory_bytes, p.memory_bytes);
  EXPECT_EQ(back.device, p.device);
  EXPECT_EQ(back.measured, p.measured);
  EXPECT_EQ(back.sparse_attention_flops_per_s, p.sparse_attention_flops_per_s);
  EXPECT_EQ(back.index_flops_per_s, p.index_flops_per_s);
}

TEST(Profile, EveryYamlReaderTakesItsNumbersForNumbers) {
  HardwareProfile p = parse_profile(kLeast, "p.yaml");
  p.step_overhead_s = 1e-9;  // PyYAML reads 1e-09 as a text
  p.layer_overhead_s = 0.5;
  EXPECT_THAT(profile_text(p), testing::AllOf(testing::HasSubstr("step_overhead_s: 1.0e-09 "),
                                              testing::HasSubstr("bytes_per_s: 3.0e+10 "),
                                              testing::HasSubstr("layer_overhead_s: 0.5 ")));
}

TEST(Profile, UnknownFieldsAndMethodsGetTheNearestName) {
  EXPECT_THAT(
      error_of(kLeast + "byte_per_s: 1\n"),
      testing::AllOf(testing::HasSubstr("p.yaml:4:"), testing::HasSubstr("did you mean 'bytes_per_s'")));
  EXPECT_THAT(error_of(kLeast + "index_flops_per_s:\n  qest: 1e9\n"),
              testing::AllOf(testing::HasSubstr("p.yaml:5:"), testing::HasSubstr("did you mean 'quest'")));
}

TEST(Profile, RatesArePositiveNumbers) {
  for (const char* wrong : {"0", "-1", ".nan", ".inf", "fast", "[1]"}) {
    const std::string text = error_of(
        "linear_flops_per_s: 1e9\nattention_flops_per_s: " + std::string(wrong) + "\nbytes_per_s: 1\n");
    EXPECT_THAT(text, testing::HasSubstr("p.yaml:2:")) << wrong;
    EXPECT_THAT(text, testing::HasSubstr("attention_flops_per_s")) << wrong;
  }
  EXPECT_EQ(error_of(kLeast + "step_overhead_s: 0\n"), "no error");
  EXPECT_THAT(error_of(kLeast + "step_overhead_s: -1\n"), testing::HasSubstr("must be 0 or more"));
  EXPECT_THAT(error_of(kLeast + "device: tpu\n"), testing::HasSubstr("p.yaml:4:"));
}

TEST(Profile, AMissingRateNamesTheCommandThatMeasuresIt) {
  const std::string partial = "linear_flops_per_s: 1e9\nbytes_per_s: 1\n";
  EXPECT_THAT(error_of(partial),
              testing::AllOf(testing::HasSubstr("attention_flops_per_s"),
                             testing::HasSubstr("lacuna bench attention --profile p.yaml")));
  EXPECT_EQ(error_of(partial, ProfileCheck::kPartial), "no error");
  EXPECT_THAT(error_of("- 1\n"), testing::HasSubstr("p.yaml"));
}

TEST(Profile, MethodsWithoutARateOfTheirOwnTakeTheDenseOne) {
  const HardwareProfile p = parse_profile(
      kLeast + "sparse_attention_flops_per_s: {block_sparse: 5e10}\nindex_flops_per_s: {quest: 1e9}\n",
      "p.yaml");
  EXPECT_EQ(p.attention_rate("block_sparse"), 5e10);
  EXPECT_EQ(p.attention_rate("dense"), 1.5e11);
  EXPECT_EQ(p.index_rate("quest"), 1e9);
  EXPECT_EQ(p.index_rate("snapkv"), 1.5e11);
  EXPECT_EQ(p.kv_rate(), 3e10) << "what weights reach, when caches were not measured";
}

TEST(Profile, MeasuredRatesDecideThePrediction) {
  const ModelShape shape{
      .layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .hidden = 64, .mlp = 128, .vocab = 256};
  HardwareProfile p = parse_profile(kLeast, "p.yaml");
  const CostBreakdown flops = causal_prefill_flops(shape, 1000, 0.5, 1e6);
  const double before = prefill_seconds(shape, 1000, flops, p, 1, 2, "vertical_slash");
  p.sparse_attention_flops_per_s["vertical_slash"] = 1.5e10;  // ten times slower than dense
  p.index_flops_per_s["vertical_slash"] = 1e9;
  const double expected = before + 9 * flops.attention / 1.5e11 + 1e6 / 1e9 - 1e6 / 1.5e11;
  EXPECT_NEAR(prefill_seconds(shape, 1000, flops, p, 1, 2, "vertical_slash"), expected, 1e-12);
  EXPECT_NEAR(prefill_seconds(shape, 1000, flops, p, 1, 2, "block_sparse"), before, 1e-12);

  const DecodeCost step = causal_decode_step(shape, 1000, 0, 3, 4);
  const double plain = decode_step_seconds(shape, step, p, 1, 3, 4);
  p.layer_overhead_s = 1e-3;
  p.sequence_overhead_s = 1e-2;
  p.kv_bytes_per_s = 3e9;
  EXPECT_NEAR(decode_step_seconds(shape, step, p, 1, 3, 4),
              plain + 2 * 1e-3 + 3 * 1e-2 + 9 * step.bytes.attention / 3e10, 1e-12);
}

}  // namespace
}  // namespace lacuna
