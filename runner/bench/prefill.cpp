// Whole prefills through the engine.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "runner/bench/bench.h"
#include "runner/preflight.h"

namespace lacuna::bench {

namespace {

struct Measured {
  double seconds = 0;
  JobResult job;
};

Measured prefill(Session& session, Model& model, std::span<const TokenId> prompt, const MethodSpec& spec) {
  Measured m;
  m.seconds = session.median([&] {
    m.job = model.engine().run(
        {.prompt = prompt, .prefill = spec, .variants = {}, .on_token = {}, .cancelled = interrupted});
  });
  return m;
}

Row row_of(const Session& session, Model& model, std::int64_t tokens, const MethodSpec& spec,
           const Measured& m) {
  const ModelShape& shape = session.options.shape;
  Row row{.part = "prefill", .key = {}, .what = {}, .tokens = tokens};
  row.seconds = m.seconds;
  row.index_seconds = m.job.prefill_all.index_seconds;
  row.flops = m.job.linear_flops + 4.0 * shape.head_dim * m.job.prefill_all.visited_cells;
  row.floor_seconds = row.flops / session.ceilings.flops_per_s;
  row.peak_bytes = m.job.peak_bytes;
  row.planned_bytes = model.engine().plan_memory({.tokens = tokens, .prefill = spec, .variants = {}}).total();
  return row;
}

MethodSpec vertical_slash(std::int64_t kept, std::int64_t tokens) {
  return parse_strategy(Json{{"prefill",
                              {{"vertical_slash",
                                {{"verticals", kept},
                                 {"slashes", kept},
                                 {"window", std::min<std::int64_t>(256, tokens / 8)}}}}}},
                        "bench")
      .prefill;
}

/// Verticals and slashes that leave out about 90 % of this model's cells: random scores spread what is kept,
/// so the density is about 1 - exp(-c kept), and c comes from a run.
std::int64_t kept_for(double sparsity, Model& model, std::span<const TokenId> prompt) {
  const auto tokens = static_cast<std::int64_t>(prompt.size());
  std::int64_t kept = std::max<std::int64_t>(64, tokens / 570);
  for (int i = 0; i < 2; ++i) {
    const double got = model.engine()
                           .run({.prompt = prompt,
                                 .prefill = vertical_slash(kept, tokens),
                                 .variants = {},
                                 .on_token = {},
                                 .cancelled = interrupted})
                           .prefill_sparse.sparsity();
    if (std::abs(got - sparsity) < 0.004 || got <= 0 || got >= 1) break;
    const double factor = std::log(sparsity) / std::log(got);
    const auto next = static_cast<std::int64_t>(std::llround(static_cast<double>(kept) * factor));
    const std::int64_t bounded = std::clamp<std::int64_t>(next, 64, tokens);
    if (bounded == kept) break;
    kept = bounded;
  }
  return kept;
}

std::vector<std::pair<std::string, MethodSpec>> sparse_methods(const Options& options, Model& model,
                                                               std::span<const TokenId> prompt) {
  std::vector<std::pair<std::string, MethodSpec>> list;
  for (std::size_t i = 0; i < options.strategies.size(); ++i) {
    if (options.strategies[i].prefill.method != "dense")
      list.emplace_back(options.strategy_names[i], options.strategies[i].prefill);
  }
  if (!options.strategies.empty()) return list;
  const std::int64_t kept = kept_for(0.9, model, prompt);
  list.emplace_back(fmt::format("vertical_slash V=S={}", kept),
                    vertical_slash(kept, static_cast<std::int64_t>(prompt.size())));
  return list;
}

}  // namespace

void bench_prefill(Session& session, Model& model) {
  const Options& options = session.options;
  const bool gpu = options.device == Device::kCuda;
  std::vector<std::int64_t> lengths = options.tokens;
  if (lengths.empty()) {
    if (gpu)
      lengths = options.quick ? std::vector<std::int64_t>{16384} : std::vector<std::int64_t>{16384, 131072};
    if (!gpu)
      lengths = options.quick ? std::vector<std::int64_t>{512} : std::vector<std::int64_t>{1024, 4096};
  }
  const MethodSpec dense = parse_strategy(Json::object(), "bench").prefill;
  std::vector<double> linear_rates;
  for (const std::int64_t tokens : lengths) {
    const auto prompt = model.prompt(tokens);
    // Looked for before anything is timed: long prefills are timed once, and these runs warm them up.
    const auto sparse = tokens == lengths.back() ? sparse_methods(options, model, prompt)
                                                 : std::vector<std::pair<std::string, MethodSpec>>();
    const Measured measured = prefill(session, model, prompt, dense);
    Row row = row_of(session, model, tokens, dense, measured);
    row.key = row.what = "dense";
    session.on_row(row);
    const double dense_seconds = row.seconds;
    if (session.wants_profile) {
      const CostBreakdown cost = causal_prefill_flops(options.shape, static_cast<double>(tokens), 0);
      const double attending = cost.attention / session.profile.attention_flops_per_s;
      // Attention inside a model may be slower than alone; what it seems to leave is then not all that is
      // left.
      linear_rates.push_back((cost.projections + cost.mlp + cost.head) /
                             std::max(row.seconds - attending, 0.2 * row.seconds));
    }
    for (std::size_t i = 0; i < sparse.size(); ++i) {
      const Measured m = prefill(session, model, prompt, sparse[i].second);
      Row line = row_of(session, model, tokens, sparse[i].second, m);
      line.key = options.strategies.empty() ? "vertical_slash_90" : "strategy_" + std::to_string(i);
      line.what = sparse[i].first;
      line.sparsity = m.job.prefill_sparse.sparsity();
      line.dense_seconds = dense_seconds;
      session.on_row(line);
    }
  }
  if (!session.wants_profile) return;
  std::sort(linear_rates.begin(), linear_rates.end());
  session.profile.linear_flops_per_s = linear_rates[linear_rates.size() / 2];
  const double elements =
      options.shape.parameters > 0 ? options.shape.parameters : options.shape.weight_elements();
  session.profile.load_bytes_per_s = elements * element_bytes(options.device) / model.load_seconds();
}

}  // namespace lacuna::bench
