#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/error.h"
#include "core/rng.h"
#include "tests/fuzz/safetensors_fuzz.h"
#include "tests/model/tiny_model.h"

namespace lacuna {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TemporaryFolder;
using testing::TinyTensors;
using testing::write_text;

std::string with_header(const std::string& header, std::size_t data_bytes) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header.size() >> (8 * i) & 0xFF));
  return bytes + header + std::string(data_bytes, '\1');
}

std::string refusal(const std::string& bytes) {
  try {
    parse_safetensors(std::as_bytes(std::span(bytes)), "w.safetensors");
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kUsage);
    EXPECT_THAT(e.what(), HasSubstr("w.safetensors"));
    return e.what();
  }
  return "accepted";
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(refusal(with_header("{}", 0)), "accepted");
  EXPECT_EQ(refusal(with_header(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4)), "accepted");
  EXPECT_EQ(
      refusal(with_header(
          R"({"a":{"dtype":"BF16","shape":[2,0],"data_offsets":[0,0]},"__metadata__":{"x":"y"}}   )", 0)),
      "accepted");
}

TEST(Safetensors, EveryDamageHasItsMessage) {
  EXPECT_THAT(refusal("abc"), HasSubstr("3 bytes are too few"));
  std::string huge(8, '\0');
  huge[3] = 0x40;  // 2^30 bytes of header
  EXPECT_THAT(refusal(huge + "{}"), HasSubstr("header of 1073741824 bytes"));
  std::string longer = with_header("{}", 0);
  longer[0] = 100;
  EXPECT_THAT(refusal(longer), AllOf(HasSubstr("header of 100 bytes"), HasSubstr("truncated")));
  EXPECT_THAT(refusal(with_header("[]", 0)), HasSubstr("does not start with '{'"));
  EXPECT_THAT(refusal(with_header("{]", 0)), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal(with_header("{\"a\":" + std::string(100000, '['), 0)), HasSubstr("nested deeper"));
  const auto entry = [](const char* fields) {
    return with_header(std::string(R"({"a":{)") + fields + "}}", 8);
  };
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1)")),
              AllOf(HasSubstr("'a'"), HasSubstr("unknown field 'x'")));
  EXPECT_THAT(refusal(entry(R"("dtype":"F31","shape":[2],"data_offsets":[0,8])")),
              HasSubstr("unknown dtype 'F31'"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,12])")),
              AllOf(HasSubstr("'a'"), HasSubstr("outside")));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])")), HasSubstr("outside"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])")),
              HasSubstr("needs 12 bytes"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])")), HasSubstr("holds -2"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])")),
              HasSubstr("too large"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[2],"data_offsets":[0])")), HasSubstr("two numbers"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])")),
              HasSubstr("4 bytes at the end"));
  EXPECT_THAT(refusal(entry(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])")),
              HasSubstr("4 bytes before tensor 'a'"));
  EXPECT_THAT(
      refusal(with_header(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          8)),
      HasSubstr("tensor 'b' overlaps tensor 'a'"));
  EXPECT_THAT(
      refusal(with_header(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
          1)),
      HasSubstr("lists 'a' twice"));
}

