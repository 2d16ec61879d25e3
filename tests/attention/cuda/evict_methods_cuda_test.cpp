// Every eviction on the GPU against the CPU's, on integer-valued inputs; and on two ranks against one.
#include <algorithm>
#include <set>
#include <thread>

#include "attention/cuda/prefill_methods.h"
#include "core/error.h"
#include "tests/attention/cuda/method_test_util.h"

namespace lacuna {
namespace {

using testing::ContextOwner;
using testing::layer_cases;
using testing::LayerCase;
using testing::LayerTwice;

using Kept = std::vector<std::vector<std::int32_t>>;

constexpr const char* kEvictions[] = {
    R"("none")",
    R"({"streaming": {"capacity": 100, "sinks": 4}})",
    R"({"snapkv": {"capacity": 100, "window": 32, "kernel": 7, "last": 16}})",
    R"({"snapkv": {"capacity": 10, "window": 300, "kernel": 1, "first": 3, "last": 20}})",
    R"({"ada_snapkv": {"capacity": 100, "window": 32, "kernel": 5, "last": 16}})",
    R"({"ada_snapkv": {"capacity": 60, "min_share": 0, "window": 16, "first": 0, "last": 1}})",
    R"({"pyramidkv": {"capacity": 120, "window": 32, "last": 16}})",
    R"({"tova": {"capacity": 77}})",
    R"({"tova": {"capacity": 1}})",
    R"({"expected_attention": {"capacity": 90, "window": 64}})",
    R"({"expected_attention": {"capacity": 16, "sinks": 20, "epsilon": 0.01, "value_norm": false}})"};

std::string first_difference(const Kept& got, const Kept& wanted) {
  for (std::size_t h = 0; h < wanted.size(); ++h) {
    if (got[h].size() != wanted[h].size())
      return fmt::format("head {}: {} kept instead of {}", h, got[h].size(), wanted[h].size());
    for (std::size_t i = 0; i < wanted[h].size(); ++i) {
      if (got[h][i] != wanted[h][i])
        return fmt::format("head {} entry {}: {} instead of {}", h, i, got[h][i], wanted[h][i]);
    }
  }
  return "";
}

void check(const std::string& json, const LayerCase& c) {
  SCOPED_TRACE(json + " " + c.to_string());
  LayerTwice layer(c);
  const MethodSpec spec = testing::method(Slot::kEvict, json);
  AttentionCounts cpu, cuda;
  const Kept wanted = make_evictor(spec)->keep(layer.cpu(), cpu);
  ContextOwner owner;
  const auto evictor = make_cuda_evictor(spec, owner.context);
  const Kept got = evictor->keep(layer.cuda(), cuda);
  ASSERT_EQ(got.size(), wanted.size());
  EXPECT_EQ(first_difference(got, wanted), "");
  EXPECT_NEAR(cuda.index_flops, cpu.index_flops, 1e-9 * cpu.index_flops);
  owner.scratch.clear();
  EXPECT_EQ(evictor->keep(layer.cuda(), cuda), got);
}

TEST(EvictMethodsCuda, KeepWhatTheCpuKeeps) {
  for (const LayerCase& c : layer_cases())
    for (const char* json : kEvictions) check(json, c);
}
TEST(EvictMethodsCuda, EveryHeadDim) {
  for (const int head_dim : {96, 128, 256})
    for (const char* json : kEvictions) check(json, {.head_dim = head_dim, .tokens = 400});
}
TEST(EvictMethodsCuda, SlidingWindowAndSoftcap) {
  for (const char* json : kEvictions) check(json, {.tokens = 700, .window = 256, .softcap = 30.0f});
}

TEST(EvictMethodsCuda, ScoresThatAreNotFiniteNameLayerAndHead) {
  for (const char* json : {R"({"snapkv": {"capacity": 20}})", R"({"ada_snapkv": {"capacity": 20}})",
                           R"({"pyramidkv": {"capacity": 20}})", R"({"tova": {"capacity": 20}})",
                           R"({"expected_attention": {"capacity": 20}})"}) {
    SCOPED_TRACE(json);
    LayerTwice layer({.q_heads = 4, .kv_heads = 1, .tokens = 200});
    layer.set_query(3, 199, NAN);
    ContextOwner owner;
    AttentionCounts counts;
    try {
      (void)make_cuda_evictor(testing::method(Slot::kEvict, json), owner.context)->keep(layer.cuda(), counts);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_NE(std::string(error.what()).find("layer 1, query head 3"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace lacuna
