// Counter-based random numbers: the same values on every machine, compiler, thread and rank.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace lacuna {

/// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11): one block of 128 bits.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// A stream of random numbers that depends on (seed, stream) alone. Cheap to make; copy it to replay it.
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  std::uint32_t next_u32();
  std::uint64_t next_u64();
  /// Uniform in [0, n), without bias (Lemire 2019). n > 0.
  std::uint64_t below(std::uint64_t n);
  /// Uniform in [0, 1) with 53 bits.
  double uniform();
  /// Standard normal (Box-Muller on two uniforms; no state kept between calls).
  double normal();

  /// Fisher-Yates.
  template <class T>
  void shuffle(std::span<T> items) {
    for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    shuffle(std::span<T>(items));
  }
  /// `count` distinct indices below `n`, in random order. count <= n. O(count) memory.
  std::vector<std::uint64_t> sample(std::uint64_t n, std::uint64_t count);

 private:
  std::uint64_t seed_, stream_, counter_ = 0;
  std::array<std::uint32_t, 4> block_{};
  int used_ = 4;
};

/// A stream number from a name and indices, so that independent parts never share a stream.
std::uint64_t stream_id(std::string_view name, std::uint64_t a = 0, std::uint64_t b = 0);

}  // namespace lacuna
