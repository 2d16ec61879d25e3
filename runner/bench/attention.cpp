// One layer's attention on random data: prefill, choosing, eviction scores and decoding.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "core/error.h"
#include "core/json.h"
#include "core/rng.h"
#include "runner/bench/bench.h"

namespace lacuna::bench {

namespace {

/// Uploads random normal numbers of the activation type, from one block again and again.
class RandomSource {
 public:
  RandomSource(Ops& ops, ThreadPool& threads, std::uint64_t seed) : ops_(ops) {
    std::vector<float> values(kBlock);
    constexpr std::int64_t kParts = 64;
    threads.parallel_for(kParts, [&](std::int64_t part) {
      Rng rng(seed, static_cast<std::uint64_t>(part));
      const auto begin = kBlock * static_cast<std::size_t>(part) / kParts,
                 end = kBlock * static_cast<std::size_t>(part + 1) / kParts;
      for (std::size_t i = begin; i < end; ++i) {
        const std::uint64_t x = rng.next_u64();
        int sum = -2 * 65535;
        for (int k = 0; k < 4; ++k) sum += static_cast<int>(x >> (16 * k) & 0xFFFF);
        values[i] = static_cast<float>(sum) * (1.7320508f / 65536.0f);
      }
    });
    block_.resize(kBlock * size_of(ops.activation_dtype()));
    convert_from_float(values.data(), block_.data(), ops.activation_dtype(), values.size());
  }
  void fill(void* device, std::size_t elements) {
    const std::size_t element = size_of(ops_.activation_dtype());
    auto* to = static_cast<std::byte*>(device);
    while (elements > 0) {
      start_ = (start_ * 31 + 77777) % (kBlock / 2);
      const std::size_t count = std::min(elements, kBlock - start_);
      ops_.upload(block_.data() + start_ * element, to, count * element);
      to += count * element;
      elements -= count;
    }
  }

 private:
  static constexpr std::size_t kBlock = (std::size_t{1} << 22) - 3;  // odd: rows never line up with it
  Ops& ops_;
  std::vector<std::byte> block_;
  std::size_t start_ = 1;
};

LayerInfo layer_info(const ModelShape& s, int layer, int layers) {
  LayerInfo info;
  info.layer = layer;
  info.layers = layers;
  info.q_heads = info.q_heads_total = s.q_heads;
  info.kv_heads = info.kv_heads_total = s.kv_heads;
  info.head_dim = s.head_dim;
  info.scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
  return info;
}

/// A matrix [tokens, heads * head_dim] on the device, as a projection leaves it.
Tensor projection(const Session& session, Ops& ops, std::int64_t tokens, int heads) {
  return Tensor({tokens, std::int64_t{heads} * session.options.shape.head_dim}, ops.activation_dtype(),
                session.options.device);
}

HeadsView heads_of(const Tensor& t, int heads, int head_dim) {
  return {.data = t.data(),
          .dtype = t.dtype(),
          .device = t.device(),
          .heads = heads,
          .tokens = t.shape()[0],
          .head_dim = head_dim,
          .head_stride = head_dim,
          .token_stride = t.shape()[1]};
}

StrategySpec strategy(const char* slot, const char* method, Json params) {
  return parse_strategy(Json{{slot, {{method, std::move(params)}}}}, "bench");
}

/// The model's shape with one layer: what index_cost() is asked for.
ModelShape one_layer(ModelShape shape) {
  shape.layers = 1;
  shape.sliding_layers = 0;
  return shape;
}

class PrefillBench {
 public:
  PrefillBench(Session& session, Ops& ops, std::int64_t tokens)
      : session_(session),
        ops_(ops),
        shape_(session.options.shape),
        tokens_(tokens),
        q_(projection(session, ops, tokens, shape_.q_heads)),
        k_(projection(session, ops, tokens, shape_.kv_heads)),
        v_(projection(session, ops, tokens, shape_.kv_heads)),
        out_(projection(session, ops, tokens, shape_.q_heads)) {
    RandomSource random(ops, session.threads, 3);
    for (const Tensor* t : {&q_, &k_, &v_})
      random.fill(t->data(), static_cast<std::size_t>(t->shape().elements()));
    input_ = {.q = heads_of(q_, shape_.q_heads, shape_.head_dim),
              .k = heads_of(k_, shape_.kv_heads, shape_.head_dim),
              .v = heads_of(v_, shape_.kv_heads, shape_.head_dim),
              .info = layer_info(shape_, 0, 1),
              .communicator = &self_,
              .seed = 1,
              .threads = &session.threads};
  }

