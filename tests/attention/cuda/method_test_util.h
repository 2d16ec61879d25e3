// One random layer twice: float32 for the CPU's methods, bfloat16 on the device for the GPU's.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "attention/cuda/context.h"
#include "attention/strategy.h"
#include "core/json.h"
#include "tests/attention/cuda/cuda_test_util.h"

namespace lacuna::testing {

struct LayerCase {
  int q_heads = 4, kv_heads = 2, head_dim = 64;
  std::int64_t tokens = 300;
  int window = 0;
  float softcap = 0.0f;
  std::string to_string() const {
    return fmt::format("q_heads {} kv_heads {} head_dim {} tokens {} window {} softcap {}", q_heads, kv_heads,
                       head_dim, tokens, window, softcap);
  }
};

/// Queries, keys and values of small integers: dot products and block means of powers of two are exact in
/// both worlds. Keys get a direction that grows and shrinks along the prompt, so that importance is spread
/// out.
class LayerTwice {
 public:
  explicit LayerTwice(const LayerCase& c, std::uint64_t seed = 1) : case_(c) {
    fill(q_, c.q_heads, seed * 3 + 1, 2);
    fill(k_, c.kv_heads, seed * 3 + 2, 2);
    fill(v_, c.kv_heads, seed * 3 + 3, 3);
  }

  PrefillInput cpu() { return input(view(q_.host), view(k_.host), view(v_.host)); }
  PrefillInput cuda() { return input(view(q_.device), view(k_.device), view(v_.device)); }
  /// What rank `rank` of `ranks` sees: its query heads, and the kv heads they need.
  PrefillInput cuda(int rank, int ranks) {
    PrefillInput part = cuda();
    LayerInfo& info = part.info;
    info.q_heads = case_.q_heads / ranks;
    info.q_head_begin = rank * info.q_heads;
    const int group = case_.q_heads / case_.kv_heads;
    info.kv_head_begin = info.q_head_begin / group;
    info.kv_heads = (info.q_head_begin + info.q_heads - 1) / group - info.kv_head_begin + 1;
    const auto cut = [](HeadsView& x, int begin, int heads) {
      x.data = static_cast<BFloat16*>(x.data) + begin * x.head_stride;
      x.heads = heads;
    };
    cut(part.q, info.q_head_begin, info.q_heads);
    cut(part.k, info.kv_head_begin, info.kv_heads);
    cut(part.v, info.kv_head_begin, info.kv_heads);
    return part;
  }
  /// Overwrites one query channel in both worlds.
  void set_query(int head, std::int64_t token, float value) {
    const auto at = static_cast<std::size_t>((head * case_.tokens + token) * case_.head_dim);
    q_.host.values[at] = value;
    const BFloat16 x = to_bfloat16(value);
    LACUNA_CUDA(cudaMemcpy(q_.device.memory.data() + at, &x, sizeof x, cudaMemcpyHostToDevice));
  }

 private:
  struct OnHost {
    std::vector<float> values;
    int heads = 0;
  };
  struct OnDevice {
    DeviceVector<BFloat16> memory;
    int heads = 0;
  };
  struct Both {
    OnHost host;
    OnDevice device;
  };

  void fill(Both& to, int heads, std::uint64_t seed, int span) {
    std::uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
    const auto count = static_cast<std::size_t>(heads * case_.tokens * case_.head_dim);
    std::vector<BFloat16> rounded(count);
    to.host.values.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const auto value = static_cast<float>(
          static_cast<int>((state >> 33) % static_cast<std::uint64_t>(2 * span + 1)) - span);
      to.host.values[i] = value;
      rounded[i] = to_bfloat16(value);
    }
    to.host.heads = to.device.heads = heads;
    to.device.memory = DeviceVector<BFloat16>(rounded);
  }
  HeadsView view(OnHost& x) const { return shaped(x.values.data(), DType::kF32, Device::kCpu, x.heads); }
  HeadsView view(OnDevice& x) const { return shaped(x.memory.data(), DType::kBF16, Device::kCuda, x.heads); }
  HeadsView shaped(void* data, DType dtype, Device device, int heads) const {
    return {data,          dtype, device, heads, case_.tokens, case_.head_dim, case_.tokens * case_.head_dim,
            case_.head_dim};
  }
  PrefillInput input(const HeadsView& q, const HeadsView& k, const HeadsView& v) {
    PrefillInput made;
    made.q = q, made.k = k, made.v = v;
    made.info = info_;
    made.communicator = &self_;
    made.seed = 7;
    return made;
  }
  static LayerInfo make_info(const LayerCase& c) {
    LayerInfo info;
    info.layer = 1;
    info.layers = 4;
    info.q_heads = info.q_heads_total = c.q_heads;
    info.kv_heads = info.kv_heads_total = c.kv_heads;
    info.head_dim = c.head_dim;
    info.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    info.window = c.window;
    info.softcap = c.softcap;
    return info;
  }

  LayerCase case_;
  SelfCommunicator self_;
  LayerInfo info_ = make_info(case_);
  Both q_, k_, v_;
};

/// Scratch and stream of a context, as the owner of the methods keeps them.
struct ContextOwner {
  DeviceScratch scratch{nullptr};
  CudaContext context{.stream = nullptr, .scratch = &scratch};
};

inline MethodSpec method(Slot slot, const std::string& json) {
  const char* name = slot == Slot::kPrefill ? "prefill" : "evict";
  const StrategySpec spec =
      parse_strategy(parse_json("{\"" + std::string(name) + "\": " + json + "}", "test"), "test");
  return slot == Slot::kPrefill ? spec.prefill : spec.evict;
}

/// Every group size at every length. Half a minute a method in the emulator; see short_cases.
inline std::vector<LayerCase> layer_cases() {
  std::vector<LayerCase> cases;
  for (const std::int64_t tokens : {1, 17, 300, 1000})
    for (const int group : {1, 4, 7})
      cases.push_back({.q_heads = group == 1 ? 2 : group, .kv_heads = group == 1 ? 2 : 1, .tokens = tokens});
  return cases;
}
inline std::vector<LayerCase> short_cases() {
  return {{.q_heads = 7, .kv_heads = 1, .tokens = 1},
          {.q_heads = 4, .kv_heads = 1, .tokens = 17},
          {.q_heads = 2, .kv_heads = 2, .tokens = 300},
          {.q_heads = 7, .kv_heads = 1, .tokens = 250},
          {.q_heads = 1, .kv_heads = 1, .tokens = 700}};
}

}  // namespace lacuna::testing
