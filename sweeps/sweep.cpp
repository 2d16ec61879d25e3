#include "sweeps/sweep.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/text.h"
#include "sweeps/reader.h"
#include "tasks/task.h"

namespace lacuna {

namespace {

constexpr std::int64_t kMaxLength = 16 << 20;
constexpr std::int64_t kMaxSamples = 10'000'000;
constexpr std::int64_t kMaxNewTokens = 1 << 20;

std::vector<std::int64_t> read_lengths(const Reader& r) {
  std::vector<std::int64_t> lengths = r.integers("lengths", 16, kMaxLength);
  std::ranges::sort(lengths);
  const auto repeated = std::ranges::adjacent_find(lengths);
  if (repeated != lengths.end()) r.fail("lengths", "{} is given twice", *repeated);
  return lengths;
}

/// lengths: of an entry, each of which must be one of the sweep's.
std::vector<std::int64_t> read_subset_lengths(const Reader& r, const std::vector<std::int64_t>& all) {
  std::vector<std::int64_t> lengths = read_lengths(r);
  for (const auto length : lengths) {
    if (!std::ranges::binary_search(all, length))
      r.fail("lengths", "{} is not one of the sweep's lengths", length);
  }
  return lengths;
}

template <class Entry>
std::vector<std::string> read_subset_names(const Reader& r, const char* key, const std::vector<Entry>& all) {
  std::vector<std::string> names = r.texts(key), valid;
  for (const auto& entry : all) valid.push_back(entry.name);
  for (const auto& name : names) {
    if (std::ranges::find(valid, name) == valid.end()) {
      throw_usage("{}: {}: {}", r.where(key), key, unknown_name_message("name", name, valid));
    }
  }
  return names;
}

template <class Entry>
void require_new_name(const std::vector<Entry>& entries, const std::string& name, const std::string& where) {
  for (const auto& entry : entries) {
    LACUNA_REQUIRE(entry.name != name, "{}: the name '{}' is used twice; give one of them another `name`",
                   where, name);
  }
}

std::optional<int> to_int(const std::optional<std::int64_t>& value) {
  return value ? std::optional<int>(static_cast<int>(*value)) : std::nullopt;
}

/// Calls read(entry, path) for every entry of a list, or for a single entry that is no list.
template <class Read>
void for_each_entry(const Reader& r, const char* key, Read&& read) {
  if (!r.has(key)) throw_usage("{}: '{}' is missing", r.document().where(r.path()), key);
  const Json& value = r.at(key);
  if (!value.is_array()) {
    read(value, r.path_of(key));
    return;
  }
  if (value.empty()) r.fail(key, "the list is empty");
  for (std::size_t i = 0; i < value.size(); ++i) read(value[i], join_path(r.path_of(key), std::to_string(i)));
}

Json read_rope(const Reader& model) {
  if (!model.has("rope")) return nullptr;
  const Reader r(model.document(), model.path_of("rope"), model.at("rope"));
  r.integer("above", 0, kMaxLength);
  if (r.has("factor") && !(r.at("factor").is_number() || r.at("factor") == "auto")) {
    r.fail("factor", "expected a number or auto");
  }
  if (r.has("factor") && r.at("factor") == "auto" &&
      !r.integer("original_max_position_embeddings", 1, kMaxLength)) {
    r.fail("factor", "auto needs original_max_position_embeddings");
  }
  return r.value();
}

SweepModel read_model(const Document& document, const Json& value, const std::string& path,
                      const Sweep& sweep, const std::string& chat) {
  const Reader r(document, path, value);
  r.allow({"name", "path", "tp", "dtype", "device", "chat", "rope", "shape", "lengths", "samples"});
  SweepModel model;
  model.path = resolve_path(document, r.path_of("path"), r.required_text("path"));
  const std::string folder = std::filesystem::path(model.path).filename().string();
  model.name = r.text(
      "name", folder.empty() ? std::filesystem::path(model.path).parent_path().filename().string() : folder);
  if (model.name.empty()) r.fail("name", "is empty");
  model.tp = static_cast<int>(r.integer("tp", 1, 4096).value_or(1));
  model.dtype = r.choice("dtype", "auto", {"auto", "float32", "bfloat16"});
  model.device = r.choice("device", "auto", {"auto", "cpu", "cuda"});
  model.chat = r.has("chat") ? r.choice("chat", chat, {"auto", "chatml", "llama3", "gemma", "none"}) : chat;
  model.rope = read_rope(r);
  if (r.has("shape")) model.shape = r.at("shape");
  model.lengths = read_subset_lengths(r, sweep.lengths);
  model.samples = to_int(r.integer("samples", 1, kMaxSamples));
  return model;
}

/// The parameter declarations of a task, with the sweep's own `style` and `preset` as defaults where the task
/// has them.
Json with_shared_params(const TaskInfo& info, Json params, const Reader& sweep) {
  for (const char* shared : {"style", "preset"}) {
    const bool declared =
        std::ranges::any_of(info.params, [&](const ParamSpec& p) { return p.name == shared; });
    if (declared && sweep.has(shared) && !params.contains(shared)) params[shared] = sweep.at(shared);
  }
  return params;
}

SweepTask read_task(const Document& document, const Json& value, const std::string& path, const Sweep& sweep,
                    const Reader& top) {
  // ruler_niah | {ruler_niah: {num_queries: 4}} | {task: ruler_niah, params: {...}, name: ..., ...}
  SweepTask task;
  Json params = Json::object();
  std::string params_path = path;
  if (value.is_string()) {
    task.task = value.get<std::string>();
  } else {
    const Reader r(document, path, value);
    if (r.has("task")) {
      r.allow({"name", "task", "params", "data", "lengths", "samples", "max_new_tokens"});
      task.task = r.required_text("task");
      task.name = r.text("name", "");
      if (r.has("params")) params = r.at("params"), params_path = r.path_of("params");
      if (r.has("data")) {
        params["data"] = resolve_path(document, r.path_of("data"), r.required_text("data"));
      }
      task.lengths = read_subset_lengths(r, sweep.lengths);
      task.samples = to_int(r.integer("samples", 1, kMaxSamples));
      task.max_new_tokens = to_int(r.integer("max_new_tokens", 1, kMaxNewTokens));
    } else {
      if (value.size() != 1)
        r.fail("", "expected a task's name, `name: {{parameters}}`, or a map with `task`");
      task.task = value.begin().key();
      params_path = r.path_of(task.task);
      if (!value.begin().value().is_null()) params = value.begin().value();
    }
  }
  const std::string where = document.where(params_path);
  const TaskInfo& info = find_task(task.task, document.where(path));
  if (task.name.empty()) task.name = task.task;
  if (params.is_object()) {
    if (params.contains("data") && params["data"].is_string() && value.is_object() &&
        !value.contains("data")) {
      params["data"] =
          resolve_path(document, join_path(params_path, "data"), params["data"].get<std::string>());
    }
    params = with_shared_params(info, std::move(params), top);
  }
  task.params = Params::parse(info.params, params, where + ": task " + task.task);
  return task;
}

/// "quest", "vertical_slash+quest budget=1024": the methods that are not the default, and what differs from
/// theirs.
std::string default_name(const StrategySpec& spec) {
  const StrategySpec nothing;
  std::string methods, params;
  const auto add = [&](const MethodSpec& method, const char* slot, const char* idle) {
    if (method.method == idle) return;
    methods += (methods.empty() ? "" : "+") + method.method;
    const StrategySpec plain = parse_strategy(Json{{slot, method.method}}, "default");
    const MethodSpec& defaults = slot[0] == 'p' ? plain.prefill : slot[0] == 'e' ? plain.evict : plain.decode;
    const Json own = method.params.to_json(), usual = defaults.params.to_json();
    for (const auto& [name, value] : own.items()) {
      if (value != usual[name])
        params += fmt::format(" {}={}", name, value.is_string() ? value.get<std::string>() : value.dump());
    }
  };
  add(spec.prefill, "prefill", "dense");
  add(spec.evict, "evict", "none");
  add(spec.decode, "decode", "dense");
  return methods.empty() ? "dense" : methods + params;
}

/// True when the parameters that were written down include the one a budget would set.
bool gives_budget(const Json& given) {
  const auto slot_gives = [&](const char* name, Slot slot) {
    const auto it = given.find(name);
    if (it == given.end() || !it->is_object() || it->size() != 1 || !it->begin()->is_object()) return false;
    return it->begin()->contains(find_method(slot, it->begin().key(), name).budget_param);
  };
  return slot_gives("prefill", Slot::kPrefill) || slot_gives("evict", Slot::kEvict) ||
         slot_gives("decode", Slot::kDecode);
}

/// True when a level has something to set.
bool takes_levels(const StrategySpec& spec) {
  return !find_method(Slot::kPrefill, spec.prefill.method, "prefill").budget_param.empty() ||
         !find_method(Slot::kEvict, spec.evict.method, "evict").budget_param.empty() ||
         !find_method(Slot::kDecode, spec.decode.method, "decode").budget_param.empty();
}

/// `given`: the strategy as it was written, for budgets among a method's own parameters.
std::vector<Budget> read_levels(const Reader& r, const Reader& top, const StrategySpec& spec,
                                const Json& given) {
  if (r.has("sparsity") && r.has("tokens")) r.fail("tokens", "give sparsity or tokens, not both");
  std::vector<Budget> levels;
  for (const auto tokens : r.integers("tokens", 1, kMaxLength)) {
    levels.push_back({Budget::Kind::kTokens, static_cast<double>(tokens)});
  }
  const bool asked = r.has("sparsity") || r.has("tokens");
  const char* key = r.has("tokens") ? "tokens" : "sparsity";
  if (asked && phase_of(spec) == "dense") r.fail(key, "a dense strategy takes no budget");
  if (asked && !takes_levels(spec)) r.fail(key, "none of the strategy's methods takes a budget");
  if (asked && gives_budget(given)) r.fail(key, "the budget is given among the method's own parameters too");
  // A strategy that says nothing about its level takes the sweep's.
  const Reader& source = asked ? r : top;
  if (levels.empty() && takes_levels(spec) && !gives_budget(given)) {
    for (const auto sparsity : source.numbers("sparsity", 0, 0.9999)) {
      levels.push_back({Budget::Kind::kSparsity, sparsity});
    }
  }
  for (std::size_t i = 0; i < levels.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (levels[i].value == levels[j].value) r.fail(key, "{} is given twice", levels[i].value);
    }
  }
  if (levels.empty()) levels.push_back({});
  return levels;
}

void add_strategy(SweepStrategy strategy, const std::string& where, Sweep& sweep) {
  check_combination(strategy.base, where);
  for (const auto& other : sweep.strategies) {
    const bool apart = !strategy.lengths.empty() || !strategy.models.empty() || !strategy.tasks.empty();
    LACUNA_REQUIRE(other.name != strategy.name || apart,
                   "{}: the strategy '{}' is given twice; give one of them another `name`", where,
                   strategy.name);
  }
  sweep.strategies.push_back(std::move(strategy));
}

void read_strategy(const Document& document, const Json& value, const std::string& path, Sweep& sweep,
                   const Reader& top) {
  const std::string where = document.where(path);
  if (value.is_string()) {
    // A method's name alone: the slot that has it.
    const std::string name = value.get<std::string>();
    SweepStrategy strategy;
    std::vector<std::string> valid;
    Json given = Json::object();
    for (const auto& info : methods()) {
      valid.push_back(info.name);
      const char* slot = info.slot == Slot::kPrefill ? "prefill"
                         : info.slot == Slot::kEvict ? "evict"
                                                     : "decode";
      if (info.name == name && given.empty()) given[slot] = name;
    }
    if (given.empty()) throw_usage("{}: {}", where, unknown_name_message("method", name, valid));
    strategy.base = parse_strategy(given, where);
    strategy.name = default_name(strategy.base);
    const Json empty = Json::object();
    strategy.levels = read_levels(Reader(document, path, empty), top, strategy.base, given);
    add_strategy(std::move(strategy), where, sweep);
    return;
  }
  const Reader r(document, path, value);
  r.allow(
      {"name", "prefill", "evict", "decode", "product", "sparsity", "tokens", "models", "tasks", "lengths"});
  std::vector<Json> combinations;
  if (r.has("product")) {
    const Reader product(document, r.path_of("product"), r.at("product"));
    product.allow({"prefill", "evict", "decode"});
    for (const char* slot : {"prefill", "evict", "decode"}) {
      if (r.has(slot)) r.fail(slot, "stands beside `product`; put it inside");
    }
    combinations.push_back(Json::object());
    for (const char* slot : {"prefill", "evict", "decode"}) {
      if (!product.has(slot)) continue;
      const Json list = product.at(slot).is_array() ? product.at(slot) : Json::array({product.at(slot)});
      std::vector<Json> wider;
      for (const auto& combination : combinations) {
        for (const auto& method : list) wider.push_back(combination), wider.back()[slot] = method;
      }
      combinations = std::move(wider);
    }
  } else {
    Json one = Json::object();
    for (const char* slot : {"prefill", "evict", "decode"}) {
      if (r.has(slot)) one[slot] = r.at(slot);
    }
    combinations.push_back(std::move(one));
  }
  for (const auto& given : combinations) {
    SweepStrategy strategy;
    strategy.base = parse_strategy(given, where);
    strategy.name = default_name(strategy.base);
    if (r.has("name")) {
      strategy.name =
          combinations.size() == 1 ? r.required_text("name") : r.required_text("name") + " " + strategy.name;
    }
    strategy.models = read_subset_names(r, "models", sweep.models);
    strategy.tasks = read_subset_names(r, "tasks", sweep.tasks);
    strategy.lengths = read_subset_lengths(r, sweep.lengths);
    // In a product, the dense corner takes no level.
    const bool plain = r.has("product") && phase_of(strategy.base) == "dense";
    strategy.levels = plain ? std::vector<Budget>{{}} : read_levels(r, top, strategy.base, given);
    add_strategy(std::move(strategy), where, sweep);
  }
}

}  // namespace