  /// Seconds of dense attention, as a row.
  double dense() {
    const Row row = measure("dense", "dense", nullptr, 0);
    session_.on_row(row);
    return row.seconds;
  }

  void sparse(const std::string& key, const std::string& what, const MethodSpec& spec, double dense_seconds,
              double index_params_block, double window) {
    const auto selector = ops_.prefill_selector(spec);
    const Row row = measure(key, what, selector.get(), dense_seconds);
    session_.on_row(row);
    const double attending = row.seconds - row.index_seconds;
    if (attending > 0) session_.profile.sparse_attention_flops_per_s[spec.method] = row.flops / attending;
    note_index(spec.method, row.index_seconds, index_params_block, window);
  }

  /// What an evictor spends on choosing.
  void evict(const MethodSpec& spec, double window) {
    const auto evictor = ops_.evictor(spec);
    Row row{.part = "attention",
            .key = "index_" + spec.method,
            .what = spec.method + " choosing",
            .tokens = tokens_};
    row.seconds = row.index_seconds = session_.median([&] {
      AttentionCounts counts;
      evictor->keep(input_, counts);
      ops_.synchronize();
    });
    session_.on_row(row);
    note_index(spec.method, row.seconds, 16, window);
  }

 private:
  void note_index(const std::string& method, double seconds, double block, double window) {
    const double flops = index_cost(method, one_layer(shape_), static_cast<double>(tokens_),
                                    {.window = window, .block = block})
                             .prefill_flops;
    if (seconds > 0 && flops > 0) session_.profile.index_flops_per_s[method] = flops / seconds;
  }

  Row measure(const std::string& key, const std::string& what, const PrefillSelector* selector,
              double dense_seconds) {
    AttentionCounts counts;
    std::vector<double> index;
    Row row{.part = "attention", .key = key, .what = what, .tokens = tokens_};
    row.seconds = session_.median([&] {
      counts = {};
      ops_.attention_prefill(input_, selector, heads_of(out_, shape_.q_heads, shape_.head_dim), counts);
      ops_.synchronize();
      index.push_back(counts.index_seconds);
    });
    std::sort(index.begin(), index.end());
    row.index_seconds = index[index.size() / 2];
    if (session_.options.cpu_time && selector != nullptr) {
      // The counts' own clock is the wall's: choosing is timed again on ours.
      row.index_seconds = session_.median([&] {
        TileLists lists;
        AttentionCounts ignored;
        selector->select(input_, lists, ignored);
      });
    }
    row.flops = 4.0 * shape_.head_dim * counts.visited_cells;
    row.floor_seconds = row.flops / session_.ceilings.flops_per_s;
    row.dense_seconds = dense_seconds;
    row.sparsity = selector != nullptr ? counts.sparsity() : -1;
    return row;
  }

  Session& session_;
  Ops& ops_;
  const ModelShape& shape_;
  std::int64_t tokens_;
  Tensor q_, k_, v_, out_;
  SelfCommunicator self_;
  PrefillInput input_;
};

/// Decode attention over several layers' caches in turn, so that no cache level holds what is read next.
class DecodeBench {
 public:
  DecodeBench(Session& session, Ops& ops, std::int64_t tokens)
      : session_(session), shape_(session.options.shape), tokens_(tokens) {
    const std::int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
    page_elements_ = 2 * std::int64_t{kPageTokens} * shape_.head_dim;
    const int layers = session.options.device == Device::kCuda ? 16 : 4;
    const auto heads = static_cast<std::size_t>(layers * shape_.kv_heads);
    const auto elements = heads * static_cast<std::size_t>(pages * page_elements_);
    const std::size_t bytes = elements * size_of(ops.activation_dtype());
    memory_ = ops.reserve_kv(bytes);
    if (memory_->bytes() < bytes)
      throw_resource("{} bytes of cache for {} tokens, but only {} can be had", bytes, tokens,
                     memory_->bytes());
    memory_->commit(bytes);
    RandomSource random(ops, session.threads, 5);
    random.fill(memory_->base(), elements);
    // Pages in shuffled order, as after many jobs.
    std::vector<std::int32_t> ids(heads * static_cast<std::size_t>(pages));
    std::iota(ids.begin(), ids.end(), 0);
    Rng(9).shuffle(ids);
    for (std::size_t h = 0; h < heads; ++h) {
      const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(h) * pages;
      ids_.emplace_back(begin, begin + pages);
    }
    for (const auto& list : ids_) heads_.push_back({list, tokens});
    for (int layer = 0; layer < layers; ++layer) layers_.push_back(layer_info(shape_, layer, layers));
    q_ = projection(session, ops, 1, shape_.q_heads);
    k_ = projection(session, ops, 1, shape_.kv_heads);
    v_ = projection(session, ops, 1, shape_.kv_heads);
    out_ = projection(session, ops, 1, shape_.q_heads);
    for (const Tensor* t : {&q_, &k_, &v_})
      random.fill(t->data(), static_cast<std::size_t>(t->shape().elements()));
    ops.synchronize();  // others read it
  }

