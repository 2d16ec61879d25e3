#include "sweeps/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

/// Width of all query heads and of all kv heads.
double q_width(const ModelShape& s) { return double(s.q_heads) * s.head_dim; }
double kv_width(const ModelShape& s) { return double(s.kv_heads) * s.head_dim; }

/// Elements of one layer's Q, K, V and O matrices.
double projection_elements(const ModelShape& s) {
  return double(s.hidden) * (2 * q_width(s) + 2 * kv_width(s));
}
double mlp_elements(const ModelShape& s) { return 3.0 * s.hidden * s.mlp; }

void check_density(double density) {
  LACUNA_CHECK(density >= 0 && density <= 1, "density {} is not between 0 and 1", density);
}

struct NamedShape {
  std::string_view name;
  ModelShape shape;
};

// parameters, layers, q_heads, kv_heads, head_dim, hidden, mlp, vocab, sliding_layers, sliding_window: from
// the models' published config.json files; parameters from their model cards.
constexpr std::array<NamedShape, 9> kPublished{{
    {"Qwen2.5-7B", {7.616e9, 28, 28, 4, 128, 3584, 18944, 152064, 0, 0}},
    {"Qwen2.5-14B", {14.77e9, 48, 40, 8, 128, 5120, 13824, 152064, 0, 0}},
    {"Qwen2.5-32B", {32.76e9, 64, 40, 8, 128, 5120, 27648, 152064, 0, 0}},
    {"Qwen2.5-72B", {72.71e9, 80, 64, 8, 128, 8192, 29568, 152064, 0, 0}},
    {"Llama-3.1-8B", {8.03e9, 32, 32, 8, 128, 4096, 14336, 128256, 0, 0}},
    {"Llama-3.1-70B", {70.55e9, 80, 64, 8, 128, 8192, 28672, 128256, 0, 0}},
    {"Gemma-3-4B", {3.88e9, 34, 8, 4, 256, 2560, 10240, 262208, 29, 1024}},
    {"Gemma-3-12B", {11.77e9, 48, 16, 8, 256, 3840, 15360, 262208, 40, 1024}},
    {"Gemma-3-27B", {27.01e9, 62, 32, 16, 128, 5376, 21504, 262208, 52, 1024}},
}};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  return out;
}

}  // namespace

double ModelShape::weight_elements() const {
  return layers * (projection_elements(*this) + mlp_elements(*this)) + double(hidden) * vocab;
}

void ModelShape::check(const std::string& where) const {
  const std::pair<const char*, int> positive[] = {
      {"layers", layers}, {"q_heads", q_heads}, {"kv_heads", kv_heads}, {"head_dim", head_dim},
      {"hidden", hidden}, {"mlp", mlp},         {"vocab", vocab}};
  for (const auto& [name, value] : positive) {
    LACUNA_REQUIRE(value > 0, "{}: {} is {}, expected a positive number", where, name, value);
  }
  LACUNA_REQUIRE(q_heads % kv_heads == 0, "{}: {} query heads cannot share {} kv heads evenly", where,
                 q_heads, kv_heads);
  LACUNA_REQUIRE(sliding_layers >= 0 && sliding_layers <= layers, "{}: {} of {} layers slide", where,
                 sliding_layers, layers);
  LACUNA_REQUIRE(sliding_layers == 0 || sliding_window > 0, "{}: sliding layers need a sliding_window",
                 where);
}

ModelShape parse_model_shape(const Json& given, const std::string& where) {
  ModelShape s;
  s.parameters = json_get_or<double>(given, "parameters", 0, where);
  s.layers = json_get<int>(given, "layers", where);
  s.q_heads = json_get<int>(given, "q_heads", where);
  s.kv_heads = json_get<int>(given, "kv_heads", where);
  s.head_dim = json_get<int>(given, "head_dim", where);
  s.hidden = json_get<int>(given, "hidden", where);
  s.mlp = json_get<int>(given, "mlp", where);
  s.vocab = json_get<int>(given, "vocab", where);
  s.sliding_layers = json_get_or<int>(given, "sliding_layers", 0, where);
  s.sliding_window = json_get_or<int>(given, "sliding_window", 0, where);
  s.check(where);
  return s;
}

