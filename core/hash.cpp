#include "core/hash.h"

#include <xxhash.h>

#include <array>
#include <bit>
#include <cstdio>

#include "core/error.h"
#include "core/file.h"

namespace lacuna {

struct Hasher::State {
  XXH3_state_t* xxh = XXH3_createState();
  ~State() { XXH3_freeState(xxh); }
};

Hasher::Hasher() : state_(std::make_unique<State>()) { XXH3_128bits_reset(state_->xxh); }
Hasher::~Hasher() = default;

Hasher& Hasher::add_bytes(const void* data, std::size_t bytes) {
  XXH3_128bits_update(state_->xxh, data, bytes);
  return *this;
}

Hasher& Hasher::add(std::string_view text) {
  add(static_cast<std::uint64_t>(text.size()));
  return add_bytes(text.data(), text.size());
}

Hasher& Hasher::add(std::uint64_t value) {
  std::array<unsigned char, 8> bytes{};  // little endian on every machine
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
  return add_bytes(bytes.data(), bytes.size());
}

std::uint64_t Hasher::digest64() const { return XXH3_128bits_digest(state_->xxh).low64; }

std::string Hasher::digest_hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->xxh);
  return to_hex(hash.high64) + to_hex(hash.low64);
}

std::uint64_t hash64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string to_hex(std::uint64_t value) { return fmt::format("{:016x}", value); }

std::string hash_file(const std::string& path) {
  const MappedFile file(path);
  Hasher hasher;
  hasher.add_bytes(file.bytes().data(), file.bytes().size());
  return hasher.digest_hex();
}

}  // namespace lacuna