  /// One layer's share of a step. On a GPU what a step costs once (launching its graph, waiting for it) is
  /// taken away: it is shared by all layers of a model, not by the few that are here.
  Row measure(const std::string& key, const std::string& what, const MethodSpec& spec) {
    Row row{.part = "attention", .key = key, .what = what, .tokens = tokens_};
    const double all = time_layers(spec, layers_.size(), row);
    if (session_.options.device == Device::kCuda) {
      Row few = row;
      const std::size_t some = layers_.size() / 4;
      row.seconds = (all - time_layers(spec, some, few)) / static_cast<double>(layers_.size() - some);
    } else {
      row.seconds = all / static_cast<double>(layers_.size());
    }
    row.note = "with writing the new token";
    return row;
  }

 private:
  /// Seconds of a step of the first `count` layers; what they read goes to `row`.
  double time_layers(const MethodSpec& spec, std::size_t count, Row& row) {
    const auto layers = std::span(layers_).first(count);
    // Its own: an Ops records the graph of a step once, for one number of layers.
    const auto ops = make_ops(session_.options.device, session_.threads);
    const auto sequence = ops->make_sequence(spec, layers, tokens_ + kPageTokens);
    std::string error;
    const DecodeRow line{.sequence = sequence.get(),
                         .heads = std::span(heads_).first(count * static_cast<std::size_t>(shape_.kv_heads)),
                         .context_tokens = tokens_,
                         .seed = 1,
                         .error = &error};
    const PoolView pool{.base = memory_->base(), .page_elements = page_elements_};
    const auto step = [&] {
      ops->begin_step({&line, 1}, pool);
      ops->run_step(self_, [&] {
        for (const LayerInfo& info : layers) {
          ops->decode_layer(heads_of(q_, shape_.q_heads, shape_.head_dim),
                            heads_of(k_, shape_.kv_heads, shape_.head_dim),
                            heads_of(v_, shape_.kv_heads, shape_.head_dim), info, self_,
                            heads_of(out_, shape_.q_heads, shape_.head_dim));
        }
      });
      ops->synchronize();
    };
    for (int i = 0; i < 4; ++i) step();  // states, graphs
    LACUNA_CHECK(error.empty(), "decode step: {}", error);
    AttentionCounts sparse, all;
    sequence->take_counts(sparse, all);
    sparse = all = {};
    int steps = 0;
    const double seconds = session_.median([&] {
      step();
      ++steps;
    });
    sequence->take_counts(sparse, all);
    const double calls = static_cast<double>(steps) * static_cast<double>(count);
    row.bytes = all.kv_bytes_read / calls;
    row.index_seconds = all.index_seconds / calls;
    row.floor_seconds = (row.bytes + all.index_bytes_read / calls) / session_.ceilings.bytes_per_s;
    row.sparsity = spec.method == "dense" ? -1 : all.sparsity();
    return seconds;
  }