Json to_json(const ModelShape& s) {
  return {{"parameters", s.parameters},
          {"layers", s.layers},
          {"q_heads", s.q_heads},
          {"kv_heads", s.kv_heads},
          {"head_dim", s.head_dim},
          {"hidden", s.hidden},
          {"mlp", s.mlp},
          {"vocab", s.vocab},
          {"sliding_layers", s.sliding_layers},
          {"sliding_window", s.sliding_window}};
}

std::optional<ModelShape> find_published_shape(std::string_view name) {
  std::string wanted = lower(name);
  for (const std::string_view suffix : {"-instruct", "-it"}) {
    if (wanted.size() > suffix.size() && wanted.ends_with(suffix))
      wanted.resize(wanted.size() - suffix.size());
  }
  for (const NamedShape& known : kPublished) {
    if (lower(known.name) == wanted) return known.shape;
  }
  return std::nullopt;
}

std::vector<std::string> published_shape_names() {
  std::vector<std::string> names;
  for (const NamedShape& known : kPublished) names.emplace_back(known.name);
  return names;
}

std::string_view name_of(PaperCost version) {
  switch (version) {
    case PaperCost::kV1:
      return "v1";
    case PaperCost::kV2:
      return "v2";
    case PaperCost::kFigures:
      return "figures";
  }
  throw_internal("unknown PaperCost {}", static_cast<int>(version));
}

PaperCost parse_paper_cost(std::string_view name, const std::string& where) {
  static const std::vector<std::string> names{"v1", "v2", "figures"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<PaperCost>(i);
  }
  throw_usage("{}: {}", where, unknown_name_message("paper cost", name, names));
}

CostBreakdown paper_prefill_flops(const ModelShape& s, double tokens, double density, PaperCost version,
                                  double batch) {
  check_density(density);
  const double L = tokens, N = s.layers, d = s.hidden, h = s.q_heads, dh = s.head_dim, m = s.mlp;
  const double projection_density = version == PaperCost::kFigures ? density : 1.0;
  CostBreakdown cost;
  cost.embedding = batch * 2 * L * d;
  cost.projections = batch * N * 2 * L * d * (2 * d + 2 * kv_width(s)) * projection_density;
  cost.attention = batch * N * density * (2 * h * L * L * dh + 3 * h * L * L + 2 * h * L * L * dh);
  cost.mlp = batch * N * (6 * L * d * m + 2 * L * m);
  cost.head = batch * 2 * L * d * s.vocab;
  return cost;
}

CostBreakdown paper_decode_cost(const ModelShape& s, double tokens, double density, PaperCost version,
                                double batch) {
  check_density(density);
  const double L = tokens, N = s.layers, d = s.hidden, h = s.q_heads, dh = s.head_dim, m = s.mlp;
  CostBreakdown cost;
  if (version == PaperCost::kV1) {
    cost.embedding = batch * 2 * d;
    cost.projections = batch * N * 2 * d * (2 * d + 2 * kv_width(s));
    cost.attention = batch * N * density * (4 * h * L * dh + 3 * h * L);
    cost.mlp = batch * N * (6 * d * m + 2 * m);
    cost.head = batch * 2 * d * s.vocab;
    return cost;
  }
  cost.embedding = d;
  cost.projections = N * d * (version == PaperCost::kFigures ? 2 * d + 2 * kv_width(s) : 4 * d);
  cost.mlp = N * 3 * d * m;
  cost.head = d * s.vocab;
  cost.attention = batch * N * 2 * L * kv_width(s) * density;
  return cost;
}

double paper_vertical_slash_index_flops(const ModelShape& s, double tokens, double window, double verticals,
                                        double slashes, double batch) {
  const double L = tokens;
  return batch * s.layers * s.q_heads *
         (2 * s.head_dim * L * window + 5 * L * window + 2 * L * std::log2(L) +
          (L / 64) * (verticals + slashes));
}

double paper_quest_index_elements(const ModelShape& s, double tokens, double page, double batch) {
  return batch * s.layers * 2 * kv_width(s) * tokens / page;
}

