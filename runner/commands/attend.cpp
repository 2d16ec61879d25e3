// lacuna attend: one layer's prefill, eviction or decode step on captured arrays.
#include "attention/attend.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <numeric>

#include "analysis/pattern_picture.h"
#include "attention/budget.h"
#include "attention/key_stream.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/npy.h"
#include "core/text.h"
#include "runner/commands/commands.h"
#include "sweeps/document.h"

namespace lacuna {

namespace {

struct Options {
  std::string q, k, v, strategy, out, kept, picture;
  std::optional<float> scale;
  float softcap = 0;
  int window = 0, layer = 0, layers = 1, threads = 0, picture_head = 0;
  std::uint64_t seed = 0;
};

StrategySpec read_strategy(const std::string& text) {
  if (text.empty()) return parse_strategy(nullptr, "--strategy");
  const Document document =
      text.front() == '@' ? Document::load(text.substr(1)) : Document::parse(text, "--strategy");
  return parse_strategy(document.root(), text.front() == '@' ? text.substr(1) : "--strategy");
}

std::string milliseconds(double seconds) { return fmt::format("{:.3f} ms", 1e3 * seconds); }

void line(const char* name, const std::string& value) { fmt::print("{:<22}{}\n", name, value); }

void print_accounting(const AttendResult& r, const StrategySpec& strategy, std::int64_t tokens,
                      double threads) {
  const AttentionCounts& c = r.counts;
  line("step", r.decode ? "decode" : "prefill");
  line("strategy", to_json(strategy).dump());
  line("tokens", fmt::format("{}", tokens));
  line("causal cells", fmt::format("{:.0f}", c.causal_cells));
  line("visited cells", fmt::format("{:.0f}", c.visited_cells));
  line("computed cells", fmt::format("{:.0f}", c.computed_cells));
  line("measured sparsity", fmt::format("{:.6f}", c.sparsity()));
  const Slot slot = r.decode ? Slot::kDecode : Slot::kPrefill;
  if (const auto nominal = nominal_sparsity(slot, r.decode ? strategy.decode : strategy.prefill, tokens)) {
    line("nominal sparsity", fmt::format("{:.6f}", *nominal));
  }
  const auto [low, high] = std::minmax_element(r.head_sparsity.begin(), r.head_sparsity.end());
  line("sparsity by head", fmt::format("{:.6f} to {:.6f}", *low, *high));
  line("tile efficiency",
       fmt::format("{:.4f}", c.computed_cells > 0 ? c.visited_cells / c.computed_cells : 1.0));
  line("attention FLOPs", fmt::format("{:.0f}", c.flops));
  line("index FLOPs", fmt::format("{:.0f}", c.index_flops));
  line("attention time", fmt::format("{} on {:.0f} threads", milliseconds(r.attention_seconds), threads));
  line("index time", milliseconds(c.index_seconds));
  if (r.decode) {
    line("KV bytes read", fmt::format("{:.0f} of {}", c.kv_bytes_read, r.kv_bytes_full));
    line("index bytes read", fmt::format("{:.0f}", c.index_bytes_read));
    line("index bytes resident", fmt::format("{}", r.state_bytes));
  } else {
    line("KV bytes resident", fmt::format("{} of {}", r.kv_bytes_resident, r.kv_bytes_full));
    if (!r.kept.empty()) {
      std::string counts;
      for (const auto& head : r.kept) counts += (counts.empty() ? "" : " ") + std::to_string(head.size());
      line("kept tokens by kv head", " " + counts);
    }
  }
}

/// Prefill: one query head. Eviction and decode: every kv head, one row each.
void draw_picture(const Options& options, const StrategySpec& strategy, const AttendResult& result,
                  std::int64_t tokens) {
  PictureOptions picture = picture_options(result.decode          ? strategy.decode
                                           : !result.kept.empty() ? strategy.evict
                                                                  : strategy.prefill);
  if (!result.decode && result.kept.empty()) {
    picture.title += fmt::format(", query head {}", options.picture_head);
    write_file_atomically(
        options.picture,
        draw_pattern(view_of_prefill(result.lists, options.picture_head, options.window), picture));
    return;
  }
  picture.row_label = "head";
  std::vector<PageList> pages = result.pages;
  if (result.decode && pages.empty()) {  // everything was read
    PageList all(static_cast<std::size_t>((tokens + kPageTokens - 1) / kPageTokens));
    std::iota(all.begin(), all.end(), 0);
    pages.assign(result.head_sparsity.size(), all);
  }
  const PatternView view =
      result.decode ? view_of_pages(tokens, std::move(pages)) : view_of_eviction(tokens, result.kept);
  write_file_atomically(options.picture, draw_pattern(view, picture));
}

void run(const Options& options) {
  const StrategySpec strategy = read_strategy(options.strategy);
  const Tensor q = read_npy(options.q), k = read_npy(options.k), v = read_npy(options.v);
  ThreadPool threads(options.threads > 0 ? options.threads : default_threads());
  const AttendResult result = attend({.q = q.view(),
                                      .k = k.view(),
                                      .v = v.view(),
                                      .scale = options.scale,
                                      .softcap = options.softcap,
                                      .window = options.window,
                                      .layer = options.layer,
                                      .layers = options.layers,
                                      .seed = options.seed},
                                     strategy, threads);
  write_npy(options.out, result.out.view());
  const std::int64_t tokens = k.shape()[1];
  if (!options.kept.empty()) write_npy(options.kept, kept_array(result, tokens).view());
  if (!options.picture.empty()) draw_picture(options, strategy, result, tokens);
  print_accounting(result, strategy, tokens, threads.threads());
}

}  // namespace

void add_attend_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* verb = app.add_subcommand(
      "attend",
      "Runs one layer's prefill, eviction or decode step on arrays of your own and prints the accounting");
  verb->add_option("--q", options->q,
                   "Queries: .npy, [heads, tokens, head_dim], or [heads, 1, head_dim] for a decode step")
      ->required();
  verb->add_option("--k", options->k, "Keys: .npy, [kv heads, tokens, head_dim], float32 or float16")
      ->required();
  verb->add_option("--v", options->v, "Values: .npy, the shape of the keys")->required();
  verb->add_option("--strategy", options->strategy,
                   "What to keep, as YAML or JSON, or @FILE; default: dense");
  verb->add_option("--out", options->out, "Output: .npy, float32, the shape of the queries")->required();
  verb->add_option(
      "--kept", options->kept,
      "What was kept: .npy of 0 and 1; [heads, row blocks, tokens] for prefill, [kv heads, tokens] after an "
      "eviction, [lists, tokens] for decode");
  verb->add_option("--picture", options->picture, "What was kept, drawn: .svg");
  verb->add_option("--picture-head", options->picture_head, "Query head of the picture of a prefill")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--scale", options->scale, "Factor of q.k; default: 1/sqrt(head_dim)");
  verb->add_option("--softcap", options->softcap, "s -> softcap * tanh(s / softcap); 0: none")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--window", options->window, "Sliding window of the layer in tokens; 0: none")
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--layer", options->layer, "Number of the layer, for methods whose budget depends on it");
  verb->add_option("--layers", options->layers, "Layers of the model");
  verb->add_option("--seed", options->seed, "For methods that draw random numbers");
  verb->add_option("--threads", options->threads, "Threads; default: all cores")->check(CLI::PositiveNumber);
  verb->footer(
      "Example: lacuna attend --q q.npy --k k.npy --v v.npy --strategy '{prefill: {vertical_slash: "
      "{verticals: 512, "
      "slashes: 512}}}' --out o.npy --kept kept.npy");
  verb->callback([options] { run(*options); });
}

}  // namespace lacuna
