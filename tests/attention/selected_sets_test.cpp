// Selected sets against the NumPy implementation in golden/make_selected_sets.py, digest by digest.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "attention/key_stream.h"
#include "attention/strategy.h"
#include "core/file.h"
#include "core/hash.h"
#include "tests/attention/fixture.h"
#include "tests/attention/paged_cache.h"

namespace lacuna {
namespace {

using Sets = std::vector<std::vector<std::int32_t>>;

/// SplitMix64's finaliser.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

void fill(std::vector<float>& x, std::uint64_t seed, std::uint64_t tensor) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(static_cast<int>((mix(((seed * 4 + tensor) << 40) | i) >> 33) % 7) - 3);
  }
}

std::string digest(const Sets& sets) {
  std::uint64_t total = 0, position = 0;
  for (const auto& set : sets) {
    for (const std::int32_t value : set)
      total += mix(static_cast<std::uint64_t>(value + 1) + (position++ << 32));
    total += mix(position++ << 32);
  }
  return to_hex(total);
}

/// Visited keys per row block, ranges and columns together, as far as the block's last row sees.
Sets visited(const TileLists& lists, int head) {
  Sets sets;
  for (std::int64_t begin = 0; begin < lists.tokens; begin += lists.row_block) {
    sets.emplace_back();
    visited_keys(lists, head, begin, std::min(begin + lists.row_block, lists.tokens), 0, sets.back());
    std::sort(sets.back().begin(), sets.back().end());
  }
  return sets;
}

/// What the program selects: one list of sets per digest.
std::vector<Sets> selected(test::Layer& layer, const std::string& slot, const Json& method) {
  const StrategySpec spec = parse_strategy(Json{{slot, method}}, "golden");
  AttentionCounts counts;
  std::vector<Sets> result;
  if (slot == "prefill") {
    TileLists lists;
    make_prefill_selector(spec.prefill)->select(layer.input, lists, counts);
    for (int h = 0; h < lists.heads; ++h) result.push_back(visited(lists, h));
  } else if (slot == "evict") {
    result.push_back(make_evictor(spec.evict)->keep(layer.input, counts));
  } else {
    const test::PagedCache cache(layer.input);
    std::vector<float> q;
    for (int h = 0; h < layer.input.info.q_heads; ++h) {
      const float* row = layer.input.q.row(h, layer.input.q.tokens - 1);
      q.insert(q.end(), row, row + layer.input.info.head_dim);
    }
    const auto selector = make_decode_selector(spec.decode);
    const auto state = selector->make_state(layer.input.info);
    result.emplace_back();
    selector->select(cache.input(q.data(), layer.input.info, *layer.input.communicator), state.get(),
                     result.back(), counts);
  }
  return result;
}

TEST(SelectedSets, EqualNumPy) {
  const Json golden = read_json_file("tests/attention/golden/selected_sets.json");
  int full = 0;
  for (const Json& c : golden["cases"]) {
    test::Layer layer({.tokens = c["tokens"].get<std::int64_t>(),
                       .q_heads = c["q_heads"].get<int>(),
                       .kv_heads = c["kv_heads"].get<int>(),
                       .head_dim = golden["head_dim"].get<int>()},
                      1, 1);
    layer.input.info.scale = golden["scale"].get<float>();
    fill(layer.q, c["seed"].get<std::uint64_t>(), 0);
    fill(layer.k, c["seed"].get<std::uint64_t>(), 1);
    const auto sets = selected(layer, c["slot"], Json{{c["method"].get<std::string>(), c["params"]}});
    ASSERT_EQ(sets.size(), c["digests"].size());
    if (c.contains("sets")) {
      EXPECT_EQ(sets[0], c["sets"].get<Sets>()) << c["method"] << c["params"];
      ++full;
    }
    for (std::size_t i = 0; i < sets.size(); ++i) {
      EXPECT_EQ(digest(sets[i]), c["digests"][i].get<std::string>())
          << c["method"] << c["params"] << " tokens " << c["tokens"] << " group "
          << layer.input.info.q_heads / layer.input.info.kv_heads << " list " << i;
    }
  }
  EXPECT_EQ(golden["cases"].size(), 4u * 3u * 9u);
  EXPECT_GT(full, 0);
}

}  // namespace
}  // namespace lacuna