double causal_cells(double tokens, double window) {
  if (window <= 0 || window >= tokens) return tokens * (tokens + 1) / 2;
  return window * (window + 1) / 2 + (tokens - window) * window;
}

CostBreakdown causal_prefill_flops(const ModelShape& s, double tokens, double sparsity, double index_flops) {
  check_density(1 - sparsity);
  const double cells = s.global_layers() * causal_cells(tokens) * (1 - sparsity) +
                       s.sliding_layers * causal_cells(tokens, s.sliding_window);
  CostBreakdown cost;
  cost.projections = 2 * tokens * s.layers * projection_elements(s);
  cost.attention = 4 * q_width(s) * cells;
  cost.mlp = 2 * tokens * s.layers * mlp_elements(s);
  cost.head = 2.0 * s.hidden * s.vocab;
  cost.index = index_flops;
  return cost;
}

DecodeCost causal_decode_step(const ModelShape& s, double tokens, double sparsity, double batch,
                              double element_bytes, double index_flops, double index_bytes) {
  check_density(1 - sparsity);
  const double sliding_keys = s.sliding_layers > 0 ? std::min<double>(tokens, s.sliding_window) : 0;
  const double keys = s.global_layers() * tokens * (1 - sparsity) + s.sliding_layers * sliding_keys;
  DecodeCost cost;
  cost.bytes.embedding = batch * s.hidden * element_bytes;
  cost.bytes.projections = s.layers * projection_elements(s) * element_bytes;
  cost.bytes.mlp = s.layers * mlp_elements(s) * element_bytes;
  cost.bytes.head = double(s.hidden) * s.vocab * element_bytes;
  cost.bytes.attention = batch * 2 * kv_width(s) * keys * element_bytes;
  cost.bytes.index = batch * index_bytes;
  cost.flops.projections = batch * 2 * s.layers * projection_elements(s);
  cost.flops.mlp = batch * 2 * s.layers * mlp_elements(s);
  cost.flops.head = batch * 2.0 * s.hidden * s.vocab;
  cost.flops.attention = batch * 4 * q_width(s) * keys;
  cost.flops.index = batch * index_flops;
  return cost;
}

double resident_kv_bytes(const ModelShape& s, double tokens, double resident_sparsity, double element_bytes) {
  check_density(1 - resident_sparsity);
  const double sliding_keys = s.sliding_layers > 0 ? std::min<double>(tokens, s.sliding_window) : 0;
  const double keys = s.global_layers() * tokens * (1 - resident_sparsity) + s.sliding_layers * sliding_keys;
  return 2 * kv_width(s) * keys * element_bytes;
}

IndexCost index_cost(std::string_view method, const ModelShape& s, double tokens, const IndexParams& p) {
  const double layers = s.global_layers();
  const double window = std::min(p.window, tokens);
  // Scores of the last W queries against all keys, softmax included (5 per score, as the paper counts it).
  const double window_cells = window * tokens - window * (window - 1) / 2;
  const double window_flops = layers * s.q_heads * window_cells * (2.0 * s.head_dim + 5);
  IndexCost cost;
  if (method == "vertical_slash" || method == "flex_prefill" || method == "flexprefill") {
    cost.prefill_flops = window_flops + layers * s.q_heads * 2 * tokens * std::log2(std::max(2.0, tokens));
  } else if (method == "snapkv" || method == "ada_snapkv" || method == "tova" || method == "pyramidkv" ||
             method == "expected_attention") {
    cost.prefill_flops = window_flops;
  } else if (method == "block_sparse" || method == "xattention") {
    const double blocks = std::ceil(tokens / p.block);
    cost.prefill_flops =
        layers * s.q_heads * (blocks * (blocks + 1) / 2 * 2.0 * s.head_dim + 2 * tokens * s.head_dim);
  } else if (method == "oracle_topk" || method == "oracle_topp" || method == "oracle_top_k" ||
             method == "oracle_top_p") {
    cost.prefill_flops = layers * s.q_heads * causal_cells(tokens) * 2.0 * s.head_dim;
    cost.decode_flops = layers * s.q_heads * tokens * 2.0 * s.head_dim;
    cost.decode_bytes = layers * kv_width(s) * tokens * p.element_bytes;
  } else if (method == "quest" || method == "twilight") {
    const double pages = std::ceil(tokens / p.block);
    cost.decode_flops = layers * q_width(s) * pages * 4;  // two products, a maximum and a sum per channel
    cost.decode_bytes = layers * 2 * kv_width(s) * pages * p.element_bytes;
  }
  return cost;
}