TEST(Safetensors, SeededMutationsNeverCrash) {
  TinyTensors tensors;
  tensors["model.a"] = {.shape = {2, 3}, .dtype = "F32", .bytes = std::string(24, 'x')};
  tensors["model.b"] = {.shape = {4}, .dtype = "BF16", .bytes = std::string(8, 'y')};
  const std::string seed = safetensors_bytes(tensors);
  int accepted = 0;
  for (std::uint64_t round = 0; round < 30000; ++round) {
    Rng rng(round, 7);
    std::string bytes = seed;
    for (std::uint64_t edits = 1 + rng.below(4); edits > 0; --edits) {
      const auto at = static_cast<std::size_t>(rng.below(bytes.size()));
      switch (rng.below(4)) {
        case 0:
          bytes[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          bytes.erase(at, rng.below(8));
          break;
        case 2:
          bytes.insert(at, 1, "0123456789[]{},:\"-e"[rng.below(19)]);
          break;
        default:
          bytes.resize(std::max<std::size_t>(1, at));
          break;
      }
      if (bytes.empty()) bytes = "{";
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    try {
      parse_safetensors(std::as_bytes(std::span(bytes)), "w");
      ++accepted;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(accepted, 100) << "the mutations should also keep some files valid";
  EXPECT_LT(accepted, 20000);
}

class WeightsFolder : public ::testing::Test {
 protected:
  std::string open_error() {
    try {
      Weights::open(folder_.path());
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  }
  TemporaryFolder folder_{"weights"};
};

TEST_F(WeightsFolder, IndexAndFilesMustAgree) {
  EXPECT_THAT(open_error(), HasSubstr("neither model.safetensors nor"));
  TinyTensors tensors;
  for (const char* name : {"a", "b", "c"})
    tensors[name] = {.shape = {2}, .dtype = "F32", .bytes = std::string(8, 'x')};
  testing::write_sharded(folder_.path(), tensors, 2);
  EXPECT_EQ(Weights::open(folder_.path()).names(), (std::vector<std::string>{"a", "b", "c"}));
  const std::string index = folder_.file("model.safetensors.index.json");
  write_text(index, R"({"weight_map": {"a": "../a.safetensors"}})");
  EXPECT_THAT(open_error(), HasSubstr("expected a file of this folder"));
  write_text(index, R"({"weight_map": {"a": "gone.safetensors"}})");
  EXPECT_THAT(open_error(), HasSubstr("gone.safetensors, which is not there"));
  write_text(
      index,
      R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "x": "model-00001-of-00002.safetensors"}})");
  EXPECT_THAT(open_error(), HasSubstr("tensor 'x'"));
  write_text(index, R"({"weight_map": {"a": "model-00001-of-00002.safetensors"}})");
  EXPECT_THAT(open_error(), HasSubstr("tensor 'c' is not in the index"));
  write_text(index, R"({"metadata": {}})");
  EXPECT_THAT(open_error(), HasSubstr("weight_map"));
}

TEST_F(WeightsFolder, FingerprintSeesEveryByteOfSmallFolders) {
  TinyTensors tensors;
  tensors["a"] = {.shape = {4}, .dtype = "F32", .bytes = std::string(16, 'x')};
  write_text(folder_.file("model.safetensors"), safetensors_bytes(tensors));
  const std::string before = Weights::open(folder_.path()).fingerprint();
  EXPECT_EQ(before, Weights::open(folder_.path()).fingerprint());
  tensors["a"].bytes[9] = 'y';
  write_text(folder_.file("model.safetensors"), safetensors_bytes(tensors));
  EXPECT_NE(before, Weights::open(folder_.path()).fingerprint());
}

TEST_F(WeightsFolder, ShapeAndTypeErrorsNameFileAndTensor) {
  TinyTensors tensors;
  tensors["a"] = {.shape = {2, 2}, .dtype = "F32", .bytes = std::string(16, 'x')};
  tensors["i"] = {.shape = {2}, .dtype = "I32", .bytes = std::string(8, 'x')};
  write_text(folder_.file("model.safetensors"), safetensors_bytes(tensors));
  const Weights weights = Weights::open(folder_.path());
  const auto error = [&](const auto& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_THAT(error([&] { weights.matrix("a", 2, 3); }),
              AllOf(HasSubstr("model.safetensors"),
                    HasSubstr("'a' has shape [2, 2], but config.json asks for [2, 3]")));
  EXPECT_THAT(error([&] { weights.vector("a", 4); }), HasSubstr("'a' has shape"));
  EXPECT_THAT(error([&] { weights.vector("i", 2); }), HasSubstr("'i' has dtype I32"));
  EXPECT_THAT(error([&] { weights.vector("z", 2); }),
              AllOf(HasSubstr("model.safetensors"), HasSubstr("'z' is missing")));
}

}  // namespace
}  // namespace lacuna