namespace {

/// A strategy in the sweep's syntax without what its level sets.
Json without_budget(const StrategySpec& spec) {
  Json json = to_json(spec);
  const auto drop = [&](const char* name, Slot slot, const MethodSpec& method) {
    const std::string& param = find_method(slot, method.method, name).budget_param;
    if (!param.empty() && json.contains(name) && json[name].is_object())
      json[name][method.method].erase(param);
  };
  drop("prefill", Slot::kPrefill, spec.prefill);
  drop("evict", Slot::kEvict, spec.evict);
  drop("decode", Slot::kDecode, spec.decode);
  return json;
}

}  // namespace

std::string_view phase_of(const StrategySpec& spec) {
  const bool prefill = spec.prefill.method != "dense";
  const bool decode = spec.decode.method != "dense" || spec.evict.method != "none";
  return prefill ? (decode ? "both" : "prefill") : (decode ? "decode" : "dense");
}

std::string rope_for(const SweepModel& model, std::int64_t length, int max_new_tokens) {
  if (model.rope.is_null()) return {};
  Json rope = model.rope;
  if (rope.contains("above")) {
    if (length <= rope["above"].get<std::int64_t>()) return {};
    rope.erase("above");
  }
  if (rope.contains("factor") && rope["factor"] == "auto") {
    rope["factor"] =
        static_cast<double>(length + max_new_tokens) / rope["original_max_position_embeddings"].get<double>();
  }
  return rope.dump();
}

