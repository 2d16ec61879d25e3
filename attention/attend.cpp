#include "attention/attend.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>

#include "attention/accounting.h"
#include "attention/kernels.h"
#include "attention/key_stream.h"
#include "core/error.h"

namespace lacuna {

namespace {

/// One array as float32, checked.
class HostArray {
 public:
  HostArray(const TensorView& from, const char* name) : shape_(from.shape) {
    LACUNA_REQUIRE(shape_.rank() == 3, "{}: expected [heads, tokens, head_dim], the array is {}", name,
                   shape_.to_string());
    LACUNA_REQUIRE(shape_.elements() > 0, "{}: the array {} is empty", name, shape_.to_string());
    LACUNA_REQUIRE(from.dtype == DType::kF32 || from.dtype == DType::kF16 || from.dtype == DType::kBF16,
                   "{}: expected float32 or float16, the array is {}", name, name_of(from.dtype));
    values_.resize(static_cast<std::size_t>(shape_.elements()));
    convert_to_float(from.data, from.dtype, values_.data(), values_.size());
    for (std::size_t i = 0; i < values_.size(); ++i) {
      if (std::isfinite(values_[i])) continue;
      const auto index = static_cast<std::int64_t>(i);
      throw_usage("{}: element [{}, {}, {}] is {}", name, index / (shape_[1] * shape_[2]),
                  index / shape_[2] % shape_[1], index % shape_[2], values_[i]);
    }
  }
  HeadsView view() {
    return {.data = values_.data(),
            .heads = static_cast<int>(shape_[0]),
            .tokens = shape_[1],
            .head_dim = static_cast<int>(shape_[2]),
            .head_stride = shape_[1] * shape_[2],
            .token_stride = shape_[2]};
  }
  const Shape& shape() const { return shape_; }
  const std::vector<float>& values() const { return values_; }

