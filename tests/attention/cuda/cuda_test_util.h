// Host-side helpers of the CUDA attention tests: random bfloat16 tensors, uploads, and the plain loops they
// are compared with.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "attention/cuda/attention_cuda.h"
#include "attention/types.h"
#include "core/cuda.h"
#include "core/error.h"
#include "core/rng.h"
#include "core/tensor.h"

namespace lacuna::testing {

/// Device copy of a vector; freed with it.
template <class T>
class DeviceVector {
 public:
  DeviceVector() = default;
  explicit DeviceVector(const std::vector<T>& from)
      : count_(from.size()), buffer_(bytes_of(from.size()), Buffer::Kind::kDevice) {
    LACUNA_CUDA(cudaMemcpy(buffer_.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  /// Filled with 0xFF bytes: NaN as bfloat16 and float, -1 as integer.
  explicit DeviceVector(std::size_t count) : count_(count), buffer_(bytes_of(count), Buffer::Kind::kDevice) {
    LACUNA_CUDA(cudaMemset(buffer_.data(), 0xFF, bytes_of(count)));
  }
  T* data() const { return buffer_.as<T>(); }
  std::size_t size() const { return count_; }
  std::vector<T> download() const {
    std::vector<T> to(count_);
    LACUNA_CUDA(cudaDeviceSynchronize());
    LACUNA_CUDA(cudaMemcpy(to.data(), buffer_.data(), count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  static std::size_t bytes_of(std::size_t count) { return count * sizeof(T) + 16; }
  std::size_t count_ = 0;
  Buffer buffer_;
};

inline std::vector<BFloat16> random_bf16(std::size_t count, std::uint64_t seed, float scale = 1.0f) {
  // A plain generator: the sums of four uniforms are close enough to normal.
  std::vector<BFloat16> values(count);
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ull + 1;
  for (auto& value : values) {
    float sum = 0.0f;
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      sum += static_cast<float>(state >> 40) / static_cast<float>(1 << 24) - 0.5f;
    }
    value = to_bfloat16(sum * 1.73f * scale);
  }
  return values;
}

/// A [heads, tokens, head_dim] tensor on the device in one of two layouts, with NaN in the padding behind
/// each row.
struct HeadsOnDevice {
  std::vector<float> values;  ///< [heads, tokens, head_dim], what the bfloat16 values are
  DeviceVector<BFloat16> memory;
  HeadsView view;

  HeadsOnDevice(int heads, std::int64_t tokens, int head_dim, bool token_major, std::uint64_t seed,
                float scale = 1.0f) {
    const auto total = static_cast<std::size_t>(heads * tokens * head_dim);
    const auto random = random_bf16(total, seed, scale);
    values.resize(total);
    for (std::size_t i = 0; i < total; ++i) values[i] = to_float(random[i]);
    constexpr int kPadding = 8;
    view.dtype = DType::kBF16;
    view.device = Device::kCuda;
    view.heads = heads;
    view.tokens = tokens;
    view.head_dim = head_dim;
    view.token_stride = token_major ? heads * (head_dim + kPadding) : head_dim + kPadding;
    view.head_stride = token_major ? head_dim + kPadding : tokens * (head_dim + kPadding);
    std::vector<BFloat16> laid(static_cast<std::size_t>(heads * tokens * (head_dim + kPadding)),
                               BFloat16{0xFFFF});
    for (int h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < tokens; ++t)
        std::memcpy(laid.data() + h * view.head_stride + t * view.token_stride,
                    random.data() + (h * tokens + t) * head_dim, static_cast<std::size_t>(head_dim) * 2);
    memory = DeviceVector<BFloat16>(laid);
    view.data = memory.data();
  }
  const float* row(int head, std::int64_t token) const {
    return values.data() + (head * view.tokens + token) * view.head_dim;
  }
};

/// A TileLists and its device copy.
struct ListsOnDevice {
  DeviceArena arena;
  DeviceTileLists lists;
  explicit ListsOnDevice(const TileLists& host)
      : arena(tile_list_bytes(host) + 256), lists(upload_tile_lists(host, arena, nullptr)) {}
};

/// Softmax-weighted sum over the keys that `visits` allows, in double. `bound` is what bfloat16 weights and
/// output may lose.
template <class Visits>
void plain_attention(const float* q, const LayerInfo& info, std::int64_t keys, const Visits& visits,
                     const auto& key_row, const auto& value_row, std::vector<double>& out,
                     std::vector<double>& bound) {
  const int d = info.head_dim;
  std::vector<double> score(static_cast<std::size_t>(keys));
  double top = -INFINITY;
  for (std::int64_t j = 0; j < keys; ++j) {
    if (!visits(j)) continue;
    double s = 0;
    for (int c = 0; c < d; ++c) s += static_cast<double>(q[c]) * key_row(j)[c];
    s *= info.scale;
    if (info.softcap > 0) s = info.softcap * std::tanh(s / info.softcap);
    score[static_cast<std::size_t>(j)] = s;
    top = std::max(top, s);
  }
  out.assign(static_cast<std::size_t>(d), 0.0);
  bound.assign(static_cast<std::size_t>(d), 0.0);
  double total = 0;
  for (std::int64_t j = 0; j < keys; ++j) {
    if (!visits(j)) continue;
    const double p = std::exp(score[static_cast<std::size_t>(j)] - top);
    total += p;
    for (int c = 0; c < d; ++c) {
      out[static_cast<std::size_t>(c)] += p * value_row(j)[c];
      bound[static_cast<std::size_t>(c)] += p * std::abs(value_row(j)[c]);
    }
  }
  for (int c = 0; c < d; ++c) {
    const auto i = static_cast<std::size_t>(c);
    if (total > 0) out[i] /= total, bound[i] /= total;
    // Half a unit of bfloat16 is 2^-9 of each weight and of the result; fp32 scores add a little.
    bound[i] = bound[i] * 0x1p-8 + std::abs(out[i]) * 0x1p-8 + 1e-6;
  }
}

}  // namespace lacuna::testing
