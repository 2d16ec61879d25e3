#include "core/rng.h"

#include <cmath>
#include <numbers>
#include <unordered_map>

#include "core/error.h"
#include "core/hash.h"

namespace lacuna {

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> c, std::array<std::uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return c;
}

std::uint32_t Rng::next_u32() {
  if (used_ == 4) {
    block_ = philox4x32({static_cast<std::uint32_t>(counter_), static_cast<std::uint32_t>(counter_ >> 32),
                         static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                        {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
    ++counter_;
    used_ = 0;
  }
  return block_[static_cast<std::size_t>(used_++)];
}

std::uint64_t Rng::next_u64() {
  const std::uint64_t low = next_u32();
  return low | (std::uint64_t{next_u32()} << 32);
}

std::uint64_t Rng::below(std::uint64_t n) {
  LACUNA_CHECK(n > 0, "below(0) has no value");
  __extension__ using Wide = unsigned __int128;
  while (true) {
    const Wide product = Wide{next_u64()} * n;
    const auto low = static_cast<std::uint64_t>(product);
    if (low >= n || low >= (0 - n) % n) return static_cast<std::uint64_t>(product >> 64);
  }
}

double Rng::uniform() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }

double Rng::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

std::vector<std::uint64_t> Rng::sample(std::uint64_t n, std::uint64_t count) {
  LACUNA_CHECK(count <= n, "cannot draw {} distinct values below {}", count, n);
  std::unordered_map<std::uint64_t, std::uint64_t> moved;  // Fisher-Yates over a virtual 0..n-1
  std::vector<std::uint64_t> picks(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t j = i + below(n - i);
    const auto at = [&](std::uint64_t k) {
      const auto it = moved.find(k);
      return it == moved.end() ? k : it->second;
    };
    picks[i] = at(j);
    moved[j] = at(i);
  }
  return picks;
}

std::uint64_t stream_id(std::string_view name, std::uint64_t a, std::uint64_t b) {
  return Hasher().add(name).add(a).add(b).digest64();
}

}  // namespace lacuna