Sweep parse_sweep(const Document& document) {
  const Reader r(document, "", document.root());
  r.allow({"name", "description", "models", "tasks", "lengths", "strategies", "sparsity", "samples", "seed",
           "max_new_tokens", "chat", "style", "preset", "calibration"});
  Sweep sweep;
  const std::string file = document.file_of("");
  sweep.name = r.text("name", std::filesystem::path(file).stem().string());
  if (sweep.name.empty()) sweep.name = "sweep";
  sweep.description = r.text("description", "");
  sweep.lengths = read_lengths(r);
  LACUNA_REQUIRE(!sweep.lengths.empty(), "{}: 'lengths' is missing", document.where(""));
  sweep.samples = static_cast<int>(r.integer("samples", 1, kMaxSamples).value_or(1));
  sweep.seed = static_cast<std::uint64_t>(r.integer("seed", 0, INT64_MAX).value_or(0));
  sweep.max_new_tokens = static_cast<int>(r.integer("max_new_tokens", 1, kMaxNewTokens).value_or(128));
  const std::string chat = r.choice("chat", "auto", {"auto", "chatml", "llama3", "gemma", "none"});
  if (r.has("calibration")) {
    const Json& value = r.at("calibration");
    if (value.is_string()) {
      const std::string path = resolve_path(document, "calibration", value.get<std::string>());
      LACUNA_REQUIRE(std::filesystem::exists(path), "{}: calibration: {} does not exist",
                     document.where("calibration"), path);
      sweep.calibration = Document::load(path).root();
    } else {
      sweep.calibration = value;
    }
  }
  for_each_entry(r, "models", [&](const Json& value, const std::string& path) {
    SweepModel model = read_model(document, value, path, sweep, chat);
    require_new_name(sweep.models, model.name, document.where(path));
    sweep.models.push_back(std::move(model));
  });
  for_each_entry(r, "tasks", [&](const Json& value, const std::string& path) {
    SweepTask task = read_task(document, value, path, sweep, r);
    require_new_name(sweep.tasks, task.name, document.where(path));
    sweep.tasks.push_back(std::move(task));
  });
  for_each_entry(r, "strategies", [&](const Json& value, const std::string& path) {
    read_strategy(document, value, path, sweep, r);
  });
  return sweep;
}

