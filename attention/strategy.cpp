#include "attention/strategy.h"

#include <algorithm>
#include <array>

#include "attention/methods/registry.h"
#include "core/error.h"
#include "core/json.h"
#include "core/text.h"

namespace lacuna {

namespace {

struct SlotName {
  Slot slot;
  const char* name;
  const char* default_method;
};
constexpr std::array<SlotName, 3> kSlots = {{{Slot::kPrefill, "prefill", "dense"},
                                             {Slot::kEvict, "evict", "none"},
                                             {Slot::kDecode, "decode", "dense"}}};

const SlotName& slot_name(Slot slot) { return kSlots[static_cast<std::size_t>(slot)]; }

struct Registry {
  std::vector<Method> methods;
  std::vector<MethodInfo> infos;
};

const Registry& registry() {
  static const Registry kRegistry = [] {
    Registry r;
#define LACUNA_LIST_METHOD(name) r.methods.push_back(name());
    LACUNA_METHODS(LACUNA_LIST_METHOD)
#undef LACUNA_LIST_METHOD
    for (const Method& method : r.methods) r.infos.push_back(method.info);
    return r;
  }();
  return kRegistry;
}

std::size_t index_of(Slot slot, const std::string& name, const std::string& where) {
  const auto& infos = registry().infos;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < infos.size(); ++i) {
    if (infos[i].slot != slot) continue;
    if (infos[i].name == name) return i;
    names.push_back(infos[i].name);
  }
  throw_usage("{}: {}", where,
              unknown_name_message(std::string(slot_name(slot).name) + " method", name, names));
}

const Method& checked(Slot slot, const MethodSpec& spec) {
  return registry().methods[index_of(slot, spec.method, "strategy")];
}

MethodSpec parse_params(Slot slot, const std::string& name, const Json& given, const std::string& where) {
  const Method& method = registry().methods[index_of(slot, name, where)];
  MethodSpec spec{name, Params::parse(method.info.params, given, where + "." + name)};
  if (method.check != nullptr) method.check(spec.params, where + "." + name);
  return spec;
}

/// A method name alone, or {name: {parameters}}.
MethodSpec parse_method(Slot slot, const Json& given, const std::string& where) {
  if (given.is_string()) return parse_params(slot, given.get<std::string>(), Json::object(), where);
  LACUNA_REQUIRE(
      given.is_object() && given.size() == 1,
      "{}: expected a method name, or one method with its parameters as {{name: {{parameter: value}}}}",
      where);
  return parse_params(slot, given.begin().key(), given.begin().value(), where);
}

Json method_json(const MethodSpec& spec) { return Json{{spec.method, spec.params.to_json()}}; }

}  // namespace

std::span<const MethodInfo> methods() { return registry().infos; }

const MethodInfo& find_method(Slot slot, const std::string& name, const std::string& where) {
  return registry().infos[index_of(slot, name, where)];
}

StrategySpec parse_strategy(const Json& given, const std::string& where) {
  LACUNA_REQUIRE(given.is_object() || given.is_null(),
                 "{}: expected a strategy as {{prefill: ..., evict: ..., decode: ...}}, found {}", where,
                 given.type_name());
  StrategySpec spec;
  const std::array<MethodSpec*, 3> parts = {&spec.prefill, &spec.evict, &spec.decode};
  std::vector<std::string> names;
  for (const SlotName& slot : kSlots) names.emplace_back(slot.name);
  if (given.is_object()) {
    for (const auto& [key, value] : given.items()) {
      LACUNA_REQUIRE(std::ranges::find(names, key) != names.end(), "{}: {}", where,
                     unknown_name_message("slot", key, names));
    }
  }
  for (std::size_t i = 0; i < kSlots.size(); ++i) {
    const auto it = given.is_object() ? given.find(kSlots[i].name) : given.end();
    const bool absent = it == given.end() || it->is_null();
    *parts[i] = parse_method(kSlots[i].slot, absent ? Json(kSlots[i].default_method) : *it,
                             where + "." + kSlots[i].name);
  }
  check_combination(spec, where);
  return spec;
}

Json to_json(const StrategySpec& spec) {
  return Json{{"prefill", method_json(spec.prefill)},
              {"evict", method_json(spec.evict)},
              {"decode", method_json(spec.decode)}};
}

void check_combination(const StrategySpec& spec, const std::string& where) {
  const std::array<const MethodSpec*, 3> parts = {&spec.prefill, &spec.evict, &spec.decode};
  for (std::size_t i = 0; i < kSlots.size(); ++i) {
    const std::string place = where + "." + kSlots[i].name;
    const Method& method = registry().methods[index_of(kSlots[i].slot, parts[i]->method, place)];
    if (method.check != nullptr) method.check(parts[i]->params, place + "." + parts[i]->method);
  }
}

std::unique_ptr<PrefillSelector> make_prefill_selector(const MethodSpec& spec) {
  return checked(Slot::kPrefill, spec).make_prefill(spec.params);
}
std::unique_ptr<Evictor> make_evictor(const MethodSpec& spec) {
  return checked(Slot::kEvict, spec).make_evictor(spec.params);
}
std::unique_ptr<DecodeSelector> make_decode_selector(const MethodSpec& spec) {
  return checked(Slot::kDecode, spec).make_decode(spec.params);
}

}  // namespace lacuna
