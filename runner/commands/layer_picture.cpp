#include "runner/commands/layer_picture.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>

#include "analysis/pattern_picture.h"
#include "attention/attend.h"
#include "core/communicator.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "model/engine.h"
#include "sweeps/cells.h"
#include "tasks/task.h"

namespace lacuna {

namespace {

namespace fs = std::filesystem;
/// Longer prompts show nothing that a picture of this size could.
constexpr std::int64_t kGalleryTokens = 4096;

Tensor copy_heads(const HeadsView& view) {
  Tensor out({view.heads, view.tokens, view.head_dim}, DType::kF32);
  float* to = out.as<float>();
  for (int h = 0; h < view.heads; ++h) {
    for (std::int64_t t = 0; t < view.tokens; ++t, to += view.head_dim)
      std::copy_n(view.row(h, t), view.head_dim, to);
  }
  return out;
}

/// The last query of every head: a decode step's Q.
Tensor last_queries(const Tensor& q) {
  const std::int64_t heads = q.shape()[0], tokens = q.shape()[1], dim = q.shape()[2];
  Tensor out({heads, 1, dim}, DType::kF32);
  for (std::int64_t h = 0; h < heads; ++h)
    std::copy_n(q.as<float>() + ((h + 1) * tokens - 1) * dim, dim, out.as<float>() + h * dim);
  return out;
}

/// A file name that sorts by `number` and says what it shows.
std::string picture_name(int number, const std::string& strategy) {
  std::string name = fmt::format("{:02} {}", number, strategy);
  for (char& c : name) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.' ||
                       c == '=' || c == '+';
    if (!plain) c = ' ';
  }
  return name.substr(0, 100) + ".svg";
}

/// The smallest model of the sweep whose folder is there.
int smallest_model(const Sweep& sweep) {
  int best = -1;
  std::int64_t size = 0;
  for (std::size_t m = 0; m < sweep.models.size(); ++m) {
    if (!fs::exists(fs::path(sweep.models[m].path) / "config.json")) continue;
    const std::int64_t parameters = read_model_facts(sweep.models[m].path).parameters;
    if (best < 0 || parameters < size) {
      best = int(m);
      size = parameters;
    }
  }
  LACUNA_REQUIRE(best >= 0, "--gallery: none of the sweep's model folders is on this machine");
  return best;
}

/// Per strategy of the grid the cell of (model, first task, length) with the middle level.
std::map<int, const Cell*> cells_to_draw(const Grid& grid, int model, int task, std::int64_t length) {
  std::map<int, std::vector<const Cell*>> levels;
  for (const Cell& cell : grid.cells) {
    if (cell.model == model && cell.task == task && cell.length == length && cell.problem.empty())
      levels[cell.strategy].push_back(&cell);
  }
  std::map<int, const Cell*> chosen;
  for (const auto& [strategy, cells] : levels) chosen[strategy] = cells[cells.size() / 2];
  return chosen;
}

}  // namespace

std::function<void(int, const PrefillInput&)> LayerCapture::hook() {
  return [this](int layer, const PrefillInput& input) {
    if (layer != layer_) return;
    LACUNA_REQUIRE(input.q.device == Device::kCpu,
                   "pictures of a layer are made on the CPU: add --device cpu");
    info_ = input.info;
    seed_ = input.seed;
    q_ = copy_heads(input.q);
    k_ = copy_heads(input.k);
    v_ = copy_heads(input.v);
  };
}

