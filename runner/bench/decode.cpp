// Decoding through the engine, and one prefill shared by many variants.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "runner/bench/bench.h"
#include "runner/preflight.h"

namespace lacuna::bench {

namespace {

/// A prefill that costs little: decoding does not care how the cache was filled.
MethodSpec cheap_prefill() { return parse_strategy(Json{{"prefill", "streaming"}}, "bench").prefill; }

struct Steps {
  double seconds = 0;  ///< Of one step, median.
  JobResult job;
  MemoryPlan planned;
};

Steps decode(const Session& session, Engine& engine, std::span<const TokenId> prompt,
             const StrategySpec& strategy, int batch, int steps) {
  const std::vector<Variant> variants(
      static_cast<std::size_t>(batch),
      Variant{.evict = strategy.evict,
              .decode = strategy.decode,
              .sampling = {.max_new_tokens = steps + 1, .ignore_stop = true}});
  std::vector<double> times;
  Steps result;
  result.planned =
      engine.plan_memory({.tokens = std::ssize(prompt), .prefill = cheap_prefill(), .variants = variants});
  result.job = engine.run({.prompt = prompt,
                           .prefill = cheap_prefill(),
                           .variants = variants,
                           .on_token =
                               [&](std::size_t variant, TokenId) {
                                 if (variant == 0) times.push_back(session.now());
                               },
                           .cancelled = interrupted});
  for (const VariantResult& v : result.job.variants)
    LACUNA_REQUIRE(v.error.empty(), "decoding {} tokens, batch {}: {}", prompt.size(), batch, v.error);
  std::vector<double> gaps;
  for (std::size_t i = 1; i < times.size(); ++i) gaps.push_back(times[i] - times[i - 1]);
  std::sort(gaps.begin(), gaps.end());
  result.seconds = gaps[gaps.size() / 2];
  return result;
}

/// Weights that a step reads, as stored: bfloat16 on both devices for our random models.
double weight_bytes(const Session& session, const Model&) {
  return 2 * session.options.shape.weight_elements();
}

/// The cost of a step that computes next to nothing: the same number of launches on narrow layers.
void measure_overheads(Session& session) {
  const int head_dim = 64;
  const auto step_of = [&](int layers, int batch) {
    const ModelShape narrow{.layers = layers,
                            .q_heads = 1,
                            .kv_heads = 1,
                            .head_dim = head_dim,
                            .hidden = 64,
                            .mlp = 64,
                            .vocab = 256};
    Model model(session, narrow);
    return decode(session, model.engine(), model.prompt(32), parse_strategy(Json::object(), "bench"), batch,
                  48)
        .seconds;
  };
  constexpr int kFew = 2, kMany = 10, kBatch = 17;
  const double few = step_of(kFew, 1), many = step_of(kMany, 1), batched = step_of(kMany, kBatch);
  constexpr double kLeast = 1e-9;  // noise must not make an overhead negative
  HardwareProfile& p = session.profile;
  p.layer_overhead_s = std::max((many - few) / (kMany - kFew), kLeast);
  p.sequence_overhead_s = std::max((batched - many) / (kBatch - 1), kLeast);
  p.step_overhead_s = std::max(few - kFew * p.layer_overhead_s - p.sequence_overhead_s, kLeast);
}

std::vector<Variant> shared_variants(std::int64_t tokens, int new_tokens) {
  std::vector<Variant> variants;
  const auto add = [&](const Json& given) {
    const StrategySpec s = parse_strategy(given, "bench");
    variants.push_back({s.evict, s.decode, {.max_new_tokens = new_tokens, .ignore_stop = true}});
  };
  add(Json::object());
  for (int level = 1; level <= 10; ++level) {
    // 5 % to 50 % of the prompt, in whole pages.
    const std::int64_t budget = std::max<std::int64_t>(tokens * level / 20 / kPageTokens, 1) * kPageTokens;
    const std::int64_t window = std::min<std::int64_t>(256, tokens / 8),
                       ends = std::min<std::int64_t>(64, budget / 4);
    for (const char* method : {"snapkv", "ada_snapkv"})
      add({{"evict", {{method, {{"capacity", budget}, {"window", window}, {"first", 4}, {"last", ends}}}}}});
    add({{"decode", {{"quest", {{"budget", budget}}}}}});
  }
  return variants;
}

void shared_row(Session& session, Model& model) {
  const Options& options = session.options;
  const bool gpu = options.device == Device::kCuda;
  const std::int64_t tokens = options.shared_tokens > 0 ? options.shared_tokens
                              : gpu                     ? 32768
                              : options.quick           ? 512
                                                        : 2048;
  const int new_tokens = options.new_tokens > 0 ? options.new_tokens : gpu ? 256 : 16;
  const auto prompt = model.prompt(tokens);
  const auto variants = shared_variants(tokens, new_tokens);
  JobResult job;
  const MethodSpec dense = parse_strategy(Json::object(), "bench").prefill;
  const double begin = session.now();
  job = model.engine().run(
      {.prompt = prompt, .prefill = dense, .variants = variants, .on_token = {}, .cancelled = interrupted});
  Row row{.part = "decode",
          .key = "shared_prefill",
          .what = {},
          .tokens = tokens,
          .batch = static_cast<int>(variants.size())};
  row.seconds = session.now() - begin;
  for (const VariantResult& v : job.variants)
    LACUNA_REQUIRE(v.error.empty(), "shared prefill of {} tokens: {}", tokens, v.error);
  row.what = fmt::format("1 prompt, {} variants x {} tokens, prefill included", variants.size(), new_tokens);
  row.peak_bytes = job.peak_bytes;
  row.planned_bytes =
      model.engine().plan_memory({.tokens = tokens, .prefill = dense, .variants = variants}).total();
  row.note = fmt::format("prefill {:.4g} s, decoding {:.4g} s", job.prefill_seconds,
                         job.variants.front().decode_seconds);
  session.on_row(row);
}

}  // namespace

void bench_decode(Session& session, Model& model) {
  const Options& options = session.options;
  const bool gpu = options.device == Device::kCuda;
  std::vector<std::int64_t> lengths = options.tokens;
  if (lengths.empty()) lengths = {gpu ? (options.quick ? 32768 : 131072) : options.quick ? 512 : 4096};
  const std::vector<int> batches = !options.batches.empty() ? options.batches
                                   : gpu                    ? std::vector<int>{1, 32}
                                                            : std::vector<int>{1, 8};
  const int steps = gpu ? 48 : 24;
  const StrategySpec dense = parse_strategy(Json::object(), "bench");
  for (const std::int64_t tokens : lengths) {
    const auto prompt = model.prompt(tokens);
    std::vector<std::pair<std::string, StrategySpec>> sparse;
    for (std::size_t i = 0; i < options.strategies.size(); ++i)
      sparse.emplace_back(options.strategy_names[i], options.strategies[i]);
    if (options.strategies.empty()) {
      const std::int64_t budget =
          std::max<std::int64_t>(tokens / 64 / kPageTokens * kPageTokens, kPageTokens);
      sparse.emplace_back(fmt::format("quest, budget {}", budget),
                          parse_strategy(Json{{"decode", {{"quest", {{"budget", budget}}}}}}, "bench"));
    }
    for (const int batch : batches) {
      double dense_seconds = 0;
      const auto row_of = [&](const std::string& key, const std::string& what, const StrategySpec& strategy) {
        const Steps s = decode(session, model.engine(), prompt, strategy, batch, steps);
        Row row{.part = "decode", .key = key, .what = what, .tokens = tokens, .batch = batch};
        row.seconds = s.seconds;
        AttentionCounts counts;
        for (const VariantResult& v : s.job.variants) counts += v.decode_all;
        row.bytes = weight_bytes(session, model) + (counts.kv_bytes_read + counts.index_bytes_read) / steps;
        row.floor_seconds = row.bytes / session.ceilings.bytes_per_s;
        row.dense_seconds = dense_seconds;
        row.peak_bytes = s.job.peak_bytes;
        row.planned_bytes = s.planned.total();
        if (key != "dense") {
          row.sparsity = 0;
          AttentionCounts sparse_counts;
          for (const VariantResult& v : s.job.variants) sparse_counts += v.decode_sparse;
          row.sparsity = sparse_counts.sparsity();
        }
        session.on_row(row);
        return row.seconds;
      };
      dense_seconds = row_of("dense", "dense", dense);
      for (std::size_t i = 0; i < sparse.size(); ++i)
        row_of(options.strategies.empty() ? "quest" : "strategy_" + std::to_string(i), sparse[i].first,
               sparse[i].second);
    }
  }
  shared_row(session, model);
  if (!session.wants_profile) return;
  measure_overheads(session);
  const std::int64_t tokens = gpu ? 4096 : 256;
  const double step = decode(session, model.engine(), model.prompt(tokens), dense, 1, 2 * steps).seconds;
  HardwareProfile& p = session.profile;
  const DecodeCost cost =
      causal_decode_step(options.shape, static_cast<double>(tokens), 0, 1, element_bytes(options.device));
  const double cached = cost.bytes.attention / p.kv_rate();
  const double rest =
      step - cached - p.step_overhead_s - options.shape.layers * p.layer_overhead_s - p.sequence_overhead_s;
  p.bytes_per_s = (cost.bytes.total() - cost.bytes.attention) / std::max(rest, 0.2 * step);
}

}  // namespace lacuna::bench