Sweep load_sweep(const std::string& path, std::span<const std::string> overrides) {
  Document document = Document::load(path);
  for (const auto& text : overrides) document.apply_override(text);
  return parse_sweep(document);
}

Json Sweep::to_json() const {
  Json json = {{"name", name}, {"description", description},      {"lengths", lengths}, {"samples", samples},
               {"seed", seed}, {"max_new_tokens", max_new_tokens}};
  if (!calibration.is_null()) json["calibration"] = calibration;
  for (const auto& model : models) {
    Json m = {
        {"name", model.name},     {"path", std::filesystem::absolute(model.path).lexically_normal().string()},
        {"tp", model.tp},         {"dtype", model.dtype},
        {"device", model.device}, {"chat", model.chat}};
    if (!model.rope.is_null()) m["rope"] = model.rope;
    if (!model.shape.is_null()) m["shape"] = model.shape;
    if (!model.lengths.empty()) m["lengths"] = model.lengths;
    if (model.samples) m["samples"] = *model.samples;
    json["models"].push_back(std::move(m));
  }
  for (const auto& task : tasks) {
    Json t = {{"name", task.name}, {"task", task.task}, {"params", task.params.to_json()}};
    if (const auto data = t["params"].find("data");
        data != t["params"].end() && data->is_string() && *data != "") {
      *data = std::filesystem::absolute(data->get<std::string>()).lexically_normal().string();
    }
    if (!task.lengths.empty()) t["lengths"] = task.lengths;
    if (task.samples) t["samples"] = *task.samples;
    if (task.max_new_tokens) t["max_new_tokens"] = *task.max_new_tokens;
    json["tasks"].push_back(std::move(t));
  }
  for (const auto& strategy : strategies) {
    const bool own = strategy.levels.front().kind == Budget::Kind::kOwn;
    Json s = own ? lacuna::to_json(strategy.base) : without_budget(strategy.base);
    s["name"] = strategy.name;
    Json values = Json::array();
    for (const auto& level : strategy.levels) values.push_back(level.value);
    switch (strategy.levels.front().kind) {
      case Budget::Kind::kOwn:
        break;
      case Budget::Kind::kSparsity:
        s["sparsity"] = values;
        break;
      case Budget::Kind::kTokens:
        s["tokens"] = values;
        break;
    }
    if (!strategy.models.empty()) s["models"] = strategy.models;
    if (!strategy.tasks.empty()) s["tasks"] = strategy.tasks;
    if (!strategy.lengths.empty()) s["lengths"] = strategy.lengths;
    json["strategies"].push_back(std::move(s));
  }
  return json;
}

std::string Sweep::hash() const { return lacuna::to_hex(hash64(to_json().dump())); }

}  // namespace lacuna