std::string LayerCapture::draw(const StrategySpec& strategy, int head, ThreadPool& threads) const {
  LACUNA_REQUIRE(q_.shape().rank() == 3, "--picture-layer {}: the model has no such layer", layer_);
  StrategySpec only = parse_strategy(nullptr, "picture");
  const bool prefill = strategy.prefill.method != only.prefill.method;
  const bool evict = !prefill && strategy.evict.method != only.evict.method;
  const bool decode = !prefill && !evict && strategy.decode.method != only.decode.method;
  if (evict) {
    only.evict = strategy.evict;
  } else if (decode) {
    only.decode = strategy.decode;
  } else {
    only.prefill = strategy.prefill;
  }
  const Tensor step = decode ? last_queries(q_) : Tensor();
  const AttendResult result = attend({.q = decode ? step.view() : q_.view(),
                                      .k = k_.view(),
                                      .v = v_.view(),
                                      .scale = info_.scale,
                                      .softcap = info_.softcap,
                                      .window = info_.window,
                                      .layer = info_.layer,
                                      .layers = info_.layers,
                                      .seed = seed_},
                                     only, threads);
  const std::int64_t tokens = k_.shape()[1];
  PictureOptions picture = picture_options(evict ? only.evict : decode ? only.decode : only.prefill);
  picture.title += fmt::format(", layer {}", layer_);
  if (!evict && !decode) {
    picture.title += fmt::format(", query head {}", head);
    return draw_pattern(view_of_prefill(result.lists, head, info_.window), picture);
  }
  picture.row_label = "head";
  if (evict) {
    std::vector<std::vector<std::int32_t>> kept = result.kept;
    if (kept.empty()) {  // the budget holds everything
      std::vector<std::int32_t> all(static_cast<std::size_t>(tokens));
      std::iota(all.begin(), all.end(), 0);
      kept.assign(static_cast<std::size_t>(info_.kv_heads), all);
    }
    return draw_pattern(view_of_eviction(tokens, std::move(kept)), picture);
  }
  return draw_pattern(view_of_pages(tokens, result.pages), picture);
}

int draw_gallery(const std::string& folder, ThreadPool& threads) {
  const Sweep sweep = load_sweep((fs::path(folder) / "sweep.json").string());
  const Grid grid = expand(sweep);
  const int model = smallest_model(sweep), task = 0;
  const std::string& path = sweep.models[std::size_t(model)].path;
  std::set<std::int64_t> lengths;
  for (const Cell& cell : grid.cells) {
    if (cell.model == model && cell.task == task) lengths.insert(cell.length);
  }
  LACUNA_REQUIRE(!lengths.empty(), "--gallery: the sweep has no cell of model {} on task {}",
                 sweep.models[std::size_t(model)].name, sweep.tasks[0].name);
  auto longer = lengths.upper_bound(kGalleryTokens);
  const std::int64_t length = longer == lengths.begin() ? *longer : *std::prev(longer);

  SelfCommunicator alone;
  const auto engine =
      Engine::load({.folder = path, .device = Device::kCpu, .rope_override = {}}, alone, threads);
  const auto tokenizer = Tokenizer::load(path);
  const std::string& chat = sweep.models[std::size_t(model)].chat;
  const SweepTask& spec = sweep.tasks[std::size_t(task)];
  Params params = spec.params;
  if (!spec.data.empty()) {
    nlohmann::json given = params.to_json();
    given["data"] = spec.data;
    params = Params::parse(find_task(spec.task, folder).params, given, folder);
  }
  const Sample sample =
      make_task(spec.task, params)
          ->generate({.tokenizer = &tokenizer,
                      .chat = chat == "auto" ? detect_chat_format(path) : parse_chat_format(chat, folder),
                      .target_tokens = length,
                      .seed = sweep.seed,
                      .index = 0});
  LayerCapture capture(engine->facts().layers / 2);
  const StrategySpec dense = parse_strategy(nullptr, "gallery");
  const Variant variant{.evict = dense.evict, .decode = dense.decode, .sampling = {.max_new_tokens = 1}};
  engine->run({.prompt = sample.ids,
               .prefill = dense.prefill,
               .variants = std::span(&variant, 1),
               .seed = sweep.seed,
               .want_logits = false,
               .on_token = {},
               .cancelled = {},
               .on_layer = capture.hook()});
  const fs::path patterns = fs::path(folder) / "patterns";
  fs::create_directories(patterns);
  int drawn = 0;
  for (const auto& [strategy, cell] : cells_to_draw(grid, model, task, length)) {
    const std::string name = picture_name(strategy, grid.strategies[std::size_t(strategy)].name);
    write_file_atomically((patterns / name).string(),
                          capture.draw(grid.specs[std::size_t(cell->spec)], 0, threads));
    ++drawn;
  }
  return drawn;
}

}  // namespace lacuna