std::span<const HardwareProfile> datasheet_profiles() {
  // Vendor data sheets: dense bf16 tensor throughput, HBM bandwidth, NVLink bandwidth per direction.
  static const std::array<HardwareProfile, 3> profiles{{
      {"h100-peak", 989e12, 989e12, 3.35e12, 450e9, 0},
      {"h200-peak", 989e12, 989e12, 4.8e12, 450e9, 0},
      {"a100-peak", 312e12, 312e12, 2.039e12, 300e9, 0},
  }};
  return profiles;
}

const HardwareProfile& find_hardware_profile(std::string_view name, const std::string& where) {
  std::vector<std::string> names;
  for (const HardwareProfile& known : datasheet_profiles()) {
    if (known.name == name) return known;
    names.push_back(known.name);
  }
  throw_usage("{}: {}", where, unknown_name_message("hardware profile", name, names));
}

double HardwareProfile::attention_rate(std::string_view method) const {
  const auto it = sparse_attention_flops_per_s.find(method);
  return it != sparse_attention_flops_per_s.end() ? it->second : attention_flops_per_s;
}

double HardwareProfile::index_rate(std::string_view method) const {
  const auto it = index_flops_per_s.find(method);
  return it != index_flops_per_s.end() ? it->second : attention_flops_per_s;
}

namespace {
/// Two ring all-reduces per layer over `tokens` rows of hidden size: each moves 2 (tp-1)/tp of the data.
double all_reduce_seconds(const ModelShape& s, double tokens, const HardwareProfile& hw, int tp,
                          double element_bytes) {
  if (tp <= 1 || hw.link_bytes_per_s <= 0) return 0;
  return 2 * s.layers * tokens * s.hidden * element_bytes * 2 * (tp - 1) / tp / hw.link_bytes_per_s;
}
}  // namespace

double prefill_seconds(const ModelShape& s, double tokens, const CostBreakdown& flops,
                       const HardwareProfile& hw, int tp, double element_bytes, std::string_view method) {
  const double linear = flops.embedding + flops.projections + flops.mlp + flops.head;
  return (linear / hw.linear_flops_per_s + flops.attention / hw.attention_rate(method) +
          flops.index / hw.index_rate(method)) /
             tp +
         all_reduce_seconds(s, tokens, hw, tp, element_bytes);
}

double decode_step_seconds(const ModelShape& s, const DecodeCost& cost, const HardwareProfile& hw, int tp,
                           double batch, double element_bytes) {
  const double cached = cost.bytes.attention + cost.bytes.index,
               cached_flops = cost.flops.attention + cost.flops.index;
  const double linear = std::max((cost.bytes.total() - cached) / hw.bytes_per_s,
                                 (cost.flops.total() - cached_flops) / hw.linear_flops_per_s);
  const double attention = std::max(cached / hw.kv_rate(), cached_flops / hw.attention_flops_per_s);
  return (linear + attention) / tp + hw.step_overhead_s + s.layers * hw.layer_overhead_s +
         batch * hw.sequence_overhead_s + all_reduce_seconds(s, batch, hw, tp, element_bytes);
}

double decode_index_seconds(const IndexCost& cost, std::string_view method, const HardwareProfile& hw,
                            int tp) {
  const auto measured = hw.index_flops_per_s.find(method);
  if (measured != hw.index_flops_per_s.end()) return cost.decode_flops / measured->second / tp;
  return std::max(cost.decode_bytes / hw.kv_rate(), cost.decode_flops / hw.attention_flops_per_s) / tp;
}

}  // namespace lacuna