 private:
  Shape shape_;
  std::vector<float> values_;
};

void check_shapes(const Shape& q, const Shape& k, const Shape& v) {
  LACUNA_REQUIRE(k == v, "K is {} and V is {}: they must have one shape", k.to_string(), v.to_string());
  LACUNA_REQUIRE(q[2] == k[2], "Q has head_dim {} and K has {}", q[2], k[2]);
  LACUNA_REQUIRE(q[2] % 8 == 0 && q[2] <= 256, "head_dim {} is not supported: a multiple of 8, up to 256",
                 q[2]);
  LACUNA_REQUIRE(q[0] % k[0] == 0, "Q has {} heads and K has {}: kv heads must divide query heads", q[0],
                 k[0]);
  LACUNA_REQUIRE(k[1] < INT32_MAX / 2, "{} tokens are too many", k[1]);
  LACUNA_REQUIRE(q[1] == k[1] || q[1] == 1,
                 "Q has {} queries and K has {} tokens: give as many queries as tokens (a prompt), or one "
                 "query (a decode "
                 "step)",
                 q[1], k[1]);
}

LayerInfo layer_info(const AttendInput& input, const Shape& q, const Shape& k) {
  LayerInfo info;
  info.layer = input.layer;
  info.layers = input.layers;
  info.q_heads = info.q_heads_total = static_cast<int>(q[0]);
  info.kv_heads = info.kv_heads_total = static_cast<int>(k[0]);
  info.head_dim = static_cast<int>(q[2]);
  info.scale = input.scale.value_or(1.0f / std::sqrt(static_cast<float>(q[2])));
  info.softcap = input.softcap;
  info.window = input.window;
  return info;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void run_prefill(const PrefillInput& input, const StrategySpec& strategy, ThreadPool& threads,
                 AttendResult& result) {
  make_prefill_selector(strategy.prefill)->select(input, result.lists, result.counts);
  HeadsView out = input.q;
  out.data = result.out.data();
  const auto start = std::chrono::steady_clock::now();
  attention_prefill(input, result.lists, out, threads, result.counts);
  result.attention_seconds = seconds_since(start);
  for (int h = 0; h < input.info.q_heads; ++h) {
    result.head_sparsity.push_back(1 - density_of_head(result.lists, h, input.info.window));
  }
  result.kept = make_evictor(strategy.evict)->keep(input, result.counts);
  const std::int64_t row_bytes = 2 * input.info.head_dim * static_cast<std::int64_t>(sizeof(float));
  result.kv_bytes_full = input.info.kv_heads * input.q.tokens * row_bytes;
  result.kv_bytes_resident = result.kept.empty() ? result.kv_bytes_full : 0;
  for (const auto& head : result.kept) result.kv_bytes_resident += std::ssize(head) * row_bytes;
}

/// K and V of every head as pages in order.
struct Pages {
  std::vector<float> pool;
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<PagedHead> heads;
  std::int64_t page_elements = 0;

  Pages(const HeadsView& k, const HeadsView& v) {
    const std::int64_t per_head = (k.tokens + kPageTokens - 1) / kPageTokens;
    page_elements = 2 * kPageTokens * k.head_dim;
    pool.resize(static_cast<std::size_t>(k.heads * per_head * page_elements));
    for (int h = 0; h < k.heads; ++h) {
      for (std::int64_t t = 0; t < k.tokens; ++t) {
        float* page = pool.data() + (h * per_head + t / kPageTokens) * page_elements;
        std::copy_n(k.row(h, t), k.head_dim, page + t % kPageTokens * k.head_dim);
        std::copy_n(v.row(h, t), k.head_dim, page + (kPageTokens + t % kPageTokens) * k.head_dim);
      }
      ids.emplace_back(static_cast<std::size_t>(per_head));
      std::iota(ids.back().begin(), ids.back().end(), static_cast<std::int32_t>(h * per_head));
    }
    for (const auto& list : ids) heads.push_back({list, k.tokens});
  }
};

void run_decode(const PrefillInput& input, const StrategySpec& strategy, ThreadPool& threads,
                AttendResult& result) {
  const Pages pages(input.k, input.v);
  const auto* q = static_cast<const float*>(input.q.data);
  const auto selector = make_decode_selector(strategy.decode);
  const auto state = selector->make_state(input.info);
  if (!selector->reads_everything()) {
    selector->select({.q = q,
                      .heads = pages.heads,
                      .pool = pages.pool.data(),
                      .page_elements = pages.page_elements,
                      .info = input.info,
                      .communicator = input.communicator,
                      .seed = input.seed,
                      .threads = &threads},
                     state.get(), result.pages, result.counts);
  }
  const DecodeWork work{.q = q, .out = result.out.as<float>(), .heads = pages.heads, .lists = result.pages};
  const auto start = std::chrono::steady_clock::now();
  attention_decode({&work, 1}, pages.pool.data(), pages.page_elements, input.info, threads,
                   {&result.counts, 1});
  result.attention_seconds = seconds_since(start);

  const std::int64_t tokens = input.k.tokens;
  for (int h = 0; h < input.info.q_heads; ++h) {
    double read = static_cast<double>(tokens);
    if (!result.pages.empty()) {
      const bool per_kv = std::ssize(result.pages) == input.info.kv_heads;
      read = 0;
      for (const std::int32_t p :
           result.pages[static_cast<std::size_t>(per_kv ? input.info.kv_head_of(h) : h)]) {
        read +=
            static_cast<double>(std::min<std::int64_t>(kPageTokens, tokens - std::int64_t{p} * kPageTokens));
      }
    }
    result.head_sparsity.push_back(1 - read / static_cast<double>(tokens));
  }
  result.state_bytes = state ? state->bytes() : 0;
  result.kv_bytes_full =
      input.info.kv_heads * tokens * 2 * input.info.head_dim * static_cast<std::int64_t>(sizeof(float));
  result.kv_bytes_resident = result.kv_bytes_full;
}

}  // namespace

AttendResult attend(const AttendInput& input, const StrategySpec& strategy, ThreadPool& threads) {
  HostArray q(input.q, "Q"), k(input.k, "K"), v(input.v, "V");
  check_shapes(q.shape(), k.shape(), v.shape());
  LACUNA_REQUIRE(input.window >= 0 && input.softcap >= 0, "window and softcap must not be negative");
  LACUNA_REQUIRE(input.layers >= 1 && input.layer >= 0 && input.layer < input.layers,
                 "layer {} of {} does not exist", input.layer, input.layers);
  check_combination(strategy, "--strategy");
  SelfCommunicator self;
  const PrefillInput layer{.q = q.view(),
                           .k = k.view(),
                           .v = v.view(),
                           .info = layer_info(input, q.shape(), k.shape()),
                           .communicator = &self,
                           .seed = input.seed,
                           .threads = &threads};
  AttendResult result;
  result.out = Tensor(q.shape(), DType::kF32);
  result.decode = q.shape()[1] == 1 && k.shape()[1] > 1;
  if (result.decode) {
    LACUNA_REQUIRE(
        strategy.prefill.method == "dense" && strategy.evict.method == "none",
        "Q holds one query, which is a decode step: only the decode slot applies, not {} + {}; give as many "
        "queries as tokens for prefill and eviction",
        strategy.prefill.method, strategy.evict.method);
    run_decode(layer, strategy, threads, result);
  } else {
    LACUNA_REQUIRE(strategy.decode.method == "dense",
                   "Q holds {} queries for {} tokens, which is a prompt: the decode method {} does not "
                   "apply; give one query "
                   "for a decode step",
                   q.shape()[1], k.shape()[1], strategy.decode.method);
    run_prefill(layer, strategy, threads, result);
  }
  return result;
}

Tensor kept_array(const AttendResult& result, std::int64_t tokens) {
  const auto fill = [](Tensor& tensor) { std::memset(tensor.data(), 0, tensor.view().bytes()); };
  if (result.decode) {
    const std::int64_t rows =
        result.pages.empty() ? std::ssize(result.head_sparsity) : std::ssize(result.pages);
    Tensor kept({rows, tokens}, DType::kU8);
    std::memset(kept.data(), result.pages.empty() ? 1 : 0, kept.view().bytes());
    for (std::size_t r = 0; r < result.pages.size(); ++r) {
      std::uint8_t* row = kept.as<std::uint8_t>() + static_cast<std::int64_t>(r) * tokens;
      for (const std::int32_t p : result.pages[r]) {
        const std::int64_t begin = std::int64_t{p} * kPageTokens;
        std::fill(row + begin, row + std::min(begin + kPageTokens, tokens), std::uint8_t{1});
      }
    }
    return kept;
  }
  if (!result.kept.empty()) {
    Tensor kept({std::ssize(result.kept), tokens}, DType::kU8);
    fill(kept);
    for (std::size_t h = 0; h < result.kept.size(); ++h) {
      for (const std::int32_t t : result.kept[h])
        kept.as<std::uint8_t>()[static_cast<std::int64_t>(h) * tokens + t] = 1;
    }
    return kept;
  }
  const TileLists& lists = result.lists;
  const std::int64_t rows = block_rows(lists), blocks = (tokens + rows - 1) / rows;
  Tensor kept({lists.heads, blocks, tokens}, DType::kU8);
  fill(kept);
  std::vector<std::int32_t> keys;
  for (int h = 0; h < lists.heads; ++h) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      visited_keys(lists, h, b * rows, std::min((b + 1) * rows, tokens), 0, keys);
      std::uint8_t* row = kept.as<std::uint8_t>() + (h * blocks + b) * tokens;
      for (const std::int32_t key : keys) row[key] = 1;
    }
  }
  return kept;
}

}  // namespace lacuna
