// Random layers for the tests: Q, K, V with views, in any head layout, with a team of one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <cmath>
#include <numeric>
#include "attention/types.h"
#include "core/json.h"
#include "core/rng.h"

namespace lacuna::test {

struct Shape {
  std::int64_t tokens = 100;
  int q_heads = 4, kv_heads = 2, head_dim = 64;
};

/// Owns one layer's tensors. Integer values in [-range, range] when range > 0, normal values otherwise.
class Layer {
 public:
  Layer(const Shape& shape, std::uint64_t seed, int range = 0, float spread = 1.0f) {
    Rng rng(seed, stream_id("attention test"));
    const auto fill = [&](std::vector<float>& x, int heads) {
      x.resize(static_cast<std::size_t>(heads) * static_cast<std::size_t>(shape.tokens * shape.head_dim));
      for (float& value : x) {
        value = range > 0
                    ? static_cast<float>(
                          static_cast<int>(rng.below(static_cast<std::uint64_t>(2 * range + 1))) - range)
                    : spread * static_cast<float>(rng.normal());
      }
    };
    fill(q, shape.q_heads);
    fill(k, shape.kv_heads);
    fill(v, shape.kv_heads);
    out.resize(q.size());
    input.q = view(q, shape.q_heads, shape);
    input.k = view(k, shape.kv_heads, shape);
    input.v = view(v, shape.kv_heads, shape);
    output = view(out, shape.q_heads, shape);
    LayerInfo& info = input.info;
    info.q_heads = info.q_heads_total = shape.q_heads;
    info.kv_heads = info.kv_heads_total = shape.kv_heads;
    info.head_dim = shape.head_dim;
    // A power of two keeps scores of integer inputs exact.
    info.scale = range > 0 ? 0.0625f : 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    input.communicator = &self_;
    input.seed = seed;
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  std::vector<float> q, k, v, out;
  PrefillInput input;
  HeadsView output;

 private:
  static HeadsView view(std::vector<float>& x, int heads, const Shape& shape) {
    return {.data = x.data(),
            .heads = heads,
            .tokens = shape.tokens,
            .head_dim = shape.head_dim,
            .head_stride = shape.tokens * shape.head_dim,
            .token_stride = shape.head_dim};
  }
  SelfCommunicator self_;
};

}  // namespace lacuna::test