  Session& session_;
  const ModelShape& shape_;
  std::int64_t tokens_, page_elements_ = 0;
  std::unique_ptr<KvMemory> memory_;
  std::vector<std::vector<std::int32_t>> ids_;
  std::vector<PagedHead> heads_;
  std::vector<LayerInfo> layers_;
  Tensor q_, k_, v_, out_;
  SelfCommunicator self_;
};

void prefill_rows(Session& session, Ops& ops, std::int64_t tokens, bool longest) {
  PrefillBench bench(session, ops, tokens);
  const double dense = bench.dense();
  session.profile.attention_flops_per_s = 2.0 * session.options.shape.q_heads *
                                          session.options.shape.head_dim * static_cast<double>(tokens) *
                                          static_cast<double>(tokens + 1) / dense;
  if (!longest) return;
  if (!session.options.strategies.empty()) {
    for (std::size_t i = 0; i < session.options.strategies.size(); ++i) {
      const MethodSpec& spec = session.options.strategies[i].prefill;
      if (spec.method == "dense") continue;
      const Json given = spec.params.to_json();
      const double block = given.value("chunk_size", given.value("block", 16.0));
      bench.sparse("strategy_" + std::to_string(i), session.options.strategy_names[i], spec, dense, block,
                   given.value("window", 256.0));
    }
    return;
  }
  // The grid of docs/performance.md: kept parts of the length, so that every length means the same. The
  // profile takes the last row of a method: block_sparse 16, the sweeps' default.
  const auto at_least = [](std::int64_t n, std::int64_t least) { return std::max(n, least); };
  for (const auto& [block, top] :
       {std::pair<int, std::int64_t>{128, tokens / 1280}, {64, tokens / 640}, {16, tokens / 160}}) {
    bench.sparse(
        fmt::format("block_sparse_{}", block),
        fmt::format("block_sparse {}, top {}", block, at_least(top, 3)),
        strategy("prefill", "block_sparse", {{"chunk_size", block}, {"top_chunks", at_least(top, 3)}})
            .prefill,
        dense, block, 256);
  }
  const std::int64_t kept = at_least(tokens / 256, 64), window = std::min<std::int64_t>(256, tokens / 8),
                     wide = std::min<std::int64_t>(512, tokens / 8);
  bench.sparse(
      "vertical_slash", fmt::format("vertical_slash V=S={}, W={}", kept, window),
      strategy("prefill", "vertical_slash", {{"verticals", kept}, {"slashes", kept}, {"window", window}})
          .prefill,
      dense, 16, static_cast<double>(window));
  bench.sparse(
      "flexprefill", fmt::format("flexprefill alpha 0, V=S={}, W={}", kept, wide),
      strategy("prefill", "flexprefill", {{"alpha", 0.0}, {"min_budget", kept}, {"window", wide}}).prefill,
      dense, 16, static_cast<double>(wide));
  for (const char* method : {"snapkv", "ada_snapkv"}) {
    bench.evict(
        strategy("evict", method, {{"capacity", at_least(tokens / 16, 256)}, {"window", window}}).evict,
        static_cast<double>(window));
  }
}

void decode_rows(Session& session, Ops& ops, std::int64_t tokens, bool longest) {
  DecodeBench bench(session, ops, tokens);
  const Row dense =
      bench.measure("decode_dense", "decode, dense", strategy("decode", "dense", Json::object()).decode);
  session.on_row(dense);
  if (!longest) return;
  session.profile.kv_bytes_per_s = dense.bytes / dense.seconds;
  const std::int64_t budget = std::max<std::int64_t>(tokens / 64 / kPageTokens * kPageTokens, kPageTokens);
  Row quest = bench.measure("decode_quest", fmt::format("decode, quest, budget {}", budget),
                            strategy("decode", "quest", {{"budget", budget}}).decode);
  quest.dense_seconds = dense.seconds;
  session.on_row(quest);
  // Where choosing is not timed apart, it is what reading the chosen pages leaves.
  const double choosing =
      quest.index_seconds > 0
          ? quest.index_seconds
          : std::max(quest.seconds - quest.bytes / session.profile.kv_bytes_per_s, quest.seconds / 2);
  session.profile.index_flops_per_s["quest"] =
      index_cost("quest", one_layer(session.options.shape), static_cast<double>(tokens)).decode_flops /
      choosing;
}

}  // namespace

void bench_attention(Session& session) {
  std::vector<std::int64_t> lengths = session.options.tokens;
  if (lengths.empty()) {
    lengths = session.options.device == Device::kCuda ? std::vector<std::int64_t>{16384, 32768, 65536, 131072}
              : session.options.quick                 ? std::vector<std::int64_t>{1024}
                                                      : std::vector<std::int64_t>{1024, 4096};
    if (session.options.device == Device::kCuda && session.options.quick) lengths = {32768, 131072};
  }
  const auto ops = make_ops(session.options.device, session.threads);
  for (const std::int64_t tokens : lengths) prefill_rows(session, *ops, tokens, tokens == lengths.back());
  for (const std::int64_t tokens : lengths) decode_rows(session, *ops, tokens, tokens == lengths.back());
}

}  // namespace lacuna::bench
